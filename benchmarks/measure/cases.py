"""What is measured: tasks on models of one shape, and the settings each side has for them."""

import json
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, Self

import torch
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.planner.flops import forward_flops, mean_context, train_flops
from moesaic.planner.memory import cache_values
from moesaic.planner.params import params

Task = Literal["train", "forward", "prefill", "decode"]
Precision = Literal["float32", "mixed", "bfloat16"]

TASKS: tuple[Task, ...] = ("train", "forward", "prefill", "decode")
_SHAPES: dict[Task, tuple[int, int]] = {
    "train": (4, 512),
    "forward": (4, 512),
    "prefill": (1, 1024),
    "decode": (1, 512),
}
"""Sequences, and tokens in each; for decoding those that are already in the cache."""
DECODED = 32
"""Tokens decoded one after the other before the cache goes back to the prompt."""
_COMMON: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "max_position_embeddings": 16384,
    "rope_scaling": None,
}
SHAPES: dict[str, dict[str, Any]] = {
    "8-layers": {
        **_COMMON,
        **{"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 8192},
        **{"intermediate_size": 2736, "moe_intermediate_size": 352, "kv_lora_rank": 128},
        **{"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    },
    "1.7b": {
        **_COMMON,
        **{"hidden_size": 1024, "num_hidden_layers": 12, "vocab_size": 32768},
        **{"intermediate_size": 5472, "moe_intermediate_size": 704, "kv_lora_rank": 512},
        **{"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    },
}
"""Sizes for decoding besides the presets: 270 million and 1.7 billion parameters, in V2-Lite's
proportions."""
_WEIGHT_SIZE = 0.05
"""Standard deviation of the weights: large enough that wrong logits would be seen."""


@dataclass(frozen=True, slots=True)
class Case:
    """One task on one model."""

    task: Task
    size: str
    family: str
    threads: int
    context: int | None = None
    """Tokens of a prompt, or of random numbers in the cache of each sequence that is decoded; None
    takes the task's, and decodes after a prompt."""
    sequences: int | None = None
    """How many; None takes the task's."""

    @property
    def name(self) -> str:
        """As ``train tiny-v3``."""
        return f"{self.task} {self.size}-{self.family}"

    @property
    def config(self) -> ModelConfig:
        """The preset without prediction modules, which the peer does not have."""
        if self.size in SHAPES:
            preset = get_preset(f"mid-{self.family}").changed(**SHAPES[self.size])
        else:
            preset = get_preset(f"{self.size}-{self.family}")
        return preset.changed(num_nextn_predict_layers=0, initializer_range=_WEIGHT_SIZE)

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.sequences or _SHAPES[self.task][0]

    @property
    def length(self) -> int:
        """Tokens of each sequence, or of the prompt."""
        return _SHAPES[self.task][1] if self.context is None else self.context

    @property
    def tokens(self) -> int:
        """Tokens that one step puts out or learns from."""
        return self.batch if self.task == "decode" else self.batch * self.length

    @property
    def flops(self) -> float:
        """Operations the model needs for one step; what a side computes twice is not counted."""
        plan = params(self.config, train_experts=None)
        if self.task == "train":
            return self.tokens * train_flops(plan, mean_context(self.length)).total
        if self.task == "decode":
            return self.tokens * forward_flops(plan, self.length + DECODED / 2)
        flops = self.tokens * forward_flops(plan, mean_context(self.length))
        if self.task == "prefill":
            head = 2 * self.config.vocab_size * self.config.hidden_size
            flops -= (self.tokens - self.batch) * head
        return flops

    def bytes_read(self, precision: Precision) -> float:
        """Bytes of weights and cache that decoding one token has to read."""
        value = 4 if precision == "float32" else 2
        cached = (self.length + DECODED / 2) * cache_values(self.config)
        layers = self.config.num_hidden_layers
        weights = params(self.config, train_experts=None).activated
        return value * (weights + self.batch * layers * cached)

    def inputs(self, batches: int = 4) -> list[Tensor]:
        """The same ids for every side and setting, int64 [batch, length] each."""
        generator = torch.Generator().manual_seed(1)
        shape, vocabulary = (self.batch, self.length), self.config.vocab_size
        return [torch.randint(vocabulary, shape, generator=generator) for _ in range(batches)]


KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""For GNU's C library, what `moesaic.kernels.allocator` sets."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How one side does it."""

    side: Literal["moesaic", "transformers"]
    precision: Precision
    """``mixed`` is float32 weights with bfloat16 products: autocast, on the peer's side."""
    experts: str | None = None
    """The peer's experts implementation."""
    attention: str | None = None
    """The peer's attention implementation."""
    many_shapes: bool = False
    """Whether oneDNN may keep many kernels: expert by expert, shapes change at every step."""
    compiled: bool = False
    """Whether torch.compile is used."""

    @property
    def name(self) -> str:
        """As ``transformers bfloat16 grouped_mm sdpa``."""
        flags = ("many_shapes", "compiled")
        parts = [self.side, self.precision, self.experts, self.attention]
        parts += [flag for flag in flags if getattr(self, flag)]
        return " ".join(part for part in parts if part)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that its process is started with. Both sides keep the memory they free, as
        `moesaic train` does: the C library would have it mapped and cleared anew at every step."""
        shapes = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "20000"} if self.many_shapes else {}
        return KEEP_MEMORY | shapes


@dataclass(frozen=True, slots=True)
class Job:
    """One setting of one case, as a worker gets it."""

    case: Case
    setting: Setting
    folder: str
    """Checkpoint with the weights both sides use."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The job in a line."""
        data: dict[str, Any] = json.loads(line)
        return cls(Case(**data["case"]), Setting(**data["setting"]), data["folder"])


def our_settings(case: Case) -> list[Setting]:
    """Every precision; casting float32 weights in every step only pays when they are trained."""
    return [Setting("moesaic", precision) for precision in _precisions(case)]


def peer_settings(case: Case, compiled: bool, quick: bool) -> list[Setting]:
    """Every setting of transformers that could be its best; ``quick`` only the likely ones.

    ``batched_mm`` copies the chosen experts' weights for every token, so only decoding has it. In
    bfloat16 the larger cache of kernels is always given: it was faster in every case measured
    (training tiny-v3: by 1.02 to 1.8 times).
    """
    experts = ["grouped_mm", "eager", *(["batched_mm"] if case.task == "decode" else [])]
    attention = ["sdpa"] if quick else ["sdpa", "eager"]
    shapes_change = case.task != "decode" and not quick
    found = [
        Setting("transformers", *kind, many_shapes=shapes_change and kind[0] != "float32")
        for kind in product(_precisions(case), experts, attention)
    ]
    if compiled and case.task == "decode":
        found += [
            Setting("transformers", precision, kind, "sdpa", compiled=True)
            for precision, kind in product(_precisions(case), ("grouped_mm", "batched_mm"))
        ]
    return found


def _precisions(case: Case) -> tuple[Precision, ...]:
    return ("float32", "mixed", "bfloat16") if case.task == "train" else ("float32", "bfloat16")
