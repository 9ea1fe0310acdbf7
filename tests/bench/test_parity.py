"""The comparison with published numbers: pictures, networks, runs that go on, and tables, on small data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.parity import __main__ as command
from bench.parity import digits, fronts, pairs, records
from bench.parity.pairs import Pairs
from bench.parity.records import Key
from bench.parity.report import PUBLISHED_DIGITS, report, span


def small(size: int, *, few: int = 10, side: int = 36) -> Pairs:
    """Pairs that can be told apart: each label lights rows of its own, one half of the canvas for each task."""
    generator = torch.Generator().manual_seed(size)
    labels = torch.randint(few, (size, 2), generator=generator)
    images = 0.1 * torch.randn(size, 1, side, side, generator=generator)
    for shift in range(2):
        images[torch.arange(size), 0, 2 * labels[:, 0] + shift, : side // 2] += 3
        images[torch.arange(size), 0, 2 * labels[:, 1] + shift, side // 2 :] += 3
    return Pairs(images, labels)


# ------------------------------------------------------------------ pictures
def test_the_second_digit_is_moved_and_cut_off() -> None:
    first, second = torch.zeros(1, 28, 28), torch.zeros(1, 28, 28)
    second[0, :22, :22] = 1.0
    moved = pairs.shifted(first, second)
    second[:] = 1.0
    assert moved.shape == (1, 1, 28, 28) and torch.equal(moved, pairs.shifted(first, second)), "the rest is cut off"
    edge = 28 * 28 / 36  # of the first digit's picture, made smaller
    assert moved[0, 0, 8:20, 8:20].min() > 0.9 and moved[0, 0, round(edge) + 2 :].max() < 0.1
    assert moved[0, 0, :3].max() < 0.1, "6 pixels are 4.7 of the smaller picture"
    first[0, 2, 2] = 1.0
    assert pairs.shifted(first, second)[0, 0, 1:3, 1:3].max() > 0.2, "and the first one stays where it is"


def test_labels_go_with_their_pictures_and_parts_share_nothing() -> None:
    images = torch.zeros(10, 28, 28)
    images[torch.arange(10), 14, torch.arange(10)] = 1.0  # the place of a bright pixel is the label
    made = pairs.paired(images, torch.arange(10), 50, torch.Generator().manual_seed(0), small=False)
    assert made.images.shape == (50, 1, 36, 36)
    assert torch.equal(made.images[:, 0, 14, :10].argmax(1), made.labels[:, 0])
    assert torch.equal(made.images[:, 0, 22, 8:18].argmax(1), made.labels[:, 1])
    train, test = pairs.standardised([made, made])
    assert train.images.mean().abs() < 1e-5 and train.images.std() == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(train.images, test.images)


# ------------------------------------------------------------------ runs
def test_networks_are_as_large_as_the_published_ones() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(digits.Network()) == 27_450
    assert count(fronts.METHODS["COSMOS"].make()) == 31_910 + 2 * 81 * 10
    assert count(fronts.METHODS["PHN-LS"].make()) == 3_243_410


@pytest.mark.parametrize("method", digits.METHODS)
def test_two_digits_are_learned_by_every_method(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "BATCH", 16)
    train, test = small(1024, side=28, few=3), small(200, side=28, few=3)
    record = digits.run(method, 0, train, test, epochs=6)
    assert min(record["accuracy"]) > 60 and records.key_of(record) == Key("digits", method, 0)  # 33 by chance


@pytest.mark.parametrize("method", fronts.METHODS)
def test_a_front_that_was_stopped_goes_on_as_if_it_was_not(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, parts = small(512), (small(100), small(150))
    for name, number in (("LOOK_EVERY", 2), ("RAYS", 5), ("BATCH", 32), ("REFERENCE", (3.0, 3.0))):
        monkeypatch.setattr(fronts, name, number)
    whole = list(fronts.looks(fronts.Training(method, 0, train), tmp_path / "whole.pt", parts, 5))
    assert [record["epochs"] for record in whole] == [2, 4, 5]
    assert whole[-1]["validation"] > whole[0]["validation"] and len(whole[0]["losses"]) == fronts.RAYS
    half = fronts.Training(method, 0, train)
    first = list(fronts.looks(half, tmp_path / "half.pt", parts, 5, late=lambda: half.epochs == 3))
    assert [record["epochs"] for record in first] == [2]
    rest = list(fronts.looks(fronts.Training(method, 0, train), tmp_path / "half.pt", parts, 5))
    for ours, theirs in zip([*first, *rest], whole, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_the_rate_of_cosmos_falls_as_published() -> None:
    training = fronts.Training("COSMOS", 0, small(16))
    rates = []
    for _ in range(100):
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.optimizer.step()
        training.schedule.step()
    assert [rates[epoch] for epoch in (0, 19, 20, 40, 80, 90)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7])


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert records.read(path) == {}
    records.append(path, {"data": "digits", "method": "sum", "seed": 1, "accuracy": [1.0, 2.0]})
    assert list(records.read(path)) == [Key("digits", "sum", 1)]
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(ValueError, match=r"expected a record in line 2 of .*runs\.jsonl, got '\{\}': delete it"):
        records.read(path)


def test_runs_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def fast(method: str, seed: int, train: Pairs, test: Pairs) -> records.Record:
        made.append((seed, method))
        return {"data": "digits", "method": method, "seed": seed, "accuracy": [90.0, 80.0], "seconds": 1.0}

    monkeypatch.setattr(command.digits, "run", fast)
    monkeypatch.setattr(command.pairs, "digit_pairs", lambda: [small(4), small(4)])
    command.main(["run", "--only", "digits", "--minutes", "0"], tmp_path)
    assert made == [], "no time, no run"
    for _ in range(2):
        command.main(["run", "--only", "digits"], tmp_path)
    assert made == [(seed, method) for seed in range(3) for method in digits.METHODS]


def test_without_garments_the_way_to_get_them_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[Pairs]:
        raise FileNotFoundError("expected Fashion-MNIST, got none")

    monkeypatch.setattr(command.pairs, "garment_pairs", none)
    with pytest.raises(SystemExit, match="expected Fashion-MNIST, got none; or go without it: --only digits"):
        command.main(["run", "--only", "COSMOS"], tmp_path)


# ------------------------------------------------------------------ the report
def test_the_tables_have_published_numbers_and_ours(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected records in .*, got none: run `make parity` first"):
        command.main(["report"], tmp_path)
    for seed in range(2):
        for place, method in enumerate(digits.METHODS):
            accuracy = [90.0 + place + seed, 80.0 - place]
            records.append(
                tmp_path / "runs.jsonl", {"data": "digits", "method": method, "seed": seed, "accuracy": accuracy}
            )
    looked = {"data": "garments", "method": "COSMOS", "seed": 0, "seconds": 12.0}
    for epochs, validation, test in ((20, 2.2, 2.1), (40, 2.4, 2.0), (60, 2.3, 1.9), (60, 2.3, 1.9)):
        records.append(tmp_path / "runs.jsonl", {**looked, "epochs": epochs, "validation": validation, "test": test})
    report(records.read(tmp_path / "runs.jsonl"), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| sum | 95.47 (95.37 to 95.56) / 94.45 (93.89 to 94.94) | 90.50 (90.00 to 91.00) / 80.00" in text
    assert "| CAGrad | +0.09 (-0.03 to +0.16) / -0.27 (-0.83 to +0.14) | +1.00 (+1.00 to +1.00) / -1.00" in text
    assert "| COSMOS | 2.31 | 2.000 | 1.900 | 20: 2.200, 40: 2.400, 60: 2.300 | 60 of 100 | 12 |" in text
    assert "PHN-LS |" not in text


def test_published_means_are_those_of_the_seeds() -> None:
    """As the results are quoted: 95.47/94.45, 95.55/94.17, 95.84/94.78."""
    quoted = {"sum": (95.47, 94.45), "CAGrad": (95.55, 94.17), "Nash-MTL": (95.84, 94.78)}
    for method, means in quoted.items():
        for seeds, mean in zip(PUBLISHED_DIGITS[method], means, strict=True):
            assert sum(seeds) / 3 == pytest.approx(mean, abs=0.006)
    assert span((1.0, 3.0)) == "2.00 (1.00 to 3.00)"
