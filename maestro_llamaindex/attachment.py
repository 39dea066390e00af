"""`attach` and `detach`: govern an agent, a workflow, a query engine or a model as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.agent.workflow import AgentWorkflow, BaseWorkflowAgent
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM

from maestro_core.exits import check_exit

from ._classes import govern, governance_of, governed_class, ungovern
from ._members import members
from ._tools import gate_tools, ungate_tools
from .gate import ExitBehavior, Gate, Ticket
from .llms import RoutedLLM

if TYPE_CHECKING:
    from maestro_core import Maestro

__all__ = ["attach", "detach"]

_T = TypeVar("_T")
_KEY = "_maestro_ticket"
_EXITS: tuple[ExitBehavior, ...] = ("error", "end", "wrap_up")


def attach(agent_or_llm: _T, maestro: Maestro | None = None, *, exit_behavior: ExitBehavior = "error") -> _T:
    """Price, attribute and cap every model call of a LlamaIndex object, from now on and as it stands.

    Each call holds its money first, waits while other calls hold it, and gets an output limit that fits what the caps
    leave. The clients' own retries are switched off and made here, each with a hold of its own. OpenAI's streams are
    asked to say what they used, and a call's output limit wins over the constructor's. Attaching again replaces what
    was said before; an LLM that several agents share belongs to the Maestro that was attached last.

    Args:
        agent_or_llm: A `FunctionAgent`, `ReActAgent`, `AgentWorkflow`, query engine, chat engine, retriever, index,
            LLM or embedding model. What it is made of is governed: its LLMs and embedding models, also those of its
            query engine tools; not those that a function uses inside.
        maestro: The instance to use; `Maestro.default()`, on first use, if None.
        exit_behavior: What happens at a cap. `"error"` raises `CapExceeded` out of `await handler`. `"end"` ends the
            agent with a message that says why. `"wrap_up"` keeps back enough of the run's own cap for one last call
            without tools, and ends with its answer. Calls that no agent makes, and agents inside a tool of another
            one, always raise.

    Returns:
        The same object.

    Raises:
        TypeError: If it has no LLM and no embedding model.
        ValueError: For an unknown exit behaviour.
    """
    check_exit(exit_behavior, _EXITS)
    found = members(agent_or_llm)
    if not found:
        raise TypeError(
            f"attach found no LLM and no embedding model in a {type(agent_or_llm).__name__}; attach the LLM itself: "
            "attach(llm)"
        )
    before = _ticket(agent_or_llm)
    ticket = Ticket(Gate(maestro), exit_behavior)
    for one in found:
        if isinstance(one, RoutedLLM):  # it is a door itself
            one.lend(ticket.gate)
            continue
        governance = govern(one, ticket.gate, exit_behavior, governed_class)
        governance.tickets.add(ticket)
    ticket.members = found
    if not isinstance(agent_or_llm, BaseLLM | BaseEmbedding):
        _forget(before, but=found)
    vars(agent_or_llm)[_KEY] = ticket
    if isinstance(agent_or_llm, AgentWorkflow | BaseWorkflowAgent):
        gate_tools(agent_or_llm, ticket)
    return agent_or_llm


def detach(agent_or_llm: Any) -> None:
    """Undo `attach`, fully: classes, clients, retries and limits are as they were before.

    An LLM that was also attached through another agent, or by itself, stays governed for those. Nothing happens to an
    object that is not attached.
    """
    ticket = _ticket(agent_or_llm)
    if ticket is None:
        return
    del vars(agent_or_llm)[_KEY]
    ungate_tools(agent_or_llm)
    _forget(ticket)


def _ticket(thing: Any) -> Ticket | None:
    found = getattr(thing, "__dict__", {}).get(_KEY)
    return found if isinstance(found, Ticket) else None


def _forget(ticket: Ticket | None, but: list[Any] = []) -> None:  # noqa: B006 - never mutated
    for one in ticket.members if ticket else ():
        if ticket and isinstance(one, RoutedLLM):
            one.give_back(ticket.gate)
        governance = governance_of(one)
        if governance is None:
            continue
        governance.tickets.discard(ticket)
        if not governance.tickets and not any(one is kept for kept in but):
            ungovern(one)
