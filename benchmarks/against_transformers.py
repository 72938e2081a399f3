"""How many times faster is moesaic than transformers, on the same weights, inputs and threads?

Each side takes its best setting. `python -m benchmarks.against_transformers --help` for the rest.
"""

import argparse
import sys
import tempfile
from itertools import product

import torch

from benchmarks.measure.cases import TASKS, Case, Setting, our_settings, peer_settings
from benchmarks.measure.machine import DISTURBED, measure_ceiling
from benchmarks.measure.pairs import Effort, compare
from benchmarks.measure.results import write_result
from moesaic.checkpoint.save import save
from moesaic.model.build import build_model
from moesaic.runlog import hardware
from moesaic.units import count, gib

FULL = Effort(screening_s=6.0, group_s=6.0, rounds=7)
QUICK = Effort(screening_s=0.5, group_s=1.0, rounds=3)


def main() -> None:
    """Measure the cases that were asked for, one result file per task."""
    options = _options()
    torch.set_num_threads(options.threads)
    for task, size, family in product(options.tasks, options.sizes, options.families):
        case = Case(task, size, family, options.threads)
        print(f"{case.name}: {case.batch} × {case.length} tokens, {options.threads} threads")
        peers = peer_settings(case, options.compile, options.quick)
        peers = [setting for setting in peers if options.peer in setting.name]
        found = _measure(case, peers, options.quick)
        print(_summary(found))
        what = f"{task}-quick" if options.quick else task
        print(f"  {write_result(what, {f'{size}-{family}': found}, options.threads)}")


def _measure(case: Case, peers: list[Setting], quick: bool) -> dict:
    generator = torch.Generator().manual_seed(0)
    settings = our_settings(case), peers
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(case.config, seed=0)
        weights = f"{folder}/weights"
        save(weights, case.config, model.state_dict(), "float32")
        del model
        ceiling = measure_ceiling(generator)
        effort = QUICK if quick else FULL
        return compare(
            case, weights, settings, ceiling, effort, lambda line: print(line, flush=True)
        )


def _summary(found: dict) -> str:
    """The paired numbers as a person reads them."""
    lines = []
    for side in ("ours", "peer"):
        got = found[side]
        lines.append(
            f"  {side}  {got['setting']:<48} {count(got['tokens_per_s'])} tok/s"
            f" | {got['gflops']:.0f} GFLOP/s, {got['share_of_matmul_ceiling']:.0%} of matmul"
            f" | {gib(got['peak_over_start_bytes'])} over start | others {got['others']:.0%}"
        )
    spread = f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}"
    memory = found["ratio_of_peak_over_start_bytes"]
    disturbed = max(found[side]["others"] for side in ("ours", "peer")) > DISTURBED
    lines.append(f"  ratio {found['ratio']:.2f} ({spread}), memory {memory:.2f}")
    return "\n".join([*lines, *(["  disturbed by other processes"] if disturbed else [])])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small", "mid"])
    parser.add_argument("--families", nargs="+", choices=["v2", "v3"], default=["v2", "v3"])
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--compile", action="store_true", help="transformers compiled, too")
    parser.add_argument("--peer", default="", help="only its settings with this in their name")
    parser.add_argument("--quick", action="store_true", help="tiny-v3 alone, few repetitions")
    options = parser.parse_args()
    if options.quick and "--sizes" not in sys.argv:
        options.sizes = ["tiny"]
    if options.quick and "--families" not in sys.argv:
        options.families = ["v3"]
    return options


if __name__ == "__main__":
    main()
