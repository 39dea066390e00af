"""One call of an LLM's method, on its way through the gate: what is sent, what comes back, what a last call may be."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    ToolCallBlock,
)

from maestro_core.exits import LAST_WORDS, farewell
from maestro_core.types import Attribution, Call, new_key

from ._convert import has_usage, to_call, to_reply, to_usage, was_cut
from ._models import LIMITS, attempts_of, can_limit, limit_kwargs, packages
from ._peers import sent
from ._spans import run_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from maestro_core import CapExceeded, Maestro, Usage
    from maestro_core.sending import Sending
    from maestro_core.types import Reservation

__all__ = ["Heard", "Passage", "inside", "is_inside"]

# The Maestros and LLMs whose call is under way: `complete` may call `chat`, which is the same request.
inside: ContextVar[tuple[tuple[Maestro, int], ...]] = ContextVar("maestro_inside", default=())


def is_inside(maestro: Maestro, llm: Any = None) -> bool:
    """Return whether the caller is inside a call that this Maestro's gate has let through; of `llm`, if given."""
    return any(maestro is found and (llm is None or known == id(llm)) for found, known in inside.get())


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One call of a method of an LLM.

    Args:
        maestro: Whose gate it passes.
        llm: The model.
        method: Its class's own method, bound to it.
        payload: Messages, or the text of a prompt.
        arguments: Further positional arguments.
        kwargs: The arguments of the call.
        retries: How often the gate sends it again.
        where: Whom it is for.
        parent_id: The run around it.
    """

    maestro: Maestro
    llm: Any
    method: Callable[..., Any]
    payload: Sequence[ChatMessage] | str
    arguments: tuple[Any, ...]
    kwargs: dict[str, Any]
    retries: int
    where: Attribution = field(init=False)
    parent_id: str | None = field(init=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # frozen afterwards
        put(self, "parent_id", run_here())
        where = self.maestro.runs.attribution(self.parent_id)
        if "run" not in where.dimensions:
            where = Attribution({**where.dimensions, "run": new_key()}, where.path)
        put(self, "where", where)

    @property
    def run(self) -> str:
        """The run that it is part of."""
        return self.where.dimensions["run"]

    @property
    def by_agent(self) -> bool:
        """Whether an agent makes it: not a tool, a query engine, or code of its own."""
        return self.where.path[-1:] != () and self.where.path[-1][0] == "agent"

    @property
    def inner(self) -> bool:
        """Whether it is made inside a tool, so that another agent is around."""
        return any(kind == "tool" for kind, _ in self.where.path)

    @property
    def fits(self) -> bool:
        """Whether its output limit can be set."""
        return can_limit(self.llm)

    def call(self) -> Call:
        """Return what is reserved for, with a key of its own."""
        return to_call(
            self.llm,
            self.payload,
            self.kwargs,
            where=self.where,
            governed=True,
            attempts=attempts_of(self.llm),
        )

    def send(self, reservation: Reservation | None = None) -> Any:
        """Call the model's own method, with the output limit that is held for."""
        tokens = reservation.fitted_output_tokens if reservation else None
        kwargs = self.kwargs
        if tokens is not None:
            limit = limit_kwargs(self.llm, tokens) or {}
            kwargs = {name: value for name, value in kwargs.items() if name not in LIMITS}
            for name, value in limit.items():
                both = isinstance(value, dict) and isinstance(kwargs.get(name), dict)
                kwargs[name] = {**kwargs[name], **value} if both else value
        return self.method(self.payload, *self.arguments, **kwargs)

    def hears(self, reservation: Reservation, *, last: bool = False) -> Heard:
        """Return what notes the answer."""
        return Heard(reservation, last)

    def sent(self, held: Reservation, *, last: bool = False) -> tuple[Sending, Heard]:
        """Return the request, on its way, and what notes its answer."""
        heard = self.hears(held, last=last)
        return sent(self.maestro, held, self.parent_id, heard), heard

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What the model's own method calls inside the block is part of this call."""
        token = inside.set((*inside.get(), (self.maestro, id(self.llm))))
        try:
            yield
        finally:
            inside.reset(token)

    # -- a last call ----------------------------------------------------------------------------------------------

    def last_ones(self) -> Iterator[Passage]:
        """Yield what a last call may be: on all there is, else on what the call before this one was made on."""
        if isinstance(self.payload, str):
            return
        messages = list(self.payload)
        asked = [i for i, message in enumerate(messages) if message.role == MessageRole.ASSISTANT]
        for end in (len(messages), *([asked[-1]] if asked else [])):
            said = [*messages[:end], ChatMessage(role=MessageRole.USER, content=LAST_WORDS)]
            yield replace(self, payload=said, kwargs=self._without_tools())

    def _without_tools(self) -> dict[str, Any]:
        kwargs = {
            name: value
            for name, value in self.kwargs.items()
            if name not in {"tools", "tool_choice", "parallel_tool_calls", "tool_required"}
        }
        if "anthropic" in packages(self.llm) and self.kwargs.get("tools"):
            # Its API takes no history with tool calls in it unless their tools are there, too.
            kwargs |= {"tools": self.kwargs["tools"], "tool_choice": {"type": "none"}}
        return kwargs

    def goodbye(self, error: CapExceeded) -> ChatResponse | CompletionResponse:
        """Return the answer that ends an agent, in place of the model's."""
        text, mark = farewell(error), {"maestro": {"stopped": error.reason}}
        if isinstance(self.payload, str):
            return CompletionResponse(text=text, delta=text, additional_kwargs=mark)
        message = ChatMessage(role=MessageRole.ASSISTANT, content=text, additional_kwargs=mark)
        return ChatResponse(message=message, delta=text, additional_kwargs=mark)


@dataclass(slots=True)
class Heard:
    """What has come back: a whole answer, or the chunks of one.

    Args:
        reservation: What is held for it.
        last: Whether it answers a run's last call; nobody would answer its tool calls.
    """

    reservation: Reservation
    last: bool = False
    cut: bool = False
    latest: Any = None
    _telling: Any = None  # the latest that says what was used

    def add(self, response: Any) -> Any:
        """Take note of an answer or a chunk; return it, marked if its output limit was fitted."""
        self.latest = response
        if has_usage(response):
            self._telling = response
        fitted = self.reservation.fitted_output_tokens
        if fitted is not None:
            self.cut = self.cut or was_cut(response)
            response.additional_kwargs["maestro"] = {"fitted_output_tokens": fitted}
        if self.last and isinstance(response, ChatResponse):
            message = response.message
            message.blocks = [block for block in message.blocks if not isinstance(block, ToolCallBlock)]
            message.additional_kwargs.pop("tool_calls", None)
        return response

    @property
    def usage(self) -> Usage | None:
        """What the provider reported so far."""
        return to_usage(self.reservation.call, self._telling) if self._telling is not None else None

    @property
    def reply(self) -> dict[str, Any] | None:
        """The answer, as it will stand in the conversation."""
        return to_reply(self.latest) if self.latest is not None else None

    @property
    def text(self) -> str:
        """What the model said."""
        if isinstance(self.latest, ChatResponse):
            return self.latest.message.content or ""
        return self.latest.text if self.latest is not None else ""
