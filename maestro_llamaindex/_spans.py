"""The tree of what runs: LlamaIndex's spans, told to every Maestro that governs something in this process.

LlamaIndex swallows whatever a span handler raises, so that this can say whom a call is for, and never refuse one.
"""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from llama_index.core.agent.workflow import BaseWorkflowAgent
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.tools import BaseTool
from llama_index.core.workflow import Workflow
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import BaseSpanHandler

from maestro_core import CapExceeded, MaestroError

from ._peers import ended, entered, found_span

if TYPE_CHECKING:
    from collections.abc import Sequence
    from inspect import BoundArguments

    from maestro_core import Maestro
    from maestro_core.runtree import RunKind

__all__ = ["Flow", "Holder", "ModelCall", "call_here", "flow_here", "refusal_here", "run_here", "watch"]

_log = logging.getLogger("maestro")
_ID = 37  # a span's id is "Class.method-" and a UUID of 36 characters
_RUN_ID = "llamaindex.run_id"


class Holder(Protocol):
    """What belongs to a Maestro: a gate, a callback handler, an installation."""

    @property
    def maestro(self) -> Maestro:
        """The instance it reports to."""


@dataclass(slots=True)
class Flow:
    """A workflow that runs: its object, and whose turn it is."""

    span_id: str
    owner: weakref.ref[Any]
    agent: str = ""
    turn_id: str = ""  # what the agent's steps and tools are below
    turns: int = 0
    named: bool = False


@dataclass(slots=True)
class _Span:
    parent_id: str | None
    flow: Flow | None
    instance: Any
    run_id: str | None = (
        None  # of the run that calls inside are below: its own, or, of a model's method, one around it
    )
    method: str = ""
    texts: Sequence[str] = ()  # what an embedding model is asked for
    batches: int = 0  # how many of them it has begun
    claimed: bool = False  # whether a handler holds money for this call of a model
    tool: str = ""
    refusals: dict[int, CapExceeded] = field(default_factory=dict)  # by Maestro


class ModelCall:
    """A call of a model's method, as its span shows it."""

    __slots__ = ("_span", "instance")

    def __init__(self, span: _Span) -> None:
        self._span = span
        self.instance = span.instance

    @property
    def streams(self) -> bool:
        """Whether it is answered in parts."""
        return "stream" in self._span.method

    @property
    def claimed(self) -> bool:
        """Whether it, or one that it is a part of, is held for."""
        span: _Span | None = self._span
        while span is not None and isinstance(span.instance, BaseLLM):
            if span.claimed:
                return True
            span = _spans.get(span.parent_id or "")
        return False

    def claim(self) -> None:
        """It is held for."""
        self._span.claimed = True

    def batch(self) -> Sequence[str]:
        """Return the texts of the batch that an embedding model begins; with several requests under way, all of them."""
        span, size = self._span, getattr(self.instance, "embed_batch_size", 0)
        start = span.batches * size
        span.batches += 1
        if span.method != "get_text_embedding_batch":  # its asynchronous twin begins many at once
            return span.texts
        return span.texts[start : start + size] or span.texts


class _Tree(BaseSpanHandler[Any]):
    """Follows every span of the process; cheap, because there are a dozen of them for each step of an agent."""

    def span_enter(
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any | None = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        try:
            _entered(id_, bound_args.arguments, instance, parent_id, tags or {})
        except Exception:  # noqa: BLE001 - whatever it was, the agent goes on
            _log.exception("Maestro could not follow a LlamaIndex span; calls go on")

    def span_exit(self, id_: str, *_: Any, result: Any = None, **__: Any) -> None:
        _left(id_, None, result)

    def span_drop(self, id_: str, *_: Any, err: BaseException | None = None, **__: Any) -> None:
        _left(id_, err)

    def new_span(self, *_: Any, **__: Any) -> None:
        """Nothing is kept by the base class."""

    def prepare_to_exit_span(self, *_: Any, **__: Any) -> None:
        """Likewise."""

    def prepare_to_drop_span(self, *_: Any, **__: Any) -> None:
        """Likewise."""


_spans: dict[str, _Span] = {}
_maestros: list[weakref.ref[Maestro]] = []
# Whose Maestro is not known yet: the default one is made when something runs.
_pending: list[weakref.ref[Holder]] = []
_tree = _Tree()


def watch(holder: Holder) -> None:
    """Tell the holder's Maestro about every span from now on."""
    root = get_dispatcher()
    if not any(handler is _tree for handler in root.span_handlers):
        # First of all: a span of another instrumentation that has ended takes no cost any more.
        root.span_handlers.insert(0, _tree)
    _pending.append(weakref.ref(holder))


def run_here() -> str | None:
    """Return the id of the run around the caller: the span around it, if that is not a model's own."""
    found = _spans.get(active_span_id.get() or "")
    return found.run_id if found else None


def call_here() -> ModelCall | None:
    """Return the call of a model's method that the innermost span around the caller is, or None."""
    found = _spans.get(active_span_id.get() or "")
    return ModelCall(found) if found and isinstance(found.instance, BaseLLM | BaseEmbedding) else None


def flow_here() -> Flow | None:
    """Return the workflow around the caller, or None."""
    found = _spans.get(active_span_id.get() or "")
    return found.flow if found else None


def refusal_here(maestro: Maestro) -> CapExceeded | None:
    """Return why the tool whose step this is must not run: it has a price, and a cap does not admit one more use."""
    found = _spans.get(active_span_id.get() or "")
    return found.refusals.get(id(maestro)) if found else None


def _watched() -> list[Maestro]:
    if _pending:
        _settle_pending()
    return [maestro for reference in _maestros if (maestro := reference()) is not None]


def _settle_pending() -> None:
    for reference in tuple(_pending):
        holder = reference()
        try:
            found = holder.maestro if holder is not None else None
        except MaestroError:  # settings that are wrong; the call that is refused for them will say so
            continue
        _pending.remove(reference)
        living = [each for each in _maestros if each() is not None and each() is not found]
        _maestros[:] = [*living, weakref.ref(found)] if found is not None else living


def _entered(
    id_: str, arguments: dict[str, Any], instance: Any, parent_id: str | None, tags: dict[str, Any]
) -> None:
    above = _spans.get(parent_id or "")
    flow = above.flow if above else None
    method = id_[:-_ID].rpartition(".")[2]
    if method == "run" and isinstance(instance, Workflow):
        flow = Flow(id_, weakref.ref(instance))
        _spans[id_] = _Span(parent_id, flow, instance, id_, method)
        parent_id = above.run_id if above else None
        if isinstance(instance, BaseWorkflowAgent):
            flow.agent, flow.turn_id = instance.name, id_
            _enter(id_, parent_id, "agent", instance.name)
        else:
            _enter(id_, parent_id)
        return
    around, asked, called = above.run_id if above else None, None, ""
    span = _spans[id_] = _Span(parent_id, flow, instance, id_, method)
    if isinstance(instance, BaseLLM | BaseEmbedding):
        # No run: of a stream, it would end before anything is sent.
        span.run_id = around
        entered(id_)
        if isinstance(instance, BaseEmbedding):
            span.texts = _texts(arguments)
        return
    if flow is not None and parent_id == flow.span_id:  # a step of the workflow
        _name(flow, tags)
        around = _turn(flow, method, arguments.get("ev"))
        if method == "call_tool":
            event = arguments["ev"]
            span.tool, asked, called = str(event.tool_name), event.tool_kwargs, str(event.tool_id or "")
    elif isinstance(instance, BaseTool) and method in {"call", "acall", "__call__"}:
        name = str(instance.metadata.name)
        # The agent's step that calls it has told of it already, and so has `__call__` of `call`.
        span.tool = "" if above is not None and above.tool == name else name
        asked = {name: value for name, value in arguments.items() if name != "self"}
    _enter(id_, around, "tool" if span.tool else "chain", span.tool, asked, called=called)


def _texts(arguments: dict[str, Any]) -> Sequence[str]:
    texts = arguments.get("texts")
    if texts is not None:
        return list(texts)
    return [str(arguments[name]) for name in ("text", "query") if name in arguments]


def _name(flow: Flow, tags: dict[str, Any]) -> None:
    """Call the run as LlamaIndex does: its id is in the tags of a workflow's steps, and not yet in its own."""
    if not flow.named and (run_id := tags.get(_RUN_ID)):
        flow.named = True
        span = _spans.get(flow.span_id)
        if span is not None and span.parent_id not in _spans:  # the outermost names the run
            for maestro in _watched():
                maestro.runs.name(flow.span_id, str(run_id))


def _turn(flow: Flow, method: str, event: Any) -> str:
    """Return what a step is below: the agent whose turn it is; agents that hand over take turns."""
    agent = getattr(event, "current_agent_name", "") if method == "run_agent_step" else ""
    if agent and agent != flow.agent:
        _end_turn(flow, None)
        flow.turns += 1
        flow.agent, flow.turn_id = agent, f"{flow.span_id}#{flow.turns}"
        _enter(flow.turn_id, flow.span_id, "agent", agent)
    return flow.turn_id or flow.span_id


def _end_turn(flow: Flow, error: BaseException | None) -> None:
    if flow.turn_id and flow.turn_id != flow.span_id:
        for maestro in _watched():
            maestro.runs.leave(flow.turn_id, error)


def _enter(
    id_: str,
    parent_id: str | None,
    kind: RunKind = "chain",
    name: str = "",
    asked: object = None,
    *,
    called: str = "",
) -> None:
    for maestro in _watched():
        try:
            found = found_span(id_) if kind != "chain" else None
            maestro.runs.enter(
                id_, parent_id, kind=kind, name=name, arguments=asked, tool_call_id=called, found=found
            )
        except CapExceeded as error:
            _spans[id_].refusals[id(maestro)] = error


def _left(id_: str, error: BaseException | None, result: Any = None) -> None:
    try:
        ended(id_, error)
        span = _spans.pop(id_, None)
        if span is not None and span.run_id != id_:  # a model's own method, which is no run
            return
        if span is not None and span.flow is not None and span.flow.span_id == id_:
            _end_turn(span.flow, error)
        # An agent's step ends with an event that bears what the tool answered.
        answer = getattr(result, "tool_output", result) if span is not None and span.tool else None
        failed, said = bool(getattr(answer, "is_error", False)), getattr(answer, "content", answer)
        for maestro in _watched():
            maestro.runs.leave(id_, error, result=said, failed=failed)
    except Exception:  # noqa: BLE001 - whatever it was, the agent goes on
        _log.exception("Maestro could not follow a LlamaIndex span; calls go on")
