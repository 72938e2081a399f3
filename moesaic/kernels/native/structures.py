"""The structures of model.h, and the compiled decoder that reads them."""

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_float, c_int32, c_void_p

from moesaic.errors import RequestError
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import Matrix

NEED = CFUNCTYPE(c_int32, c_int32, POINTER(c_int32), c_int32, POINTER(c_int32), c_int32)
"""``Need`` of model.h."""


class Layer(ctypes.Structure):
    """``Layer`` of model.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "post_norm", "query_norm", "latent_norm")),
        *(
            (name, Matrix)
            for name in (
                *("query", "query_up", "key", "value", "output", "gate", "up", "down"),
                *("router", "experts_in", "experts_out"),
            )
        ),
        *((name, c_void_p) for name in ("bias", "allowed", "slots", "cache")),
    )


class Model(ctypes.Structure):
    """``Model`` of model.h."""

    _fields_ = (
        ("layers", POINTER(Layer)),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("embedding", Matrix),
        ("head", Matrix),
        *(
            (name, c_int32)
            for name in (
                *("hidden", "heads", "key_heads", "head_width"),
                *("unrotated", "rotated", "value_width", "latent"),
                *("is_latent", "is_interleaved"),
                *("experts", "chosen", "groups", "kept_groups", "is_sigmoid", "normalises"),
                *("cache_format", "block"),
            )
        ),
        *((n, c_float) for n in ("gate_scale", "softmax_scale", "norm_eps", "latent_eps")),
        ("need", NEED),
    )


class Pass(ctypes.Structure):
    """``Pass`` of model.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("ids", "positions", "sequences", "tables", "wanted")),
        *((name, c_void_p) for name in ("last_norm", "stream", "logits", "chosen")),
        *(
            (name, c_int32)
            for name in (
                *("count", "n_logits", "table_width"),
                *("first_layer", "last_layer", "threads"),
            )
        ),
    )


def native_library() -> ctypes.CDLL:
    """The compiled functions.

    Raises:
        RequestError: if they cannot be had.
    """
    found = library()
    if isinstance(found, str):
        raise RequestError(f"there is no compiled decoder here: {found}; leave form out")
    found.moesaic_most_tokens.restype = ctypes.c_int64
    found.moesaic_pass.restype = ctypes.c_int32
    for name, structure in (("layer", Layer), ("model", Model), ("pass", Pass)):
        size = getattr(found, f"moesaic_size_of_{name}")
        size.restype = ctypes.c_int64
        assert size() == ctypes.sizeof(structure), name
    return found
