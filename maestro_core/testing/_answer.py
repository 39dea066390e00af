"""What the model generates for one request: text, tool calls and tokens, cut at the output limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._bill import Counts
from ._schema import example
from ._tokens import compact, count_tokens, cut_tokens, filler, split_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._script import Reply

__all__ = ["Answer", "Asked", "Piece", "ToolCall", "compose"]

_MOST_ECHO_TOKENS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks for, in no protocol's words.

    Args:
        model: The model asked for.
        prompt: The user's last words.
        limit: The output limit in tokens.
        n: How many completions.
        tool: Name and schema of the tool that must be called.
        schema: The JSON schema that the text must fit.
        blocks: What the model reads, in order, each with the cache time (`"5m"`, `"1h"`) it is marked with.
    """

    model: str
    prompt: str
    limit: int | None
    n: int
    tool: tuple[str, Mapping[str, Any]] | None
    schema: Mapping[str, Any] | None
    blocks: Sequence[tuple[str, str | None]]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model calls; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a stream: of the text, or of the arguments of the tool call with that index."""

    text: str
    call: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished generation. `counts.output` is the sum over all `n` completions, which are alike."""

    id: str
    model: str
    created: int
    text: str
    calls: tuple[ToolCall, ...]
    pieces: tuple[Piece, ...]
    cut: bool
    counts: Counts
    n: int

    def counts_after(self, pieces: int) -> Counts:
        """Return what was used when so many pieces were generated: reasoning first, then evenly."""
        if pieces >= len(self.pieces):
            return self.counts
        visible = self.counts.output - self.counts.reasoning
        output = self.counts.reasoning + -(-visible * pieces // len(self.pieces))
        return Counts(
            input=self.counts.input,
            output=output,
            cache_read=self.counts.cache_read,
            cache_write_5m=self.counts.cache_write_5m,
            cache_write_1h=self.counts.cache_write_1h,
            reasoning=self.counts.reasoning,
        )


def compose(asked: Asked, reply: Reply, *, name: str, created: int, cached: Counts) -> Answer:
    """Generate the answer.

    Args:
        asked: What was asked for.
        reply: What the test scripted.
        name: Makes the identifiers of the answer unique.
        created: When, in seconds since 1970.
        cached: Input and cache tokens, if the test scripts none.
    """
    text, calls = _content(asked, reply, name)
    natural = reply.reasoning_tokens + _count(text, calls)
    wanted = natural if reply.output_tokens is None else reply.output_tokens
    limit = wanted if asked.limit is None else asked.limit
    reasoning = min(reply.reasoning_tokens, limit)
    if wanted > limit:
        text, calls = _shortened(text, calls, limit - reasoning)
    return Answer(
        id=name,
        model=reply.model or asked.model,
        created=created,
        text=text,
        calls=calls,
        pieces=tuple(_pieces(text, calls, reply.chunks)),
        cut=wanted > limit,
        counts=_input(reply, cached, output=min(wanted, limit) * asked.n, reasoning=reasoning * asked.n),
        n=asked.n,
    )


def _content(asked: Asked, reply: Reply, name: str) -> tuple[str, tuple[ToolCall, ...]]:
    calls = tuple(
        ToolCall(f"call_{name}_{i}", tool, args if isinstance(args, str) else compact(args))
        for i, (tool, args) in enumerate(reply.tool_calls)
    )
    if reply.text is not None or calls:
        return reply.text or "", calls
    if asked.tool:
        tool, schema = asked.tool
        return "", (ToolCall(f"call_{name}_0", tool, compact(example(schema))),)
    if asked.schema is not None:
        return compact(example(asked.schema)), ()
    if reply.output_tokens is not None:
        return filler(reply.output_tokens - reply.reasoning_tokens), ()
    return f"You said: {cut_tokens(asked.prompt, _MOST_ECHO_TOKENS)}", ()


def _count(text: str, calls: Sequence[ToolCall]) -> int:
    return count_tokens(text) + sum(count_tokens(call.name + call.arguments) for call in calls)


def _shortened(text: str, calls: Sequence[ToolCall], room: int) -> tuple[str, tuple[ToolCall, ...]]:
    """Cut the content to so many tokens: text first, then the calls' arguments; a call without room is dropped."""
    text = cut_tokens(text, room)
    room -= count_tokens(text)
    kept = []
    for call in calls:
        spare = room - count_tokens(call.name)
        if spare < 0:
            break
        arguments = cut_tokens(call.arguments, spare)
        kept.append(ToolCall(call.id, call.name, arguments))
        room = spare - count_tokens(arguments)
    return text, tuple(kept)


def _pieces(text: str, calls: Sequence[ToolCall], most: int) -> list[Piece]:
    pieces = [Piece(part) for part in split_tokens(text, most)]
    for i, call in enumerate(calls):
        pieces += [Piece(part, i) for part in split_tokens(call.arguments, most)]
    return pieces


def _input(reply: Reply, cached: Counts, *, output: int, reasoning: int) -> Counts:
    scripted = (reply.cache_read_tokens, reply.cache_write_tokens, reply.cache_write_1h_tokens)
    counted = (cached.cache_read, cached.cache_write_5m, cached.cache_write_1h)
    # A scripted length has nothing to do with the text, so the text's cache parts would not fit it.
    parts = scripted if any(scripted) or reply.input_tokens is not None else counted
    whole = cached.input if reply.input_tokens is None else reply.input_tokens
    return Counts(
        input=max(whole, sum(parts)),
        output=output,
        cache_read=parts[0],
        cache_write_5m=parts[1],
        cache_write_1h=parts[2],
        reasoning=reasoning,
    )
