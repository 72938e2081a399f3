"""The training loop: steps, evaluation, saving, logging. It resumes as if it had never stopped."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from moesaic.balance.stats import reachable_loads
from moesaic.config.train import TrainConfig
from moesaic.data.batch import Batch, fed_digest
from moesaic.data.report import Report
from moesaic.errors import TrainingError
from moesaic.model.transformer import Transformer
from moesaic.runlog import Line
from moesaic.train.evaluate import HeldOut, evaluate
from moesaic.train.export import export, last_evaluations
from moesaic.train.folder import RunFolder
from moesaic.train.progress import Display, Seen, Silent
from moesaic.train.schedule import Position, learning_rate, value_at
from moesaic.train.setup import prepare_model, prepare_state, prepare_tokenizer
from moesaic.train.state import TrainState, save_state, saved_states
from moesaic.train.step import Rates, StepResult, take_step
from moesaic.train.track import Tracker, evenness, peak_memory
from moesaic.train.writers import check_installed
from moesaic.units import count


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to."""

    folder: RunFolder
    model: Transformer
    step: int
    """Steps done, in all."""
    tokens: int
    """Positions fed, in all."""
    fed: str
    """Digest of every row that was fed, in order."""
    interrupted: bool
    """Whether it was asked to stop; the same command goes on."""
    evaluations: tuple[Line, ...]
    """The last held-out numbers of every domain, as the record has them."""
    data: Report
    """What the run has read, cut and left out so far."""


def never() -> bool:
    """Do not stop."""
    return False


def train(
    config: TrainConfig,
    model: Transformer | None = None,
    stop: Callable[[], bool] = never,
    display: Display | None = None,
) -> TrainResult:
    """Run a training, or go on with it where its folder holds an unfinished one.

    Args:
        config: the run.
        model: what to train, on its device, with frozen what is not to be trained; None takes what
            ``config.model`` says, and writes the final model into the run's folder.
        stop: asked before every step; when true the run is saved and ends.
        display: shows progress; None shows nothing.

    Raises:
        ConfigError: if the settings contradict each other, the model, the machine, or the run that
            the folder holds.
        DataError: if the data cannot be read.
        TrainingError: if another process trains there, or a value is not finite.
    """
    folder, display = RunFolder(Path(config.folder)), display or Silent()
    check_installed(config.logging)
    with folder.held():
        checkpoint = folder.to_resume(config)
        tokenizer = prepare_tokenizer(config, folder.tokenizer)
        state = prepare_state(config, model or prepare_model(config, tokenizer), tokenizer)
        display.say(_headline(config, state))
        if checkpoint is not None:
            state.load_(checkpoint)
            display.say(f"going on after step {state.step}")
        domains = config.evaluation.domains if config.evaluation else ()
        held_out = {domain: HeldOut.read(config, domain, tokenizer) for domain in domains}
        resume_at = state.step if folder.record.exists() else None
        with Tracker(folder, config, state.device, resume_at, display.say) as tracker:
            run = _Run(config, folder, state, held_out, tracker, display)
            run.take_steps(stop)
        if model is None and run.is_complete:
            export(config, folder, state)
        return TrainResult(
            folder=folder,
            model=state.model,
            step=state.step,
            tokens=state.tokens,
            fed=state.fed,
            interrupted=not run.is_complete,
            evaluations=last_evaluations(folder),
            data=state.loader.report,
        )


def _headline(config: TrainConfig, state: TrainState) -> str:
    """What is trained, and how."""
    sizes = [(p.numel(), p.requires_grad) for p in state.model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    return (
        f"{config.folder}: {count(sum(size for size, _ in sizes))} parameters, "
        f"{count(trained)} of them trained | {config.precision} on {state.device} | "
        f"{config.steps} steps | seed {config.seed}"
    )


def rates_at(config: TrainConfig, position: Position) -> Rates:
    """What the schedules of a run say for the step that is next."""
    speed = config.balance.bias_speed
    return Rates(
        learning_rate=learning_rate(config.schedule, position),
        mtp_weight=value_at(config.mtp_weight, position),
        bias_speed=0.0 if speed is None else value_at(speed, position),
    )


@dataclass(slots=True)
class _Run:
    """A run under way."""

    config: TrainConfig
    folder: RunFolder
    state: TrainState
    held_out: dict[str, HeldOut]
    tracker: Tracker
    display: Display
    data_ended: bool = False

    @property
    def is_complete(self) -> bool:
        return self.data_ended or self.state.step >= self.config.steps

    def take_steps(self, stop: Callable[[], bool]) -> None:
        """Take the steps that are left, until the data ends or ``stop`` says so."""
        while not self.is_complete and not stop():
            started = time.perf_counter()
            position = Position(self.state.step, self.state.tokens, self.config.steps)
            batches = self._next_batches(position)
            if batches:
                self._take_step(batches, rates_at(self.config, position), started)
                self._look_after()
            else:
                self._end_early()
        if self.is_complete:
            self._evaluate()
            self._report_data()
        self._save()

    def _next_batches(self, position: Position) -> list[Batch]:
        """The micro-batches of the next step; fewer where the data ends."""
        rows = value_at(self.config.batch.rows, position)
        return list(islice(self.state.loader, max(1, int(rows) // self.config.batch.at_once)))

    def _take_step(self, batches: list[Batch], rates: Rates, started: float) -> None:
        """One step, and what is written about it."""
        state = self.state
        found = take_step(
            state.model, state.optimizer, batches, rates, self.config, state.generator
        )
        fed = sum(batch.ids_BS.numel() for batch in batches)
        state.step += 1
        state.tokens += fed
        state.fed = fed_digest(state.fed, batches)
        self._note(found, rates, fed / (time.perf_counter() - started))
        if found.problem is not None:
            self._leave_out(found.problem)

    def _note(self, found: StepResult, rates: Rates, tokens_per_s: float) -> None:
        state, logging = self.state, self.config.logging
        memory = peak_memory(state.device)
        self.display.step(
            Seen(state.step, self.config.steps, found.terms["next_token"], tokens_per_s, memory)
        )
        if state.step % logging.every_steps == 0 or found.problem is not None:
            loads = reachable_loads(state.model.moe_layers(), found.loads)
            values = {
                "loss": found.loss,
                **found.terms,
                "grad_norm": found.grad_norm,
                **asdict(rates),
                **evenness(loads),
                "dropped": found.dropped,
                "tokens": state.tokens,
                "tokens_per_s": round(tokens_per_s, 1),
                "memory_bytes": memory,
            }
            self.tracker.write("step", state.step, values)
        if logging.load_every_steps and state.step % logging.load_every_steps == 0:
            layers = {str(layer): load_E.tolist() for layer, load_E in found.loads.items()}
            self.tracker.write("load", state.step, {"layers": layers})

    def _leave_out(self, problem: str) -> None:
        """Count a step that moved nothing, or end the run.

        Raises:
            TrainingError: if no step may be left out, or none any more.
        """
        state, rules = self.state, self.config.optimizer
        state.skipped += 1
        told = f"step {state.step}: {problem}, so nothing was changed"
        if rules.on_non_finite == "skip" and state.skipped <= rules.most_skipped:
            self.tracker.write("skip", state.step, {"problem": problem, "skipped": state.skipped})
            self.display.say(f"{told}; left out, {state.skipped} of at most {rules.most_skipped}")
            return
        self.tracker.write("stop", state.step, {"problem": problem})
        saved = saved_states(self.folder.checkpoints)
        raise TrainingError(
            f"{told} and the run ended. Lower schedule.learning_rate or raise "
            "schedule.warmup_steps in a new run; or leave such steps out with "
            f"optimizer.on_non_finite='skip' (most_skipped={rules.most_skipped}) and give the same "
            f"command again: it goes on from {saved[-1] if saved else 'the beginning'}"
        )

    def _look_after(self) -> None:
        """Evaluate and save where it is time to; in this order, so that a saved step is whole."""
        step, evaluation = self.state.step, self.config.evaluation
        if evaluation is not None and step % evaluation.every_steps == 0:
            self._evaluate()
        if step % self.config.checkpoint.every_steps == 0:
            self._save()

    def _evaluate(self) -> None:
        """Held-out loss of every domain, once per step."""
        step = self.state.step
        if not self.held_out or self.tracker.evaluated_step == step:
            return
        found = {
            domain: evaluate(self.state.model, held_out, self.config.precision == "autocast")
            for domain, held_out in self.held_out.items()
        }
        for domain, evaluation in found.items():
            self.tracker.evaluation(step, domain, evaluation)
        losses = " | ".join(f"{domain} {found[domain].loss:.4f}" for domain in found)
        self.display.say(f"step {step} held out | {losses}")

    def _report_data(self) -> None:
        """What the rows held and what of the data was left out, once per run."""
        if not self.tracker.has_data_report:
            self.tracker.write("data", self.state.step, self.state.loader.report.to_json())

    def _save(self) -> None:
        save_state(self.state, self.config, self.folder.checkpoints)

    def _end_early(self) -> None:
        """The data is at its end before the steps are."""
        self.data_ended = True
        step, steps = self.state.step, self.config.steps
        self.tracker.write("end of data", step, {"steps": steps})
        self.display.say(f"the data ended after step {step} of {steps}; the run ends with it")
