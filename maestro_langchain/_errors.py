"""The refusal as LangChain has to see it."""

from __future__ import annotations

from maestro_core import CapExceeded

__all__ = ["LangChainCapExceeded"]

try:
    from langgraph.errors import GraphBubbleUp
except ImportError:  # langchain-core alone
    GraphBubbleUp = Exception  # type: ignore[assignment, misc]


class LangChainCapExceeded(CapExceeded, GraphBubbleUp):
    """`CapExceeded`, which langgraph also knows as control flow.

    As a plain exception it would be eaten by `ToolNode(handle_tool_errors=True)` and by retry middleware with
    `on_failure="continue"`, and the loop would go on asking.
    """
