"""Asking an LLM for data: some integrations send such a request by themselves, past `chat`, the gate and every callback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.llms.llm import LLM

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

__all__ = ["asking"]

_OWN = "llama_index."
# Those whose way leads through `chat`.
_CHATTING = ("llama_index.core.", "llama_index.llms.ollama.", "llama_index.llms.openai.base")
_TOOLS = "_prepare_chat_with_tools"


def asking(cls: type) -> dict[str, Any]:
    """Return what a governed class has in place of methods that send a request by themselves.

    That is LlamaIndex's own way for any LLM: a tool whose arguments are the data. Streams of it come in one piece.
    """
    found = {name: _asking(cls, name, way) for name, way in _WAYS.items() if _sends_by_itself(cls, name)}
    return {**found, _TOOLS: _choosing(cls)} if found and hasattr(cls, _TOOLS) else found


def _sends_by_itself(cls: type, name: str) -> bool:
    home = str(getattr(getattr(cls, name, None), "__module__", ""))
    return home.startswith(_OWN) and not home.startswith(_CHATTING)


def _stream(llm: Any, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
    yield LLM.structured_predict(llm, *args, **kwargs)


async def _astream(llm: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
    async def one() -> AsyncGenerator[Any, None]:
        yield await LLM.astructured_predict(llm, *args, **kwargs)

    return one()


_WAYS: dict[str, Callable[..., Any]] = {
    "structured_predict": LLM.structured_predict,
    "astructured_predict": LLM.astructured_predict,
    "stream_structured_predict": _stream,
    "astream_structured_predict": _astream,
}


def _asking(cls: type, name: str, way: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return way(self, *args, **kwargs)

    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
    method.__doc__ = getattr(cls, name).__doc__
    return method


def _choosing(cls: type) -> Callable[..., Any]:
    """Return the class's way to tell of tools, in which no choice does not undo that one is required."""
    plain: Callable[..., dict[str, Any]] = getattr(cls, _TOOLS)

    def method(
        self: Any,
        tools: Any,
        *args: Any,
        tool_required: bool = False,  # LlamaIndex looks for its name here
        **kwargs: Any,
    ) -> dict[str, Any]:
        if kwargs.get("tool_choice", "") is None:
            del kwargs["tool_choice"]
        return plain(self, tools, *args, tool_required=tool_required, **kwargs)

    method.__name__, method.__qualname__, method.__doc__ = (
        _TOOLS,
        f"{cls.__qualname__}.{_TOOLS}",
        plain.__doc__,
    )
    return method
