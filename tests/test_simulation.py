"""A sample of the simulation (`make simulate` plays it for hours), and the bugs that it has to find."""

import pytest
from simulation import stores
from simulation.__main__ import play, replay
from simulation.bugs import BUGS, planted
from simulation.checks import Violation
from simulation.world import run

SAMPLE = {"memory": 400, "sqlite": 60}


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level("CRITICAL", "maestro")  # losses and overruns are what schedules are full of


@pytest.mark.parametrize("store", SAMPLE)
def test_no_promise_is_broken(store):
    with stores.opened(store) as open_store:
        worlds = [run(seed, open_store) for seed in range(SAMPLE[store])]
    fates = [fate for world in worlds for fate in world.fates.values()]
    for fate in ("admitted", "spent", "held", "unavailable"):  # it gets to them all
        assert fates.count(fate) >= SAMPLE[store] // 60


# Schedules that found something once; they change with whatever changes the order of steps, and are kept while they do not.
@pytest.mark.parametrize(
    ("store", "seed", "found"),
    [
        ("sqlite", 600_000_946, "a waiter slept past the moment its turn came"),
        (
            "sqlite",
            900_003_393,
            "whose turn it was not, and for whom nobody held money, was taken to wait in vain",
        ),
    ],
)
def test_what_was_found_once_stays_mended(store, seed, found):
    with stores.opened(store) as open_store:
        run(seed, open_store)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    with planted(bug), pytest.raises(Violation):
        for seed in range(4_000):
            run(seed)


@pytest.mark.parametrize("store", SAMPLE)
def test_a_seed_is_the_same_schedule_each_time(store):
    def trace(seed):
        lines = []
        with stores.opened(store) as open_store:
            run(seed, open_store, lines)
        return lines

    for seed in range(20):
        first = trace(seed)
        assert len(first) > 5
        assert trace(seed) == first


def test_a_violation_is_told_with_its_seed_and_replays(capsys):
    with stores.opened("memory") as open_store, planted("release on timeout"):
        assert play(0, 100, open_store, "memory") == 1
        told = capsys.readouterr().out
        seed = int(told.partition("in seed ")[2].partition(":")[0])
        assert f"make simulate SEED={seed} STORE=memory" in told
        assert replay(seed, open_store) == 1
    trace = capsys.readouterr().out.splitlines()
    assert trace[-1].startswith("VIOLATION Violation:")
    assert any("reserve" in line for line in trace)


def test_schedules_without_violation_are_counted(capsys):
    with stores.opened("memory") as open_store:
        assert play(0, 3, open_store, "memory") == 0
    assert capsys.readouterr().out.startswith("3 schedules from seed 0 in ")
