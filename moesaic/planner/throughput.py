"""From work and a device, or a measured rate, to tokens per second, hours and tokens per round.

A device's rates are estimates for one device: training at an assumed utilisation of its peak,
decoding and prefill as upper bounds.
"""

from moesaic.planner.devices import Device
from moesaic.planner.flops import forward_flops, mean_context
from moesaic.planner.memory import ServeMemory
from moesaic.planner.params import Plan


def train_rate(device: Device, flops_per_token: float, mfu: float) -> float:
    """Tokens per second in training, in BF16.

    Args:
        device: what trains.
        flops_per_token: forward and backward.
        mfu: model FLOPs utilisation: the share of the peak that does work which is counted.

    Source: PaLM (arXiv 2204.02311) appendix B.
    """
    return device.bf16 * mfu / flops_per_token


def utilisation(device: Device, flops_per_token: float, tokens_per_second: float) -> float:
    """The model FLOPs utilisation that a measured rate amounts to."""
    return tokens_per_second * flops_per_token / device.bf16


def seconds_for(tokens: float, tokens_per_second: float) -> float:
    """Time to pass so many tokens through training."""
    return tokens / tokens_per_second


def tokens_in(seconds: float, tokens_per_second: float) -> int:
    """Tokens that fit into a time, such as a round."""
    return int(seconds * tokens_per_second)


def prefill_bound(device: Device, plan: Plan, prompt: int) -> float:
    """Prompt tokens per second if every product ran at the BF16 peak."""
    return device.bf16 / forward_flops(plan, mean_context(prompt))


def decode_bound(
    device: Device, plan: Plan, memory: ServeMemory, context: int, batch: int = 1
) -> float:
    """Tokens per second, over all sequences, if memory and products ran at their peaks.

    A step reads the weights of every expert that some sequence chose, once, and each sequence's
    cache. Sequences are taken to choose their experts independently and evenly.

    Args:
        device: what decodes.
        plan: the model.
        memory: its bytes, see `serve_memory`.
        context: positions each sequence has in the cache.
        batch: sequences decoded together.
    """
    bytes_per_weight = memory.weights / plan.total
    read = bytes_per_weight * weights_read(plan, batch) + memory.cache_per_token * context * batch
    work = forward_flops(plan, context, absorbed=True) * batch
    return batch / max(read / device.bandwidth, work / device.bf16)


def weights_read(plan: Plan, batch: int) -> float:
    """Parameters that one step of ``batch`` sequences reads from memory, on average."""
    chosen, experts = plan.config.num_experts_per_tok or 0, plan.config.experts
    if not experts:
        return plan.activated
    touched = experts * (1 - (1 - chosen / experts) ** batch)
    return plan.activated + (touched - chosen) * plan.per_expert_slot
