"""The HTTP clients inside OpenAI's embeddings, each request of which passes a door."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from maestro_core.failures import classify, pause_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["AsyncSend", "Send", "for_openai", "is_openai"]

_T = TypeVar("_T")


class Send(Protocol):
    """Reserve for a payload, do the work that sends it, settle."""

    def __call__(self, payload: object, work: Callable[[], _T], *, model: str = "", attempts: int = 1) -> _T:
        """Return what the work returns."""


class AsyncSend(Protocol):
    """As `Send`, in an event loop."""

    async def __call__(
        self, payload: object, work: Callable[[], Awaitable[_T]], *, model: str = "", attempts: int = 1
    ) -> _T:
        """Return what the work returns."""


def is_openai(embeddings: Any) -> bool:
    """Return whether these are langchain-openai's embeddings, or a subclass, which keep their clients in two fields."""
    packages = {base.__module__.partition(".")[0] for base in type(embeddings).__mro__}
    return "langchain_openai" in packages and hasattr(embeddings, "async_client")


def for_openai(embeddings: Any, send: Send, asend: AsyncSend) -> Any:
    """Return a copy whose every request goes through `send` or `asend`, without the client's own retries."""
    clients = {
        "client": _Requests(embeddings.client, send) if embeddings.client is not None else None,
        "async_client": _AsyncRequests(embeddings.async_client, asend),
    }
    return embeddings.model_copy(update=clients)


class _Client:
    """OpenAI's embeddings resource, with `create` governed."""

    def __init__(self, resource: Any) -> None:
        sdk = getattr(resource, "_client", None)
        # A client of the user's own making may have no `with_options`; it then counts as often as it may send.
        self.owns = hasattr(sdk, "with_options")
        self.retries = int(getattr(sdk, "max_retries", 0))
        self.resource = (
            sdk.with_options(max_retries=0).embeddings if sdk is not None and self.owns else resource
        )
        self.attempts = 1 if self.owns else 1 + self.retries

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "resource":
            raise AttributeError(name)
        return getattr(self.resource, name)

    def may_try_again(self, error: Exception, attempt: int) -> bool:
        return self.owns and attempt < self.retries and classify(error).retries


class _Requests(_Client):
    def __init__(self, resource: Any, send: Send) -> None:
        super().__init__(resource)
        self._send = send

    def create(self, **request: Any) -> Any:
        attempt = 0
        while True:
            try:
                return self._send(
                    _measured(request.get("input")),
                    lambda: self.resource.create(**request),
                    model=str(request.get("model") or ""),
                    attempts=self.attempts,
                )
            except Exception as error:
                if not self.may_try_again(error, attempt):
                    raise
                time.sleep(pause_s(classify(error), attempt=attempt))
                attempt += 1


class _AsyncRequests(_Client):
    def __init__(self, resource: Any, send: AsyncSend) -> None:
        super().__init__(resource)
        self._send = send

    async def create(self, **request: Any) -> Any:
        attempt = 0
        while True:
            try:
                return await self._send(
                    _measured(request.get("input")),
                    lambda: self.resource.create(**request),
                    model=str(request.get("model") or ""),
                    attempts=self.attempts,
                )
            except Exception as error:
                if not self.may_try_again(error, attempt):
                    raise
                await asyncio.sleep(pause_s(classify(error), attempt=attempt))
                attempt += 1


def _measured(texts: Any) -> Any:
    """Return texts as they are; of token ids, something as many bytes long as there are tokens."""
    if not isinstance(texts, list):
        return texts
    if texts and all(isinstance(token, int) for token in texts):
        return " " * len(texts)
    return [" " * len(text) if isinstance(text, list) else text for text in texts]
