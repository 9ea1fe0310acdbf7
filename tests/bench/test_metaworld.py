"""The benchmark of robots, on small robots of our own: data, networks, searches, runs that go on, and the report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.metaworld import demonstrations, networks, plan, robots, runs
from bench.metaworld.__main__ import drive, main
from bench.metaworld.demonstrations import EVALUATION, HELD_OUT, POOL
from bench.metaworld.networks import ARMS, NETWORKS
from bench.metaworld.report import Interval, comparisons, difference, report, runs_of
from bench.metaworld.runs import Key, Record, Records


class Points:
    """Two tasks: a point in the plane goes to a place, or away from where it began; its expert knows the way."""

    names = ("there", "mirrored")

    def __init__(self) -> None:
        self.at, self.target = torch.zeros(2, 2), torch.zeros(2, 2)

    def seen(self, task: int) -> Tensor:
        return torch.cat([self.at[task], self.target[task] * (-1) ** task])

    def reset(self, task: int, goal: int) -> Tensor:
        self.at[task] = 0.0
        angle = torch.tensor(2.4 * goal)
        self.target[task] = torch.stack([angle.cos(), angle.sin()])
        return self.seen(task)

    def step(self, task: int, action: Tensor) -> tuple[Tensor, bool]:
        self.at[task] += 0.2 * action
        return self.seen(task), bool((self.at[task] - self.target[task]).norm() < 0.15)

    def expert(self, task: int, observation: Tensor) -> Tensor:
        return (5 * (observation[2:] * (-1) ** task - observation[:2])).clamp(-1, 1)


@pytest.fixture(scope="module")
def kept() -> demonstrations.Demonstrations:
    return demonstrations.make(Points())


def record(arm: tuple[str, str], lr: float, seed: int, *, loss: float = 1.0, reached: int = 0) -> Record:
    """One that was never run."""
    key = Key(*arm, plan.DEMONSTRATIONS, lr, seed)
    return Record(key, [loss] * 10, [reached] * 10 if plan.needs_episodes(key) else [], 20, 1000, (1.0, 1.0))


# ------------------------------------------------------------------ demonstrations and episodes
def test_experts_get_there_and_labels_are_without_the_noise(kept: demonstrations.Demonstrations) -> None:
    world = Points()
    assert [len(task) for task in kept] == [len(POOL) + len(HELD_OUT)] * 2
    for task, episodes in enumerate(kept):
        for each in episodes:
            assert torch.equal(each.actions, torch.stack([world.expert(task, seen) for seen in each.observations]))
    steps = (kept[0][0].observations[1:, :2] - kept[0][0].observations[:-1, :2]) / 0.2
    assert not torch.allclose(steps, kept[0][0].actions[:-1], atol=1e-3), "the noise was carried out"


def test_an_expert_that_does_not_arrive_is_left_out() -> None:
    world = Points()
    world.expert = lambda task, observation: torch.zeros(2)  # type: ignore[method-assign]
    assert demonstrations.make(world, goals=(0,), noise=0.0) == [[], []]


def test_demonstrations_come_back_from_their_file(kept: demonstrations.Demonstrations, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kept.pt"
    with pytest.raises(SystemExit, match=r"expected demonstrations in .*kept\.pt, got none"):
        demonstrations.load(path)
    demonstrations.save(kept, path)
    for ours, theirs in zip(kept, demonstrations.load(path), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.goal == b.goal and torch.equal(a.observations, b.observations)
            assert torch.equal(a.actions, b.actions)


def test_runs_draw_from_the_pool_and_are_judged_on_other_goals(kept: demonstrations.Demonstrations) -> None:
    assert not {*POOL} & {*HELD_OUT} | {*POOL} & {*EVALUATION} | {*HELD_OUT} & {*EVALUATION}
    one, same, other = (demonstrations.drawn(kept, 3, seed) for seed in (0, 0, 1))
    for task in range(2):
        goals = {tuple(row) for row in one.train[task][0][:, 2:].tolist()}
        assert len(goals) == 3 and not goals & {tuple(row) for row in one.held_out[task][0][:, 2:].tolist()}
        assert torch.equal(one.train[task][0], same.train[task][0])
        assert not torch.equal(one.mean, other.mean)
        assert torch.equal(one.held_out[task][0], other.held_out[task][0])
    everything = one.standardised(torch.cat([observations for observations, _ in one.train]))
    torch.testing.assert_close(everything.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="expected 21 demonstrations of task 0, got 20: ask for fewer"):
        demonstrations.drawn(kept, 21, 0)


def test_success_counts_the_goals_that_each_task_reaches() -> None:
    world = Points()

    def policy(observations: Tensor) -> Tensor:
        """Right for the first task, and for the second one only in half of the plane."""
        first = world.expert(0, observations[0])
        second = world.expert(1, observations[1]) * (1.0 if observations[1, 2] > 0 else 0.0)
        return torch.stack([first, second])

    right = sum(world.reset(1, goal)[2] > 0 for goal in EVALUATION)
    assert 0 < right < len(EVALUATION)
    assert robots.successes(world, policy, EVALUATION, limit=30) == [len(EVALUATION), right]
    assert robots.successes(world, policy, EVALUATION, limit=2) == [0, 0], "nobody is that fast"


def test_without_the_package_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="expected the package metaworld: run `make metaworld`"):
        robots.MetaWorld()


# ------------------------------------------------------------------ networks
def test_networks_have_as_many_parameters_within_two_per_cent() -> None:
    counts = {name: networks.parameters(kind.make(39, 4, 10)) for name, kind in NETWORKS.items()}
    for name, count in counts.items():
        assert abs(count / counts["modules"] - 1) <= 0.02, name
    with pytest.raises(ValueError, match=r"expected \d+ parameters within 2 %, got \d+: no width has as many"):
        NETWORKS["separate"].make(20_000, 4, 30)


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_of_many_tasks_are_answered_as_those_of_one(name: str) -> None:
    torch.manual_seed(0)
    net, x = NETWORKS[name].make(4, 2, 3), torch.randn(3, 4)
    together = net(x, torch.arange(3))
    torch.testing.assert_close(together, torch.cat([net(x[task : task + 1], task) for task in range(3)]))
    same = net(x[:1].expand(3, 4), torch.arange(3))
    assert not torch.allclose(same[0], same[1]), "the task makes a difference"


def test_heads_belong_to_their_tasks_and_all_parameters_are_trained() -> None:
    for kind in NETWORKS.values():
        net = kind.make(4, 2, 3)
        groups = kind.groups(net)
        assert sum(p.numel() for group in groups for p in group["params"]) == networks.parameters(net)
    groups = NETWORKS["heads"].groups(NETWORKS["heads"].make(4, 2, 3))
    assert [group.get("task") for group in groups] == [None, 0, 1, 2]


# ------------------------------------------------------------------ runs
@pytest.mark.parametrize("arm", ARMS, ids="-".join)
def test_every_arm_learns_from_the_same_demonstrations(
    arm: tuple[str, str], kept: demonstrations.Demonstrations
) -> None:
    before, after = (runs.run(Key(*arm, 20, 3e-3, 0, steps), kept, None) for steps in (1, 150))
    assert after.loss < 0.3 * before.loss and after.reached == []
    again = runs.run(Key(*arm, 20, 3e-3, 0, 150), kept, Points())
    assert again.held_out == after.held_out
    assert again.success > 0.9 and again.success == sum(again.reached) / (2 * len(EVALUATION))


def test_records_come_back_and_a_broken_line_is_named(tmp_path: Path) -> None:
    made = record(ARMS[0], 1e-3, 0, loss=0.25, reached=5)
    Records(tmp_path / "runs.jsonl").add(made)
    assert Records(tmp_path / "runs.jsonl").by_key == {made.key: made}
    assert made.success == 5 / 20 and made.loss == 0.25
    with open(tmp_path / "runs.jsonl", "a") as file:
        file.write('{"key":')
    with pytest.raises(ValueError, match=r"expected a record in line 2 of .*runs\.jsonl, got '\{\"key\":': delete it"):
        Records(tmp_path / "runs.jsonl")


# ------------------------------------------------------------------ the plan
def test_the_rate_is_known_when_all_of_them_were_tried() -> None:
    arm, known = ARMS[0], {}
    for key, loss in zip(plan.search_keys(arm), (3.0, 2.5, 2.6, 1.0, 4.0), strict=True):
        assert plan.chosen_rate(arm, known) is None and not plan.needs_episodes(key)
        known[key] = record(arm, key.lr, key.seed, loss=loss)
    assert plan.chosen_rate(arm, known) == plan.RATES[3]


def test_all_that_is_planned_is_run_once_in_an_order_that_can_be_stopped(
    kept: demonstrations.Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pilot, all searches, the sum, other weightings; a driver that starts again makes only what is missing."""
    demonstrations.save(kept, tmp_path / "demonstrations.pt")
    made: list[Key] = []

    def fast(key: Key, kept: object, world: object) -> Record:
        made.append(key)
        assert (world is not None) == plan.needs_episodes(key)
        return Record(key, [abs(key.lr - 1e-3)], [3] if plan.needs_episodes(key) else [], 10, 10, (0.0, 0.0))

    monkeypatch.setattr("bench.metaworld.__main__.run", fast)
    for _ in range(2):
        drive(Records(tmp_path / "runs.jsonl"), Points(), tmp_path, 3)
    assert len(made) == len(set(made)) and made[:3] == plan.pilot()
    reported = [key for key in made if key.seed != plan.SEARCH_SEED]
    assert [(key.seed, key.weighting, key.network) for key in reported] == [
        (seed, weighting, network)
        for weighting in networks.WEIGHTINGS
        for seed in range(3)
        for network in NETWORKS
        if (network, weighting) in ARMS
    ]
    assert {key.lr for key in reported} == {1e-3}
    drive(Records(tmp_path / "other.jsonl"), Points(), tmp_path, 1, minutes=0)
    assert not (tmp_path / "other.jsonl").exists(), "no time, no run"


# ------------------------------------------------------------------ the report
def with_known_numbers(path: Path) -> Records:
    """Arms of 10, 11, 12 ... successes of 20 in each task; every seed one more; one arm whose seeds differ."""
    records = Records(path)
    for place, arm in enumerate(ARMS):
        for lr in plan.RATES:
            records.add(record(arm, lr, plan.SEARCH_SEED, loss=abs(lr - 1e-3)))
        for seed in range(3):
            extra = (0, 2, -2)[seed] if arm == ("heads", "sum") else 0
            records.add(record(arm, 1e-3, seed, loss=0.5, reached=5 + place + seed + extra))
        records.add(record(arm, 3e-3, 7, reached=20))  # of another rate: left out
    for key in plan.pilot():
        records.add(Record(key, [1.0] * 10, [key.demonstrations] * 10, 20, 1000, (1.0, 1.0)))
    return records


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    found = runs_of(with_known_numbers(tmp_path / "runs.jsonl").by_key)
    assert list(found) == ARMS and all(set(mine) == {0, 1, 2} for mine in found.values())
    exact = difference(found, ("modules", "PCGrad"), ("modules", "sum"))
    assert exact is not None and exact.mean == pytest.approx(0.05) and exact.half == pytest.approx(0.0)
    assert exact.clear
    place = ARMS.index(("heads", "sum")) - ARMS.index(("plain", "sum"))
    wide = difference(found, ("heads", "sum"), ("plain", "sum"))
    assert wide is not None and wide.mean == pytest.approx(place / 20)
    assert wide.half == pytest.approx(4.303 * 0.1 / 3**0.5) and not wide.clear
    assert difference(found, ("plain", "sum"), ("nobody", "sum")) is None
    assert len(comparisons()) == len(set(comparisons())) == 13


def test_intervals_are_written_in_points() -> None:
    assert Interval.of([0.5]).points() == "50.0" and not Interval.of([0.5]).clear
    both = Interval.of([0.1, 0.2, 0.3])
    assert both.points("+") == f"+20.0 [{20 - 248.4 / 10:+.1f}, +44.8]" and not both.clear


def test_the_report_tells_what_the_records_say(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected records in .*, got none of a reported seed: run `make metaworld`"):
        main(["report"], tmp_path)
    records = with_known_numbers(tmp_path / "runs.jsonl")
    report(records, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert "| modules | sum | 1,000 | 0.001 | 3 | 0.5000 | 30.0 [17.6, 42.4] | 1 |" in text
    assert "| modules, PCGrad | modules, sum | **+5.0 [+5.0, +5.0]** |" in text
    assert "| heads, sum | plain, sum | +15.0 [-9.8, +39.8] |" in text
    assert "| modules | sum | 30 | 30 |" in text
    assert "in 20\n  episodes of each task 2 give 10.0 %, 5 give 25.0 %, 10 give 50.0 %." in text
