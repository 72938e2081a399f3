"""Sides that decode a shape on a CPU: moesaic in several forms, transformers, llama.cpp."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol, Self

import torch

from benchmarks.measure.cases import DECODED, Case, Job, Setting
from benchmarks.measure.processes import Worker, WorkerError
from benchmarks.measure.work import Evidence, difference
from moesaic.checkpoint.fresh import write_fresh
from moesaic.checkpoint.load import Reader
from moesaic.infer.blocks import BLOCK, BlockPool, Held
from moesaic.infer.decoder import Decoder, Fed, build_decoder
from moesaic.infer.load import load_held
from moesaic.kernels.groupwise import bits_per_weight
from moesaic.kernels.native.pack import Form
from moesaic.model.transformer import Transformer
from moesaic.planner.memory import cache_values
from moesaic.planner.params import params

CONTEXT_OF_BATCH = 128
"""Tokens that each of several sequences has in the cache before it goes on."""
BITS: Mapping[Form, float] = {
    "weights": 16,
    "lossless": 12.2,
    "int8": bits_per_weight(8),
    "int4": bits_per_weight(4),
}
"""Of one weight and its share of the scales, or of what fills up a row."""
_THEIRS: dict[Form, str] = {"weights": "bf16", "lossless": "bf16", "int8": "q8_0", "int4": "q4_0"}


@dataclass(frozen=True, slots=True)
class Question:
    """What is timed once."""

    shape: str
    form: Form
    context: int
    """Tokens in the cache, or in the prompt."""
    sequences: int = 1
    is_prefill: bool = False

    @property
    def name(self) -> str:
        """As ``8-layers int8, 1 after 2048``."""
        if self.is_prefill:
            return f"{self.shape} {self.form}, prompt of {self.context}"
        return f"{self.shape} {self.form}, {self.sequences} after {self.context}"

    @property
    def case(self) -> Case:
        """The same for a worker."""
        task = "prefill" if self.is_prefill else "decode"
        return Case(task, self.shape, "v2", torch.get_num_threads(), self.context, self.sequences)

    @property
    def bytes_read(self) -> float:
        """Weights and cache that one token of one sequence needs; the cache is in bfloat16."""
        config = self.case.config
        weights = params(config, train_experts=None).activated * BITS[self.form] / 8
        return weights + 2 * self.context * config.num_hidden_layers * cache_values(config)


class Side(Protocol):
    """Something that decodes."""

    def tokens_per_s(self, question: Question) -> float:
        """Of all sequences together; of the prompt, for a prefill."""
        ...


@dataclass(frozen=True, slots=True)
class Ours:
    """A model in one form."""

    model: Transformer
    decoder: Decoder

    @classmethod
    def of(cls, weights: Path, form: Form, questions: Sequence[Question]) -> Self:
        """With room for each of the questions."""
        model = load_held(weights, "bfloat16", form=form)
        lengths = ((one.sequences, one.context + 2 * DECODED) for one in questions)
        pool = BlockPool(model.config, max(n * -(-length // BLOCK) for n, length in lengths))
        for layer in pool.layers:
            layer.normal_(generator=torch.Generator().manual_seed(1))
        return cls(model, build_decoder(model, pool, form))

    def tokens_per_s(self, question: Question) -> float:
        """After a context of positions that hold random numbers."""
        decoder = self.decoder
        if question.is_prefill:
            return self._prefill(decoder, question)
        held = [Held(decoder.pool) for _ in range(question.sequences)]
        for one in held:
            one.make_room(question.context + 2 * DECODED)
            one.length = question.context
        _decode(decoder, held)
        start = time.perf_counter()
        _decode(decoder, held)
        seconds = time.perf_counter() - start
        for one in held:
            one.release()
        return question.sequences * DECODED / seconds

    def _prefill(self, decoder: Decoder, question: Question) -> float:
        ids = tuple(question.case.inputs(1)[0][0].tolist())
        seconds = []
        for _ in range(3):
            held = Held(decoder.pool)
            start = time.perf_counter()
            decoder.feed([Fed(held, ids)])
            seconds.append(time.perf_counter() - start)
            held.release()
        return len(ids) / median(seconds)

    def evidence(self, question: Question) -> Evidence:
        """Logits after a prompt."""
        held = Held(self.decoder.pool)
        ids = tuple(question.case.inputs(1)[0][0].tolist())
        [found] = self.decoder.feed([Fed(held, ids)])
        held.release()
        return {
            "parameters": params(self.model.config).total,
            "logits": found.logits_TV[-1, :512].tolist(),
        }


def _decode(decoder: Decoder, held: list[Held]) -> None:
    last = [5] * len(held)
    for _ in range(DECODED):
        fed = [Fed(one, (token,)) for one, token in zip(held, last, strict=True)]
        last = [int(found.logits_TV[-1].argmax()) for found in decoder.feed(fed)]


@dataclass(slots=True)
class Peer:
    """transformers, in a process of its own for every question; its weights are in bfloat16."""

    weights: Path
    setting: Setting
    _worker: Worker | None = None
    _asked: Question | None = None

    def tokens_per_s(self, question: Question) -> float:
        """After a cache filled with random numbers."""
        worker = self._worker_for(question)
        tokens = question.case.tokens
        return tokens / worker.run(at_least_s=1.0).typical

    def evidence(self, question: Question) -> Evidence:
        """Logits after a prompt."""
        return self._worker_for(question).evidence

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _worker_for(self, question: Question) -> Worker:
        if self._asked != question or self._worker is None:
            self.close()
            self._asked = question
            self._worker = Worker(Job(question.case, self.setting, str(self.weights)))
        return self._worker


@dataclass(frozen=True, slots=True)
class Llama:
    """llama.cpp's own benchmarks, on a file."""

    programs: Path
    file: Path

    def tokens_per_s(self, question: Question) -> float:
        """The same, as it measures it."""
        if question.sequences > 1:
            return self._of_many(question)
        n_prompt, n_new = (question.context, 0) if question.is_prefill else (0, DECODED)
        depth = 0 if question.is_prefill else question.context
        words = ["-p", n_prompt, "-n", n_new, "-d", depth, "-r", 2, "-o", "json"]
        return float(json.loads(self._told("llama-bench", words))[-1]["avg_ts"])

    def _of_many(self, question: Question) -> float:
        each, n = question.context + DECODED + 8, question.sequences
        words = ["-c", each * n, "-npp", question.context, "-ntg", DECODED, "-npl", n]
        told = self._told("llama-batched-bench", [*words, "--output-format", "jsonl"])
        found = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
        return float(found[-1]["speed_tg"])

    def _told(self, program: str, words: list[Any]) -> str:
        command = [self.programs / program, "-m", self.file, "-t", torch.get_num_threads(), *words]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
        return done.stdout


def best_peer(weights: Path, question: Question, settings: Sequence[Setting]) -> Setting:
    """The setting of transformers that is fastest in bfloat16, each tried once."""
    speeds = {}
    for setting in settings:
        if setting.precision != "bfloat16":
            continue
        peer = Peer(weights, setting)
        try:
            speeds[setting] = peer.tokens_per_s(question)
            print(f"  {setting.name}: {speeds[setting]:.1f} tok/s", flush=True)
        except WorkerError as error:
            print(f"  {setting.name}: {error}", flush=True)
        finally:
            peer.close()
    if not speeds:
        raise SystemExit("transformers does this in no setting; see above")
    return max(speeds, key=speeds.__getitem__)


def check_same_logits(ours: Ours, peer: Peer, question: Question) -> None:
    """Refuse to time two sides that do not compute the same."""
    apart = difference(ours.evidence(question), peer.evidence(question), is_exact=False)
    if apart is not None:
        raise SystemExit(f"{peer.setting.name} computes {apart}")


def weights_of(shape: str, work: Path) -> Path:
    """The checkpoint of a shape, made if it is not there: fresh weights in bfloat16."""
    folder = work / shape / "weights"
    if not (folder / "config.json").exists():
        config = Case("decode", shape, "v2", 1).config
        write_fresh(folder, config, "bfloat16", 0, lambda spec: None)
    return folder


def file_of(shape: str, form: Form, work: Path, programs: Path) -> Path:
    """The same weights for llama.cpp, made if they are not there: all of them in a form's bits, as
    its own program quantises."""
    from moesaic.checkpoint.gguf import FORMS, write_gguf

    kind = FORMS[_THEIRS[form]]
    file, whole = work / shape / f"{kind}.gguf", work / shape / "bf16.gguf"
    if not whole.exists():
        source = Reader(weights_of(shape, work))
        write_gguf(source, whole, "bf16", None, None, lambda n: None)
    if not file.exists():
        command = [programs / "llama-quantize", "--pure", whole, file, kind.upper()]
        subprocess.run([*map(str, command)], capture_output=True, check=True)
    return file
