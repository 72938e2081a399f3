"""Where the numbers of a run go besides its record: TensorBoard, trackio, Weights & Biases.

The record is what counts. Something else that fails while a run is under way is told of once, left
out from then on, and never ends the run.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Thread
from typing import Any, Protocol

from moesaic.config.train import Destination, LoggingConfig
from moesaic.errors import ConfigError
from moesaic.train.folder import RunFolder

_STEP = "optimizer_step"
_UPLOAD_S = 60.0
"""How long the end of a run waits for Weights & Biases; what it made comes after."""


class Writer(Protocol):
    """Takes numbers, as those named here do."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step, under names like ``step/loss``."""
        ...

    def close(self) -> None:
        """Hand over what is still held."""
        ...


@dataclass(frozen=True, slots=True)
class RunName:
    """What a run is called elsewhere."""

    folder: RunFolder
    identity: str
    """The same whenever the run is taken up again, and no other run's."""
    config: Mapping[str, Any]
    """Every setting."""
    resumed_at: int | None
    """The step it goes on after; None at its beginning."""

    @property
    def shown(self) -> str:
        """The folder's name, and enough to tell runs in folders of one name apart."""
        return f"{self.folder.path.resolve().name}-{self.identity[:6]}"


def check_installed(logging: LoggingConfig) -> None:
    """Refuse what is asked for and not installed; each has the name of its package.

    Raises:
        ConfigError: if something is missing.
    """
    for package in logging.to:
        if find_spec(package) is None:
            raise ConfigError(
                f"logging.to names {package!r}, which is not installed; pip install "
                f"'moesaic[track]', or take {package!r} out of logging.to"
            )


class Writers:
    """All that a run asks for."""

    def __init__(
        self, logging: LoggingConfig, run: RunName, tell: Callable[[str, Exception], None]
    ) -> None:
        """Open each of them.

        Args:
            logging: which.
            run: what the run is called there.
            tell: told of the first failure of each, and why.

        Raises:
            ConfigError: if one cannot be opened.
        """
        self._tell = tell
        self._open = {kind: _opened(kind, logging, run) for kind in logging.to}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, to all that have not failed."""
        for kind, writer in list(self._open.items()):
            try:
                writer.write(step, values)
            except Exception as error:
                self._leave_out(kind, error)

    def close(self) -> None:
        """Close all."""
        for kind, writer in list(self._open.items()):
            try:
                writer.close()
            except Exception as error:
                self._leave_out(kind, error)

    def _leave_out(self, kind: str, error: Exception) -> None:
        del self._open[kind]
        self._tell(kind, error)


def _opened(kind: Destination, logging: LoggingConfig, run: RunName) -> Writer:
    makers = {"tensorboard": _TensorBoard, "trackio": _Trackio, "wandb": _Wandb}
    try:
        return makers[kind](logging, run)
    except Exception as error:
        raise ConfigError(
            f"logging.to names {kind!r}, which does not start ({error}); see to that, or take "
            f"{kind!r} out of logging.to"
        ) from error


class _TensorBoard:
    """Files in the folder of the run."""

    def __init__(self, logging: LoggingConfig, run: RunName) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if run.resumed_at is None else run.resumed_at + 1
        self._writer = SummaryWriter(str(run.folder.tensorboard), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    """A database on this machine, or wherever trackio's own settings say."""

    def __init__(self, logging: LoggingConfig, run: RunName) -> None:
        with redirect_stdout(sys.stderr):  # where results are not
            import trackio

            self._run = trackio.init(
                project=logging.project,
                name=run.shown,
                config=dict(run.config),
                resume="allow",
                embed=False,
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        import trackio

        with redirect_stdout(sys.stderr):
            trackio.finish()


class _Wandb:
    """Weights & Biases, online or offline as its own settings say."""

    def __init__(self, logging: LoggingConfig, run: RunName) -> None:
        import wandb

        self._run = wandb.init(
            project=logging.project,
            name=run.shown,
            id=run.identity,
            dir=str(run.folder.path),
            config=dict(run.config),
            resume="allow",
        )
        self._run.define_metric("*", step_metric=_STEP)  # its own step may never go back

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, _STEP: step})

    def close(self) -> None:
        upload = Thread(target=self._run.finish, daemon=True)
        upload.start()
        upload.join(_UPLOAD_S)
        if upload.is_alive():
            raise TimeoutError(f"not all was uploaded within {_UPLOAD_S:.0f} s; see wandb sync")
