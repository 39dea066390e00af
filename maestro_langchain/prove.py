"""What `maestro doctor --prove` does: a call through every door, on loopback, once without a cap and once under $0.

Without a cap the call has to arrive at the stand-in provider, or the trial would show nothing; under the cap nothing
may leave the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from maestro_core import Cap, CapExceeded, Maestro
from maestro_core.testing import FakeProvider

from .callbacks import MaestroCallbackHandler
from .embeddings import governed
from .installation import lent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.runnables import RunnableConfig

__all__ = ["Proof", "prove"]

_MODEL = "gpt-5-mini"
_EMBEDDER = "text-embedding-3-small"


class Proof(NamedTuple):
    """What was found out about one door; `ok` is None where it could not be tried."""

    door: str
    ok: bool | None
    detail: str


def prove() -> list[Proof]:
    """Send a call through each door to a stand-in provider on this machine, without a cap and under a cap of $0.

    Your settings, ledger and providers are not touched.

    Returns:
        One line for each door, in a fixed order.
    """
    with _quiet(), FakeProvider() as provider:
        return [_proof(name, attempt, provider) for name, attempt in _DOORS.items()]


def _proof(door: str, attempt: Callable[[Maestro, int], Any], provider: FakeProvider) -> Proof:
    port = int(provider.url.rpartition(":")[2])
    try:
        free = _attempted(attempt, port, provider, caps=[])
        capped = _attempted(attempt, port, provider, caps=[Cap("0")])
    except ImportError as error:
        return Proof(door, None, f'not tried: {error}; pip install "maestro-finops[langchain]"')
    if capped.sent:
        return Proof(door, False, f"{capped.sent} request(s) left the process under a cap of $0")
    if not isinstance(capped.raised, CapExceeded):
        return Proof(door, False, f"nothing was sent, but not because of the cap: {capped.raised!r}")
    if free.raised is not None or free.sent != 1 or free.counted != 1:
        what = f"{free.sent} request(s) sent, {free.counted} counted, {free.raised!r}"
        return Proof(door, False, f"without a cap, one call should have been sent and counted: {what}")
    return Proof(door, True, "refused before it left; without a cap, sent and counted once")


class _Attempt(NamedTuple):
    sent: int
    counted: int
    raised: Exception | None


def _attempted(
    attempt: Callable[[Maestro, int], Any], port: int, provider: FakeProvider, *, caps: list[Cap]
) -> _Attempt:
    provider.reset()
    raised: Exception | None = None
    # The model and the embeddings of the trial are in no price book; what they cost does not matter here.
    assumed = [{"model": "*", "input": "1", "output": "1"}]
    maestro = Maestro(ledger="memory:", caps=caps, budgets=[], prices=assumed, require=[])
    try:
        with lent(None):
            attempt(maestro, port)
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - what it was is the result
        raised = error
    provider.wait_idle()
    counted = sum(record.kind == "settled" for record in maestro.ledger.records())
    maestro.close()
    return _Attempt(len(provider.requests), counted, raised)


@contextmanager
def _quiet() -> Iterator[None]:
    # LangChain logs every refusal that a handler raises; here they are the point.
    logger = logging.getLogger("langchain_core.callbacks.manager")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# -- what is sent -----------------------------------------------------------------------------------------------------


def _post(port: int, path: str, body: Mapping[str, Any]) -> Any:
    # Plain HTTP without proxies, and without a provider's package that may not be installed.
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return json.load(connection.getresponse())
    finally:
        connection.close()


class _Model(BaseChatModel):
    port: int
    max_tokens: int = 16

    @property
    def _llm_type(self) -> str:
        return "maestro-prove"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "max_retries": 0
        }  # as the others say; else the handler holds for more than the middleware did

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:  # noqa: ARG002
        return {
            "ls_provider": "openai",
            "ls_model_name": _MODEL,
            "ls_model_type": "chat",
            "ls_max_tokens": 16,
        }

    def _generate(self, messages: Any, *_: Any, **__: Any) -> ChatResult:
        asked = [{"role": "user", "content": str(message.content)} for message in messages]
        body = {"model": _MODEL, "messages": asked, "max_completion_tokens": self.max_tokens}
        answer = _post(self.port, "/v1/chat/completions", body)
        about = {"model_name": answer["model"], "token_usage": answer["usage"]}
        message = AIMessage(answer["choices"][0]["message"]["content"], response_metadata=about)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: Any, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        whole = self._generate(messages).generations[0].message
        chunk = AIMessageChunk(content=whole.content, response_metadata=whole.response_metadata)
        yield ChatGenerationChunk(message=chunk)


class _Embedder(Embeddings):
    model = _EMBEDDER

    def __init__(self, port: int) -> None:
        self._port = port

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        answer = _post(self._port, "/v1/embeddings", {"model": self.model, "input": texts})
        return [row["embedding"] for row in answer["data"]]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


# -- the doors --------------------------------------------------------------------------------------------------------


def _config(maestro: Maestro) -> RunnableConfig:
    return {"callbacks": [MaestroCallbackHandler(maestro)]}


def _invoke(maestro: Maestro, port: int) -> None:
    _Model(port=port).invoke("q", _config(maestro))


def _ainvoke(maestro: Maestro, port: int) -> None:
    asyncio.run(_Model(port=port).ainvoke("q", _config(maestro)))


def _stream(maestro: Maestro, port: int) -> None:
    for _ in _Model(port=port).stream("q", _config(maestro)):
        pass


def _astream(maestro: Maestro, port: int) -> None:
    async def read() -> None:
        async for _ in _Model(port=port).astream("q", _config(maestro)):
            pass

    asyncio.run(read())


def _agent(maestro: Maestro, port: int) -> Any:
    from langchain.agents import create_agent

    from .middleware import MaestroMiddleware

    return create_agent(_Model(port=port), [], middleware=[MaestroMiddleware(maestro)])


def _middleware(maestro: Maestro, port: int) -> None:
    _agent(maestro, port).invoke({"messages": [("user", "q")]})


def _amiddleware(maestro: Maestro, port: int) -> None:
    asyncio.run(_agent(maestro, port).ainvoke({"messages": [("user", "q")]}))


def _installed(maestro: Maestro, port: int) -> None:
    """A thread of its own, which no context and no configuration reaches."""
    raised: list[Exception] = []

    def work() -> None:
        try:
            _Model(port=port).invoke("q")
        except Exception as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    with lent(maestro):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    if raised:
        raise raised[0]


def _embedded(maestro: Maestro, port: int) -> None:
    governed(_Embedder(port), maestro).embed_query("q")


def _aembedded(maestro: Maestro, port: int) -> None:
    asyncio.run(governed(_Embedder(port), maestro).aembed_query("q"))


def _core(maestro: Maestro, port: int) -> None:
    with maestro.call(provider="openai", model=_MODEL, input="q", max_output_tokens=16) as call:
        body = {
            "model": _MODEL,
            "messages": [{"role": "user", "content": "q"}],
            "max_completion_tokens": 16,
        }
        call.settle(_post(port, "/v1/chat/completions", body))


_DOORS: dict[str, Callable[[Maestro, int], None]] = {
    "handler, invoke": _invoke,
    "handler, ainvoke": _ainvoke,
    "handler, stream": _stream,
    "handler, astream": _astream,
    "middleware, invoke": _middleware,
    "middleware, ainvoke": _amiddleware,
    "install(), raw thread": _installed,
    "governed embeddings": _embedded,
    "governed embeddings, async": _aembedded,
    "maestro.call": _core,
}
