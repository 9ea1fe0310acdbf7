"""``python -m mt2o_ext.demo``: fronts of classifiers of two digits, against independent runs and copies of one net.

``python -m mt2o_ext.demo connection-strength`` is another demo.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import connection_strength
from .comparison import METHODS, TRUNK, arms_of, judged, searched
from .digits import make_pairs
from .picture import draw
from .report import Result, clocks, conclusion, of_seed, over_seeds, summary, table
from .training import EMA, REFERENCE, Setting

DEMOS: dict[str, Callable[[Sequence[str]], None]] = {"connection-strength": connection_strength.main}
NUM_VALIDATION, NUM_TEST, BATCH_SIZE = 2_000, 4_000, 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Chooses learning rates, trains all arms, prints what came out, and writes it to ``--out``.

    If the first argument is the name of another demo, that one runs instead.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in DEMOS:
        DEMOS[arguments[0]](arguments[1:])
        return
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    arms, setting = arms_of(options.method), _setting(options, options.seed)
    print(_introduction(setting))
    scores = searched(arms, setting, options.seed + 1_000_000)
    first = judged(arms, scores, setting, options.seed)
    seeds = [of_seed(first, options.seed)]
    for seed in range(options.seed + 1, options.seed + options.seeds):
        seeds.append(of_seed(judged(arms, scores, _setting(options, seed), seed), seed))

    text = conclusion(first, options.seed)
    print("", *map(table, first), _times(first), clocks(first), text, sep="\n\n")
    if len(seeds) > 1:
        print("", over_seeds([arm.label for arm in arms], seeds), sep="\n")
    given = {name: value for name, value in vars(options).items() if name != "out"}
    (options.out / "front.json").write_text(json.dumps(summary(first, seeds, given, text), indent=1) + "\n")
    _save(first, setting, options.out)


def _introduction(setting: Setting) -> str:
    return (
        f"{setting.num_subproblems} models, each for another trade-off; {setting.budget} gradient evaluations in every "
        f"arm, each of a mini-batch of {setting.batch_size} through one net.\n"
        f"Side by side these are {setting.num_steps} steps; one net that gets {TRUNK:.0%} of them first takes more "
        f"steps, one after the other.\n"
        f"Running averages of the weights (decay {EMA}) are evaluated in all arms; hypervolumes from {REFERENCE}."
    )


def _setting(options: argparse.Namespace, seed: int) -> Setting:
    data = make_pairs((options.pairs, NUM_VALIDATION, NUM_TEST), seed, options.device)
    num_steps = max(1, round(options.epochs * options.pairs / BATCH_SIZE))
    return Setting(data, options.subproblems, BATCH_SIZE, torch.device(options.device), num_steps)


def _save(results: Sequence[Result], setting: Setting, out: Path) -> None:
    """The model for equal tasks, all fronts, and the picture."""
    run = results[0].run
    chosen = run.front(setting.data.validation).choose([0.5, 0.5])
    with run.optimizer.subproblem(chosen, ema=True):
        torch.save(run.model.state_dict(), out / "model.pt")
    for result in results:
        result.front.save(out / f"front_{result.run.arm.name}.pt")
    draw(results).savefig(out / "front.png", dpi=120)
    print(f"\n{out}: front.png, front.json, all fronts, and in model.pt subproblem {chosen}, the one for equal tasks")


def _times(results: Sequence[Result]) -> str:
    return "\n".join(
        f"{run.arm.label}: {run.seconds:.1f} s of training, {run.step_seconds / run.seconds:.1%} in optimizer.step()"
        for run in (result.run for result in results)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mt2o_ext.demo",
        description="Trains fronts of classifiers of two digits: by a method of this package, as copies of one net, "
        "and by independent runs.",
        epilog=f"Other demos, with options of their own, come by name as the first argument: {', '.join(DEMOS)}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--subproblems", type=int, default=5, metavar="K", help="models, each for another trade-off")
    parser.add_argument("--epochs", type=float, default=1.0, help="pairs that each subproblem draws, over --pairs")
    parser.add_argument("--pairs", type=int, default=16_000, help="number of training pairs")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="vertices",
        help="vertices: a front on vertices; the others are rules of transfer between K models",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split of the digits, initial weights, mini-batches")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from --seed on; the first one is drawn")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for what is saved")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    return parser


if __name__ == "__main__":
    main()
