"""Embeddings under caps. LangChain tells no callback about them, so that a wrapper has to stand in front."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import var_child_runnable_config

from maestro_core import CapExceeded, Maestro, Usage
from maestro_core.failures import classify
from maestro_core.types import Attribution, Call, new_key

from ._clients import for_openai, is_openai
from ._convert import base_url, dimensions, retries_of
from ._errors import LangChainCapExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from maestro_core.types import Reservation

__all__ = ["governed"]

_T = TypeVar("_T")

# The package that a class comes from, and the provider that bills what it sends.
_PROVIDERS = {
    "langchain_aws": "aws",
    "langchain_cohere": "cohere",
    "langchain_fireworks": "fireworks",
    "langchain_google_genai": "google",
    "langchain_google_vertexai": "google",
    "langchain_mistralai": "mistral",
    "langchain_ollama": "ollama",
    "langchain_openai": "openai",
    "langchain_together": "together",
    "langchain_voyageai": "voyageai",
}
_MODEL_NAMES = ("model", "model_name", "model_id")


def governed(embeddings: Embeddings, maestro: Maestro | None = None) -> Embeddings:
    """Return the same embeddings, priced, attributed and capped.

    With OpenAI's and Azure's, each HTTP request is a call of its own: held at the length of its texts in bytes (or at
    its tokens, where the client counts them itself), settled at the usage that the provider reports, and sent again
    by Maestro instead of by the client. Other classes drop the provider's usage; there, each method call is one call
    that settles at its hold, marked as estimated. A call waits while other calls hold the money.

    Args:
        embeddings: Any LangChain embeddings; left as they are. All their attributes can be read through the result.
        maestro: The instance to use; `Maestro.default()`, on first use, if None.

    Returns:
        An `Embeddings` whose methods raise `CapExceeded`, `PriceNotFound` or `LedgerUnavailable` before anything is
        sent.
    """
    if isinstance(embeddings, _Governed):
        embeddings = embeddings.plain
    return _Governed(embeddings, maestro)


class _Governed(Embeddings):
    def __init__(self, plain: Embeddings, maestro: Maestro | None) -> None:
        self.plain = plain
        self.door = _Door(maestro, *_identity(plain))
        self._whole = not is_openai(plain)
        self._inner: Any = plain if self._whole else for_openai(plain, self.door.send, self.door.asend)
        # Nothing is known of the client inside, so that it may send a request as often as it says.
        self._attempts = 1 + retries_of(
            self.door.provider, {"max_retries": getattr(plain, "max_retries", 0)}, {}
        )

    def embed_documents(self, texts: list[str], *args: Any, **kwargs: Any) -> list[list[float]]:
        return self._run(texts, lambda: self._inner.embed_documents(texts, *args, **kwargs))

    def embed_query(self, text: str, *args: Any, **kwargs: Any) -> list[float]:
        return self._run([text], lambda: self._inner.embed_query(text, *args, **kwargs))

    async def aembed_documents(self, texts: list[str], *args: Any, **kwargs: Any) -> list[list[float]]:
        return await self._arun(texts, lambda: self._inner.aembed_documents(texts, *args, **kwargs))

    async def aembed_query(self, text: str, *args: Any, **kwargs: Any) -> list[float]:
        return await self._arun([text], lambda: self._inner.aembed_query(text, *args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        # Copying and unpickling ask before there is anything inside.
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)

    def _run(self, texts: Sequence[str], work: Callable[[], _T]) -> _T:
        with self.door.run():
            return self.door.send(texts, work, attempts=self._attempts) if self._whole and texts else work()

    async def _arun(self, texts: Sequence[str], work: Callable[[], Awaitable[_T]]) -> _T:
        with self.door.run():
            if self._whole and texts:
                return await self.door.asend(texts, work, attempts=self._attempts)
            return await work()


@dataclass(slots=True)
class _Sent:
    """A request that is under way; `usage` is set once the provider has reported it."""

    usage: Usage | None = None


@dataclass(slots=True)
class _Door:
    """Reserves, sends, settles: one request at a time."""

    _maestro: Maestro | None
    provider: str
    model: str
    _name: str
    base_url: str = ""

    @property
    def maestro(self) -> Maestro:
        if self._maestro is None:
            self._maestro = Maestro.default()
        return self._maestro

    def send(self, payload: object, work: Callable[[], _T], *, model: str = "", attempts: int = 1) -> _T:
        call, parent = self._call(payload, model, attempts)
        try:
            reservation = self.maestro.doors.reserve(call, fits=False, parent_id=parent)
        except CapExceeded as error:
            raise LangChainCapExceeded(*error.args, **error.__dict__) from None
        with self._open(reservation, parent) as sent:
            answer = work()
            sent.usage = self._usage(answer)
        return answer

    async def asend(
        self, payload: object, work: Callable[[], Awaitable[_T]], *, model: str = "", attempts: int = 1
    ) -> _T:
        call, parent = self._call(payload, model, attempts)
        try:
            reservation = await self.maestro.doors.areserve(call, fits=False, parent_id=parent)
        except CapExceeded as error:
            raise LangChainCapExceeded(*error.args, **error.__dict__) from None
        with self._open(reservation, parent) as sent:
            answer = await work()
            sent.usage = self._usage(answer)
        return answer

    @contextmanager
    def run(self) -> Iterator[None]:
        """Requests inside the block are of one run: the surrounding one, else one of their own."""
        where, _ = self._where()
        if "run" in where.dimensions:
            yield
            return
        named = Attribution({**where.dimensions, "run": new_key()}, where.path)
        with self.maestro.runs.around(named):
            yield

    def _where(self) -> tuple[Attribution, Any]:
        """Return whom a request is for, and the framework's run around it."""
        config = var_child_runnable_config.get() or {}
        parent = getattr(config.get("callbacks"), "parent_run_id", None)
        own = dimensions(config.get("metadata"), self.maestro.settings.dimensions)
        return self.maestro.runs.attribution(parent, own), parent

    def _call(self, payload: object, model: str, attempts: int) -> tuple[Call, Any]:
        where, parent = self._where()
        name = model or self.model
        call = Call(
            provider=self.provider,
            model=name,
            input=payload,
            attempts=attempts,
            operation="embeddings",
            attribution=where,
            base_url=self.base_url,
            name=f"{self._name} {name}",
        )
        return call, parent

    @contextmanager
    def _open(self, reservation: Reservation, parent: Any) -> Iterator[_Sent]:
        """Follow a request as the handler follows a model's; its reservation closes with the block."""
        runs, call, sent = self.maestro.runs, reservation.call, _Sent()
        with self.maestro.doors.offer(reservation):
            runs.reserve(call.key, parent, call)
            try:
                yield sent
            except BaseException as error:
                why = classify(error).unbilled
                if why:
                    runs.release(call.key, why, error)
                else:
                    runs.settle(call.key, None, error=error, reason="ended without usage")
                raise
            usage = sent.usage
            runs.settle(call.key, usage, reason="" if usage else "the client drops the provider's usage")

    def _usage(self, answer: Any) -> Usage | None:
        if isinstance(answer, list):  # vectors alone
            return None
        try:
            return Usage.parse(self.provider, answer, api="embeddings")
        except ValueError:
            return None


def _identity(embeddings: Embeddings) -> tuple[str, str, str, str]:
    """Return provider id, model, what messages call it, and where it is, if that is a place of one's own."""
    cls = type(embeddings)
    packages = [base.__module__.partition(".")[0] for base in cls.__mro__]
    provider = next((_PROVIDERS[package] for package in packages if package in _PROVIDERS), "unknown")
    if provider == "openai" and any(base.__name__.startswith("Azure") for base in cls.__mro__):
        provider = "azure"
    found = [getattr(embeddings, name, None) for name in _MODEL_NAMES]
    model = next((name for name in found if isinstance(name, str) and name), "unknown")
    return provider, model, cls.__name__, base_url(provider, getattr(embeddings, "__dict__", {}))
