"""The door in front of an LLM: it fits each call to what the caps leave, waits, settles, and ends an agent well."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from maestro_core import CapExceeded, Maestro
from maestro_core.exits import LastCalls
from maestro_core.failures import pause_s

from ._spans import flow_here, watch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator

    from maestro_core import Usage
    from maestro_core.sending import Sending

    from ._passage import Heard, Passage

__all__ = ["Chance", "ExitBehavior", "Gate", "Ticket", "exit_here"]

ExitBehavior = Literal["error", "end", "wrap_up"]


@dataclass(frozen=True, slots=True)
class Chance:
    """A call, or what it may be instead: a last one."""

    passage: Passage
    keeps_last: bool = False
    last: bool = False


class Ticket:
    """What `attach` leaves on an agent: its Maestro, how it leaves at a cap, and what was governed for it."""

    def __init__(self, gate: Gate, exit_behavior: ExitBehavior) -> None:
        self.gate = gate
        self.exit: ExitBehavior = exit_behavior
        self.members: list[Any] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Ticket:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a ledger does not travel to other processes")


class Gate:
    """Lets the calls of LLMs through, for one Maestro.

    Args:
        maestro: The instance to use; `Maestro.default()` if None.
    """

    def __init__(self, maestro: Maestro | None) -> None:
        if maestro is not None:
            self.maestro = maestro
        self._last_calls = LastCalls()
        watch(self)

    @cached_property
    def maestro(self) -> Maestro:
        """The instance that this gate reports to."""
        return Maestro.default()

    # -- the four ways through ------------------------------------------------------------------------------------

    def run(self, passage: Passage, exit_behavior: ExitBehavior) -> Any:
        """Reserve, send, settle; at a cap, leave as the exit behaviour says."""
        refused: CapExceeded | None = None
        for chance in self._chances(passage, exit_behavior):
            try:
                return self._send(chance)
            except CapExceeded as error:
                refused = refused or error
        return self._leave(passage, exit_behavior, refused)

    async def arun(self, passage: Passage, exit_behavior: ExitBehavior) -> Any:
        """As `run`; waits without blocking the event loop."""
        refused: CapExceeded | None = None
        for chance in self._chances(passage, exit_behavior):
            try:
                return await self._asend(chance)
            except CapExceeded as error:
                refused = refused or error
        return self._leave(passage, exit_behavior, refused)

    def stream(self, passage: Passage, exit_behavior: ExitBehavior) -> Generator[Any, None, None]:
        """As `run`, for a stream: nothing is held before somebody listens."""
        refused: CapExceeded | None = None
        for chance in self._chances(passage, exit_behavior):
            try:
                yield from self._stream(chance)
            except CapExceeded as error:
                refused = refused or error
            else:
                return
        yield self._leave(passage, exit_behavior, refused)

    async def astream(self, passage: Passage, exit_behavior: ExitBehavior) -> AsyncGenerator[Any, None]:
        """As `stream`, in an event loop."""
        refused: CapExceeded | None = None
        for chance in self._chances(passage, exit_behavior):
            try:
                async with aclosing(self._astream(chance)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except CapExceeded as error:
                refused = refused or error
            else:
                return
        yield self._leave(passage, exit_behavior, refused)

    # -- one request ----------------------------------------------------------------------------------------------

    def _send(self, chance: Chance) -> Any:
        one = chance.passage
        for attempt in range(one.retries + 1):
            sending, heard = self._open(chance)
            try:
                with one.inside(), sending.inside():
                    response = one.send(sending.reservation)
            except BaseException as error:
                if (pause := _pause_s(chance, sending, attempt, error)) is None:
                    raise
                time.sleep(pause)
            else:
                return self._received(one, sending, heard, heard.add(response))
        raise AssertionError  # the last attempt returns or raises

    async def _asend(self, chance: Chance) -> Any:
        one = chance.passage
        for attempt in range(one.retries + 1):
            sending, heard = await self._aopen(chance)
            try:
                with one.inside(), sending.inside():
                    response = await one.send(sending.reservation)
            except BaseException as error:
                if (pause := _pause_s(chance, sending, attempt, error)) is None:
                    raise
                await asyncio.sleep(pause)
            else:
                return self._received(one, sending, heard, heard.add(response))
        raise AssertionError

    def _stream(self, chance: Chance) -> Generator[Any, None, None]:
        one = chance.passage
        for attempt in range(one.retries + 1):
            sending, heard = self._open(chance)
            try:
                with closing(_steps(one, sending)) as chunks:
                    for chunk in chunks:
                        yield heard.add(chunk)
            except BaseException as error:
                if (pause := _pause_s(chance, sending, attempt, error, heard.usage)) is None:
                    raise
                time.sleep(pause)
            else:
                self._received(one, sending, heard, None)
                return

    async def _astream(self, chance: Chance) -> AsyncGenerator[Any, None]:
        one = chance.passage
        for attempt in range(one.retries + 1):
            sending, heard = await self._aopen(chance)
            try:
                async with aclosing(_asteps(one, sending)) as chunks:
                    async for chunk in chunks:
                        yield heard.add(chunk)
            except BaseException as error:
                if (pause := _pause_s(chance, sending, attempt, error, heard.usage)) is None:
                    raise
                await asyncio.sleep(pause)
            else:
                self._received(one, sending, heard, None)
                return

    def _open(self, chance: Chance) -> tuple[Sending, Heard]:
        one, doors, call = chance.passage, self.maestro.doors, chance.passage.call()
        self.maestro.runs.ask(one.parent_id, call)
        parent_id = one.parent_id
        held = doors.reserve(
            call, fits=one.fits, keeps_last=chance.keeps_last, last=chance.last, parent_id=parent_id
        )
        return one.sent(held, last=chance.last)

    async def _aopen(self, chance: Chance) -> tuple[Sending, Heard]:
        one, doors, call = chance.passage, self.maestro.doors, chance.passage.call()
        self.maestro.runs.ask(one.parent_id, call)
        parent_id = one.parent_id
        held = await doors.areserve(
            call, fits=one.fits, keeps_last=chance.keeps_last, last=chance.last, parent_id=parent_id
        )
        return one.sent(held, last=chance.last)

    def _received(self, one: Passage, sending: Sending, heard: Heard, response: Any) -> Any:
        """Settle an answer; one that was cut because its limit was fitted has reached the cap."""
        sending.settle(heard.usage, reply=heard.reply, reason="the provider reported no usage")
        if heard.last:
            self._last_calls.add(one.run)
        if heard.cut and one.by_agent:
            raise self.maestro.admission.cut(sending.reservation, heard.text)
        return response

    # -- leaving --------------------------------------------------------------------------------------------------

    def _chances(self, passage: Passage, exit_behavior: ExitBehavior) -> Iterator[Chance]:
        """Yield the call, and, once it was refused, what a last one may be."""
        wraps_up = exit_behavior == "wrap_up" and passage.by_agent and not passage.inner
        yield Chance(passage, keeps_last=wraps_up)
        if wraps_up and passage.run not in self._last_calls:
            for last in passage.last_ones():
                yield Chance(last, last=True)

    def _leave(self, passage: Passage, exit_behavior: ExitBehavior, error: CapExceeded | None) -> Any:
        assert error is not None  # noqa: S101 - whoever comes here was refused
        if exit_behavior == "error" or passage.inner or not passage.by_agent:
            raise error
        return passage.goodbye(error)


def exit_here(usual: ExitBehavior) -> ExitBehavior:
    """Return how whoever calls leaves at a cap: as its agent was attached, else as its LLM was."""
    flow = flow_here()
    owner = flow.owner() if flow else None
    if owner is None:
        return usual
    agents = getattr(owner, "agents", None)
    member = agents.get(flow.agent) if flow and isinstance(agents, dict) else None
    for candidate in (owner, member):
        ticket = vars(candidate).get("_maestro_ticket") if candidate is not None else None
        if isinstance(ticket, Ticket):
            return ticket.exit
    return usual


def _steps(one: Passage, sending: Sending) -> Generator[Any, None, None]:
    """Yield a stream's chunks; context variables are never held across a `yield`, which would hand them to the reader."""
    chunks: Any = None
    try:
        while True:
            with one.inside(), sending.inside():
                if chunks is None:
                    chunks = iter(one.send(sending.reservation))
                try:
                    chunk = next(chunks)
                except StopIteration:
                    return
            sending.heard()
            yield chunk
    finally:
        if hasattr(chunks, "close"):
            chunks.close()


async def _asteps(one: Passage, sending: Sending) -> AsyncGenerator[Any, None]:
    chunks: Any = None
    try:
        while True:
            with one.inside(), sending.inside():
                if chunks is None:
                    chunks = aiter(await one.send(sending.reservation))
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
            sending.heard()
            yield chunk
    finally:
        if hasattr(chunks, "aclose"):
            await chunks.aclose()


def _pause_s(
    chance: Chance, sending: Sending, attempt: int, error: BaseException, usage: Usage | None = None
) -> float | None:
    """Close a failed attempt; return how long to wait before the next.

    None if there is none: it was the last, another would not help, or output has arrived.
    """
    failure = sending.fail(error, usage)
    may = failure.retries and not sending.streamed and attempt < chance.passage.retries
    return pause_s(failure, attempt=attempt) if may and isinstance(error, Exception) else None
