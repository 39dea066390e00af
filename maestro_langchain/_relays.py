"""Passing a stream on: what may still be taken back, what the caller has seen, and the decision on the last chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ._trips import Sent, Trip

__all__ = ["Relay", "abeginning", "beginning"]


class Relay:
    """The chunks of one attempt on their way to the caller.

    Until the first token nothing is passed on, so that another endpoint may answer instead. The chunk that says it is the
    last waits until the endpoint's run has ended, and the call is settled: the decision it bears says what it cost.
    """

    def __init__(self, trip: Trip, sent: Sent) -> None:
        self._trip = trip
        self._sent = sent
        self._waiting: list[AIMessageChunk] = []
        self._begun = False
        self._text = ""
        self._calls_tools = False

    def take(self, chunk: AIMessageChunk) -> Iterator[AIMessageChunk]:
        """Yield what can be passed on, now that this chunk is here."""
        self._waiting.append(chunk)
        if not self._begun and _says_something(chunk):
            self._begun = True
            self._trip.began(self._sent)
        if not self._begun or getattr(chunk, "chunk_position", None) == "last":
            return
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._text += each.text
            self._calls_tools = self._calls_tools or bool(each.tool_call_chunks)
            yield each

    def end(self) -> Iterator[AIMessageChunk]:
        """Yield the rest; the decision is on the last chunk."""
        *rest, last = self._waiting or [AIMessageChunk(content="", chunk_position="last")]
        yield from rest
        if getattr(last, "chunk_position", None) != "last":
            yield last
            nothing: Any = "" if isinstance(last.content, str) else []
            last = AIMessageChunk(content=nothing, chunk_position="last", id=last.id)
        yield self._trip.last(self._sent, last)

    def broke(self, error: BaseException, *, resume: bool) -> None:
        """The stream ended in an error. Returns if another endpoint may take over.

        Raises:
            BaseException: The error, if the caller has seen some of the answer, unless that can be resumed: a text can,
                tool calls cannot.
        """
        resumes = self._begun and resume and bool(self._text) and not self._calls_tools
        self._trip.failed(self._sent, error, streamed=self._begun, resumes=resumes)
        if resumes:
            self._trip.resume(self._text)


def beginning(flow: Iterator[AIMessageChunk]) -> list[AIMessageChunk]:
    """Return a stream's chunks up to the first that says something."""
    found = []
    for chunk in flow:
        found.append(chunk)
        if _says_something(chunk):
            break
    return found


async def abeginning(flow: AsyncIterator[AIMessageChunk]) -> list[AIMessageChunk]:
    """As `beginning`."""
    found = []
    async for chunk in flow:
        found.append(chunk)
        if _says_something(chunk):
            break
    return found


def _says_something(chunk: AIMessageChunk) -> bool:
    return bool(chunk.content or chunk.tool_call_chunks)
