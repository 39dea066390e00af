"""The gate in front of an agent's tools: it stops a tool that has a price, and lets no refusal be swallowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.tools import ToolOutput

from maestro_core import CapExceeded
from maestro_core.exits import stops_only_the_tool

from ._spans import refusal_here

if TYPE_CHECKING:
    from .gate import Ticket

__all__ = ["gate_tools", "ungate_tools"]

_NAME = "_call_tool"  # what agents and workflows call each tool by; pinned by a test


def gate_tools(owner: Any, ticket: Ticket) -> None:
    """Let an agent's, or a workflow's, tool calls pass the gate."""
    plain = getattr(type(owner), _NAME)

    async def gated(ctx: Any, tool: Any, tool_input: dict[str, Any]) -> ToolOutput:
        refused = refusal_here(ticket.gate.maestro)
        if refused is None:
            result: ToolOutput = await plain(owner, ctx, tool, tool_input)
            # LlamaIndex hands an exception to the model as the tool's answer, and the loop would go on.
            found = getattr(result, "exception", None)
            if not isinstance(found, CapExceeded):
                return result
            refused = found
        if not stops_only_the_tool(refused, ticket.exit):
            raise refused
        return ToolOutput(
            content=f"Not run: {refused}",
            tool_name=tool.metadata.get_name(),
            raw_input=tool_input,
            raw_output=None,
            is_error=True,
        )

    owner.__dict__[_NAME] = gated


def ungate_tools(owner: Any) -> None:
    """Take the gate away."""
    owner.__dict__.pop(_NAME, None)
