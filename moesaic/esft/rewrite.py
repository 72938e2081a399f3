"""A checkpoint with the files and names of another, and some other tensors."""

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from moesaic.checkpoint.digest import store_digest
from moesaic.checkpoint.files import LazyTensor, read_metadata, write_safetensors
from moesaic.checkpoint.folder import INDEX, files_beside
from moesaic.checkpoint.header import StoredTensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.write import CARRIED_FILES
from moesaic.config.packed import PackedGroups
from moesaic.errors import CheckpointError

OnTensor = Callable[[str], None]


def rewrite(
    source: Reader,
    folder: Path,
    make: Callable[[StoredTensor], Tensor],
    on_tensor: OnTensor | None = None,
) -> str:
    """Write a checkpoint file by file, one tensor in memory at a time, and return its digest.

    Args:
        source: what gives the names of files and tensors, and what lies beside them.
        folder: where to; it exists and is empty.
        make: the tensor to write for a stored one, of its type and shape.
        on_tensor: called with the name of each tensor that was made.

    Raises:
        CheckpointError: if the source's weights are packed integers.
    """
    if isinstance(source.config.quantization_config, PackedGroups):
        raise CheckpointError(
            f"{source.folder} is stored in integers, and a change would be rounded to them; take "
            "the checkpoint that it was quantised from, and quantise what comes out"
        )

    def pending(stored: StoredTensor) -> LazyTensor:
        def announced() -> Tensor:
            made = make(stored)
            if on_tensor is not None:
                on_tensor(stored.name)
            return made

        return LazyTensor(stored.name, stored.dtype, stored.shape, announced)

    for path in files_beside(source.folder, ("config.json", INDEX, *CARRIED_FILES)):
        shutil.copyfile(path, folder / path.name)
    digests: dict[str, str] = {}
    for path in source.report.files:
        held = [pending(one) for one in source.report.stored.values() if one.path == path]
        digests |= write_safetensors(folder / path.name, held, read_metadata(path))
    return store_digest(folder, digests)
