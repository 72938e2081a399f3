"""`Tracker`: writes what happens in a run to its record, and to other places if asked."""

import hashlib
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from moesaic.balance.stats import load_entropy, max_violation
from moesaic.config.train import TrainConfig
from moesaic.runlog import RunLog, RunRecord, describe_run, peak_bytes, read_run
from moesaic.train.evaluate import Evaluation
from moesaic.train.folder import RunFolder
from moesaic.train.writers import RunName, Writers


class Tracker:
    """A context manager; every line is on disk when the call returns."""

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        device: str,
        resume_at_step: int | None,
        say: Callable[[str], None],
    ) -> None:
        """Begin a record, or go on with one.

        Args:
            folder: of the run.
            config: its settings.
            device: where it trains.
            resume_at_step: the last step that was saved; None begins a record.
            say: told of what else is written to and fails.

        Raises:
            ConfigError: if one of ``config.logging.to`` cannot be opened.
        """
        gpu = torch.cuda.get_device_name() if device == "cuda" else None
        settings = config.model_dump(mode="json")
        start = describe_run(settings, config.seed, gpu)
        self._log, self._say, self._step = RunLog(folder.record, start, resume_at_step), say, 0
        record = read_run(folder.record)
        name = RunName(folder, _identity(record), settings, resume_at_step)
        try:
            self._writers = Writers(config.logging, name, self._tell)
        except BaseException:
            self._log.close()
            raise
        before = record.of("evaluation")
        self.evaluated_step = before[-1]["step"] if before else None
        """The step after which held-out data was last evaluated."""
        self.has_data_report = bool(record.of("data"))
        """Whether the record says what the run read."""

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """A line of the record; its numbers also go elsewhere."""
        self._step = step
        self._log.write(kind, step, values)
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        if numbers:
            self._writers.write(step, numbers)

    def evaluation(self, step: int, domain: str, found: Evaluation) -> None:
        """The held-out numbers of one domain."""
        values = {
            "loss": found.loss,
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
        }
        self.evaluated_step = self._step = step
        self._log.write("evaluation", step, {"domain": domain, **values})
        self._writers.write(
            step, {f"evaluation/{name}/{domain}": value for name, value in values.items()}
        )

    def _tell(self, writer: str, error: Exception) -> None:
        """Something else that is written to has failed, and is left out from now on."""
        problem = f"{type(error).__name__}: {error}"
        self._log.write("left out", self._step, {"writer": writer, "problem": problem})
        self._say(
            f"{writer} failed and gets nothing more from this run ({problem}); the record is "
            "complete, and the same command tries again where the run is taken up"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._writers.close()
        finally:
            self._log.close()


def evenness(loads: Mapping[int, Tensor]) -> dict[str, float]:
    """How even the load is over the layers; nothing for a dense model."""
    each = [max_violation(load_E) for load_E in loads.values()]
    if not each:
        return {}
    entropies = [load_entropy(load_E) for load_E in loads.values()]
    return {
        "max_violation_mean": sum(each) / len(each),
        "max_violation_max": max(each),
        "load_entropy_mean": sum(entropies) / len(entropies),
    }


def peak_memory(device: str) -> int:
    """Most bytes used so far: of the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_bytes()


def _identity(record: RunRecord) -> str:
    """A name for a run that stays when it is taken up again: its first line says when it began."""
    return hashlib.sha256(json.dumps(record.start, sort_keys=True).encode()).hexdigest()[:16]
