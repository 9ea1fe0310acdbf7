"""``python -m mt2o_ext.demo``: classifiers of two digits, K subproblems with transfer against K independent runs.

``python -m mt2o_ext.demo connection-strength`` is another demo.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..transfer import Hat, Mean, Neighbours, Spectral, TransferRule
from . import connection_strength
from .digits import make_pairs
from .picture import draw
from .report import TARGET, Result, conclusion, summary, table
from .search import best_rate, search_rates
from .training import EMA, REFERENCE, Arm, Run, Setting, train

RULES: dict[str, Callable[[], TransferRule | None]] = {
    "spectral": Spectral,
    "hat": Hat,
    "neighbours": lambda: Neighbours(rate=0.1, width=0.25),
    "mean": lambda: Mean(rate=0.1),
    "none": lambda: None,
}
DEMOS: dict[str, Callable[[Sequence[str]], None]] = {"connection-strength": connection_strength.main}
NUM_VALIDATION, NUM_TEST, BATCH_SIZE = 2_000, 4_000, 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Chooses learning rates, trains both arms, prints what came out, and writes it to ``--out``.

    If the first argument is the name of another demo, that one runs instead.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in DEMOS:
        DEMOS[arguments[0]](arguments[1:])
        return
    options = _parser().parse_args(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    data = make_pairs((options.pairs, NUM_VALIDATION, NUM_TEST), options.seed, options.device)
    setting = Setting(data, options.subproblems, BATCH_SIZE, torch.device(options.device))
    num_steps = max(1, round(options.epochs * options.pairs / BATCH_SIZE))
    print(
        f"{options.subproblems} subproblems, {num_steps} steps on mini-batches of {BATCH_SIZE}; seed {options.seed}.\n"
        f"Running averages of the weights (decay {EMA}) are evaluated in both arms; hypervolumes from {REFERENCE}."
    )
    arms = (Arm(f"{options.transfer} transfer", RULES[options.transfer]), Arm("independent runs", RULES["none"]))
    transfer, independent = results = _compare(arms, setting, num_steps, options.seed)

    text = conclusion(transfer, independent, options.seed)
    print("", table(transfer), table(independent), _times(results), text, sep="\n\n")

    model, optimizer = transfer.run.model, transfer.run.optimizer
    chosen = transfer.run.front(data.validation).choose([0.5, 0.5])
    with optimizer.subproblem(chosen, ema=True):
        torch.save(model.state_dict(), out / "model.pt")
    transfer.front.save(out / "front_transfer.pt")
    independent.front.save(out / "front_independent.pt")
    draw(transfer, independent).savefig(out / "front.png", dpi=120)
    given = {name: value for name, value in vars(options).items() if name != "out"}
    (out / "report.json").write_text(json.dumps(summary(results, given, text), indent=1) + "\n")
    print(f"\n{out}: front.png, report.json, both fronts, and in model.pt subproblem {chosen}, the one for equal tasks")


def _compare(arms: Sequence[Arm], setting: Setting, num_steps: int, seed: int) -> list[Result]:
    """Learning rates are chosen on validation data, with another seed than the runs that count; test data come last."""
    search_seed = seed + 1_000_000

    def score(arm: Arm, lr: float) -> float:
        return _train("search", arm, lr, setting, [num_steps], search_seed).hypervolumes[-1]

    scores = search_rates(arms, score)
    print("validation hypervolume by learning rate:")
    for arm, known in zip(arms, scores, strict=True):
        print(f"{arm.label:>20}  " + "  ".join(f"{lr:g}: {known[lr]:.4f}" for lr in sorted(known)))
    runs = [
        _train("final", arm, best_rate(known), setting, _checkpoints(num_steps), seed)
        for arm, known in zip(arms, scores, strict=True)
    ]
    goal = TARGET * runs[-1].hypervolumes[-1]
    test = setting.data.test
    return [
        Result(run, known, run.front(test), run.accuracies(test), run.steps_to(goal))
        for run, known in zip(runs, scores, strict=True)
    ]


def _train(what: str, arm: Arm, lr: float, setting: Setting, checkpoints: Sequence[int], seed: int) -> Run:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError('the demo needs tqdm: pip install "mt2o_ext[demo]"') from error
    steps = range(1, checkpoints[-1] + 1)
    bar = tqdm(steps, desc=f"{what}, {arm.label}, learning rate {lr:g}", unit="step", leave=what == "final")
    return train(arm, lr, setting, bar, checkpoints, seed)


def _times(results: Sequence[Result]) -> str:
    return "\n".join(
        f"{run.arm.label}: {run.seconds:.1f} s of training, {run.step_seconds / run.seconds:.1%} in optimizer.step()"
        for run in (result.run for result in results)
    )


def _checkpoints(num_steps: int) -> list[int]:
    """Up to 25, evenly spaced on a logarithmic scale from a twelfth of all steps on."""
    return sorted({max(1, round(num_steps * 12 ** (i / 24 - 1))) for i in range(25)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mt2o_ext.demo",
        description="Trains classifiers of two digits: K subproblems with transfer, against K independent runs.",
        epilog=f"Other demos, with options of their own, come by name as the first argument: {', '.join(DEMOS)}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--subproblems", type=int, default=5, metavar="K", help="models, each for another trade-off")
    parser.add_argument("--epochs", type=float, default=1.0, help="pairs that each subproblem draws, over --pairs")
    parser.add_argument("--pairs", type=int, default=16_000, help="number of training pairs")
    parser.add_argument(
        "--transfer",
        choices=RULES,
        default="spectral",
        help="the rule to compare; none: a control, both arms are equal",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split of the digits, initial weights, mini-batches")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for what is saved")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    return parser


if __name__ == "__main__":
    main()
