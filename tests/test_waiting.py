"""The waiting line, driven by a seeded simulation: no threads, no clock, every interleaving that chance finds.

Wake-ups arrive late and in any order, and nobody polls: a wake-up that is lost shows as a caller that sleeps although it
could go on. While one caller looks at the line or at the ledger, others act in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest

from maestro_core import waiting
from maestro_core.ledger._rules import Place as Counted
from maestro_core.ledger._rules import admit
from maestro_core.types import Attribution, Fit, Hold, Meter, Refused
from maestro_core.waiting import Desk, Line, Place, lineage, turns

METERS = [Meter((dimension,)) for dimension in ("customer", "team", "run")]
NAMES = [(meter.id, ("x",)) for meter in METERS]
SEEDS = range(800)
NEVER = float("inf")


@dataclass(eq=False)
class Caller:
    key: str
    hold: Hold
    names: frozenset
    place: Place
    ancestors: tuple = ()
    children: int = 0  # calls that it still makes while its own money is held
    open_children: int = 0
    parent: Caller | None = None
    until_s: float = NEVER
    state: str = "new"  # new | waiting | holding | served | refused | cancelled
    woken: bool = False
    running: bool = False
    held: int = 0
    outcome: object = None
    turns: object = field(default=None, repr=False)

    def wake(self):
        self.woken = True


class World:
    """A process: its callers, its ledger of three buckets, and a scheduler that does whatever chance says."""

    def __init__(self, seed, line=Line, *, callers=8, nested=True, impatient=False):
        self.chance = Random(seed)
        self.line = line()
        self.nested, self.impatient = nested, impatient
        self.now_s = 0.0
        self.limits = [(meter, self.chance.randint(20, 60)) for meter in METERS]
        self.counters = {name: [0, 0, 0] for name in NAMES}
        self.stack = []
        self.callers = [self.caller(f"call-{i}", Place(1, i + 1)) for i in range(callers)]
        self.seniors = {}  # caller -> who stood in line, and where, when it last looked

    def caller(self, key, place, *, ancestors=(), parent=None):
        chance = self.chance
        names = frozenset(chance.sample(NAMES, chance.randint(1, len(NAMES))))
        least, fixed = chance.randint(1, 6), chance.randint(0, 6)
        comfort = least + chance.randint(0, 6)
        fit = Fit(fixed, comfort + chance.randint(0, 12), comfort, least) if chance.random() < 0.6 else None
        amount = fit.fixed_nanos + fit.ceiling_nanos if fit else chance.randint(1, 20)
        return Caller(
            key,
            Hold(key, amount, "openai", "m", Attribution(), tuple(self.limits), fit),
            names,
            place,
            ancestors,
            children=chance.choice((0, 0, 1, 2)) if self.nested and len(ancestors) < 2 else 0,
            parent=parent,
            until_s=chance.uniform(0, 3) if self.impatient else NEVER,
        )

    # -- what can happen ----------------------------------------------------------------------------------------------

    def actions(self):
        for caller in self.callers:
            if caller.running:
                continue
            if caller.state == "new":
                yield self.step, caller
            elif caller.state == "waiting":
                if caller.woken or self.impatient:
                    yield self.step, caller
                if self.chance.random() < 0.03:
                    yield self.cancel, caller
            elif caller.state == "holding":
                if caller.children and (not caller.open_children or caller.children == 1):
                    yield self.nest, caller
                elif not caller.children and not caller.open_children:
                    yield self.settle, caller

    def act(self):
        """Do one thing; return whether there was anything to do."""
        found = list(self.actions())
        if not found:
            return False
        do, caller = self.chance.choice(found)
        do(caller)
        self.now_s += self.chance.uniform(0, 0.2)
        return True

    def interrupt(self):
        if len(self.stack) < 4 and self.chance.random() < 0.4:
            self.act()

    def step(self, caller):
        caller.state, caller.woken = ("waiting" if caller.turns else "new"), False
        caller.turns = caller.turns or turns(
            self.line,
            caller.names,
            Desk(lambda rest, ticket: self.attempt(caller, rest)),
            wake=caller.wake,
            now_s=self.clock,
            until_s=caller.until_s,
            chance=self.chance,
        )
        caller.running = True
        self.stack.append(caller)
        token = lineage.set(caller.ancestors)
        try:
            assert next(caller.turns) >= 0
            caller.state = "waiting"
        except StopIteration as stop:
            caller.outcome = stop.value
            self.end(caller, "refused" if isinstance(stop.value, Refused) else "holding")
        finally:
            lineage.reset(token)
            self.stack.pop()
            caller.running = False

    def clock(self):
        self.interrupt()
        return self.now_s

    def attempt(self, caller, rest):
        self.interrupt()
        hold = caller.hold
        if rest and hold.fit:
            hold = replace(hold, fit=replace(hold.fit, rest=True))
        outcome = self.admit(caller, hold)
        if not isinstance(outcome, Refused):
            for name in caller.names:
                self.counters[name][1] += outcome
                limit = dict(zip(NAMES, self.limits, strict=True))[name][1]
                assert sum(self.counters[name]) <= limit
            caller.held = outcome
            self.check_order(caller, rest)
            self.line.opened(caller.key, outcome, caller.names, caller.place)
        self.interrupt()
        return outcome

    def admit(self, caller, hold):
        places = [Counted(meter, ("x",), None, (meter.id, ("x",), 0)) for meter in METERS]
        charged = [p for p, name in zip(places, NAMES, strict=True) if name in caller.names]
        return admit(hold, [(p, self.counters[p.key[:2]]) for p in charged], 0)

    def nest(self, caller):
        """A call is made while this one's money is held: in the same task, or in one that it has started."""
        caller.children -= 1
        caller.open_children += 1
        same_place = caller.open_children == 1 and self.chance.random() < 0.5
        place = caller.place if same_place else Place(1, 1000 + len(self.callers))
        ancestors = () if same_place and self.chance.random() < 0.5 else (*caller.ancestors, caller.key)
        child = self.caller(f"call-{len(self.callers)}", place, ancestors=ancestors, parent=caller)
        self.callers.append(child)

    def settle(self, caller):
        cost = self.chance.randint(0, caller.held) if self.chance.random() < 0.8 else 0
        for name in caller.names:
            self.counters[name][1] -= caller.held
            self.counters[name][0] += cost // 2
        self.line.closed(caller.key)
        self.end(caller, "served")

    def cancel(self, caller):
        caller.turns.close()
        self.end(caller, "cancelled")

    def end(self, caller, state):
        caller.state = state
        if state != "holding" and caller.parent:
            caller.parent.open_children -= 1

    # -- what must hold -----------------------------------------------------------------------------------------------

    def run(self):
        while self.act():
            self.check_sleepers()
        states = {caller.state for caller in self.callers}
        assert "waiting" not in states, "somebody waits for ever"
        assert "holding" not in states, "somebody holds for ever"
        assert (self.line._waiters, self.line._open) == ([], {})
        assert all(counter[1] == 0 for counter in self.counters.values())
        self.check_refusals()
        return self

    def inside(self, caller):
        return any(self.is_family(caller, other) for other in self.callers if other.state == "holding")

    def is_family(self, caller, other):
        around = caller.parent
        while around and around is not other:
            around = around.parent
        return around is other

    def check_sleepers(self):
        """Whoever sleeps without a wake-up on its way has a reason to."""
        wakes = {waiter.wake: waiter for waiter in self.line._waiters}
        assert len(wakes) == len(self.line._waiters)
        older = []
        for waiter in self.line._waiters:
            caller = waiter.wake.__self__
            assert caller.state == "waiting"
            blocked = any(at in caller.names for at in older) and not self.inside(caller)
            older.append(waiter.at)
            if blocked or caller.woken:
                continue
            outcome = self.admit(caller, caller.hold)
            assert isinstance(outcome, Refused), "a caller sleeps although its money is free"
            assert not self.hopeless(caller), "a caller waits for money that is spent"
            at = waiting.bucket_name(outcome)
            own = sum(
                c.held for c in self.callers
                if c.state == "holding" and at in c.names and self.is_family(caller, c)
            )  # fmt: skip
            assert outcome.bucket.held > own, "a caller waits for its own money"

    def hopeless(self, caller):
        limits = dict(zip(NAMES, self.limits, strict=True))
        needed = caller.hold.needed_nanos
        return any(self.counters[name][0] + needed > limits[name][1] for name in caller.names)

    def check_order(self, caller, rest):
        if rest or self.inside(caller):
            return
        for senior, at in self.seniors.get(caller, ()):
            assert at not in caller.names, f"{caller.key} overtook {senior.key}"

    def check_refusals(self):
        for caller in self.callers:
            if caller.state == "refused" and not caller.outcome.spent and not self.impatient:
                family = caller.ancestors or caller.parent
                assert family, "a caller was refused as held without waiting"


class Watched(Line):
    """Tells the world who stood in line when a caller looked."""

    world: World

    def ahead(self, names, waiter):
        caller, older = self.world.stack[-1], []
        for one in self._waiters:
            if one is waiter:
                break
            older.append((one.wake.__self__, one.at))
        self.world.seniors[caller] = older
        return super().ahead(names, waiter)


@pytest.fixture
def simulate(monkeypatch):
    """Run a world; `line` is the class under test."""

    def run(seed, line=Watched, **kwargs):
        world = World(seed, line, **kwargs)
        world.line.world = world
        monkeypatch.setattr(waiting, "here", lambda: world.stack[-1].place)
        return world.run()

    return run


def test_nobody_is_overlooked_overtaken_or_left_behind(simulate):
    worlds = [simulate(seed, nested=False) for seed in SEEDS]
    states = [caller.state for world in worlds for caller in world.callers]
    for state in ("served", "refused", "cancelled"):  # the simulation reaches them all
        assert states.count(state) > 50


@pytest.mark.parametrize("impatient", [False, True])
def test_calls_inside_calls_never_wait_for_each_other(simulate, impatient):
    worlds = [simulate(seed, impatient=impatient) for seed in SEEDS]
    callers = [caller for world in worlds for caller in world.callers if caller.parent]
    assert sum(caller.state == "served" for caller in callers) > 1_000


# -- the simulation finds what it is there to find --------------------------------------------------------------------


class NoWakeOnClosed(Watched):
    def closed(self, key):
        self._open.pop(key, None)


class NoWakeOnLeave(Watched):
    def leave(self, waiter):
        self._waiters.remove(waiter)


class NoWakeOnMove(Watched):
    def move(self, waiter, at):
        waiter.at = at


class UnseenLeave(Watched):
    """Someone who is about to stand behind the one that leaves does not notice."""

    def leave(self, waiter):
        changes = self.changes
        super().leave(waiter)
        self.changes = changes


class Overtaking(Watched):
    def ahead(self, names, waiter):
        super().ahead(names, waiter)


class NestedStandsBehind(Watched):
    def inside(self, place, ancestors):
        return False


class WaitsForItsOwn(Watched):
    def in_vain(self, waiter):
        return 0


class SeesOnlyItself(Watched):
    """Two calls, each inside an open one, wait for each other."""

    def _ending(self):
        return set(self._open)


@pytest.mark.parametrize(
    "line",
    [NoWakeOnClosed, NoWakeOnLeave, NoWakeOnMove, UnseenLeave, Overtaking, NestedStandsBehind, WaitsForItsOwn,
     SeesOnlyItself],
    ids=lambda line: line.__name__,
)  # fmt: skip
def test_a_planted_bug_is_found(simulate, line):
    def fails(seed):
        try:
            simulate(seed, line, nested=line in (NestedStandsBehind, WaitsForItsOwn, SeesOnlyItself))
        except AssertionError:
            return True
        return False

    assert any(fails(seed) for seed in range(5_000))
