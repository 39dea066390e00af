"""A stand-in for OpenAI and Anthropic that speaks their HTTP and keeps the true bill."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

from maestro_core.clock import Clock, SystemClock, from_micros
from maestro_core.money import to_usd

from ._book import Book
from ._chat import Chat
from ._dialect import Failure, openai_error
from ._http import Exchange, Server
from ._messages import Messages
from ._responses import Responses
from ._script import Reply, Request, Rule, Script
from ._service import Service, encoded

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from ._bill import Charge
    from ._dialect import Dialect

__all__ = ["FakeProvider"]

_DIALECTS: Mapping[str, type[Dialect]] = {
    "/v1/chat/completions": Chat,
    "/v1/responses": Responses,
    "/v1/messages": Messages,
    "/v1/messages/count_tokens": Messages,
}
_SECRET_HEADERS = frozenset({"authorization", "x-api-key", "cookie", "proxy-authorization"})


class FakeProvider:
    """An HTTP server on loopback that answers like OpenAI and Anthropic, and bills what it served.

    It speaks Chat Completions, Responses, Embeddings and Messages, as JSON and as streams, with tools, structured
    output, output limits, caches and failures. Every dollar it would charge is in `charges`, computed from a price
    table of its own:

    - A request that fails (a status from 400) or whose connection is dropped at once costs nothing.
    - A plain answer is billed in full as soon as it is generated, whether or not the client still waits for it.
    - A stream is billed for what was generated when it ended. One that the client closes is billed for the chunks
      sent until the provider noticed; without `chunk_delay_s` that may be all of them, because sending is quick.

    Args:
        reply: One `Reply` for all requests; or a list, one for each request in turn and echoes afterwards; or a
            function from `Request` to `Reply`, text or None (an echo); or None: echoes. It can be set at any time.
        clock: Where `Request.at` comes from.
        keep_alive: Whether connections stay open between requests. Without, a client that is never closed (some
            libraries keep theirs for good) leaves no open socket behind.

    An endpoint in trouble is a reply set at run time: `provider.reply = Reply(status=500)` fails every request from
    now on, `Reply(hang_s=math.inf)` answers none, `Reply(cut_after=3)` breaks streams, `Reply(status=429,
    retry_after=2)` asks for patience, `Reply(delay_s=4)` is slow, and `None` is well again.

    Example:
        An outage from request 10 to 20:

        ```python
        with FakeProvider(lambda r: Reply(status=500) if 10 <= r.number <= 20 else None) as provider:
            ChatOpenAI(model="gpt-5-mini", base_url=provider.openai_url, api_key="x").invoke("Hello")
            assert provider.bill > 0
        ```
    """

    def __init__(self, reply: Rule = None, *, clock: Clock | None = None, keep_alive: bool = True) -> None:
        self._clock = clock or SystemClock()
        self._keep_alive = keep_alive
        self._book = Book()
        self._server: Server | None = None
        self.reply = reply

    def __enter__(self) -> Self:
        self._server = Server(self._answer, keep_alive=self._keep_alive)
        return self

    def __exit__(self, *_: object) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    @property
    def reply(self) -> Rule:
        """What the provider answers; setting it starts a list at its first reply."""
        return self._rule

    @reply.setter
    def reply(self, rule: Rule) -> None:
        self._rule = rule
        self._script = Script(rule)

    @property
    def url(self) -> str:
        """The server's address, e.g. `http://127.0.0.1:49152`.

        Raises:
            RuntimeError: Outside of `with`.
        """
        if self._server is None:
            raise RuntimeError("FakeProvider serves only inside `with FakeProvider() as provider:`")
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def openai_url(self) -> str:
        """What OpenAI's clients take as base URL."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        """What Anthropic's clients take as base URL."""
        return self.url

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in the order of arrival."""
        return self._book.requests

    @property
    def charges(self) -> list[Charge]:
        """Every call on the bill so far."""
        return self._book.charges

    @property
    def bill_nanos(self) -> int:
        """The true bill in nano-dollars."""
        return sum(charge.nanos for charge in self.charges)

    @property
    def bill(self) -> Decimal:
        """The true bill in US dollars, exact."""
        return to_usd(self.bill_nanos)

    def reset(self) -> None:
        """Forget requests, charges and the prompt cache, and start the script anew."""
        self._book = Book()
        self._script = Script(self._rule)

    def wait_idle(self, timeout_s: float = 10) -> None:
        """Wait until every request is dealt with: a client that leaves early is noticed a moment later.

        Raises:
            TimeoutError: If a request is still open after so many seconds.
        """
        if not self._book.wait_idle(timeout_s):
            raise TimeoutError(f"a request is still being answered after {timeout_s} s")

    def _answer(self, exchange: Exchange) -> None:
        """Answer one HTTP request."""
        path = exchange.path.partition("?")[0]
        kind = _DIALECTS.get(path)
        body, book = _parsed(exchange.body), self._book
        request = book.open(
            path=path,
            protocol=kind.name if kind else "embeddings" if path == "/v1/embeddings" else "",
            headers={k.lower(): v for k, v in exchange.headers.items() if k.lower() not in _SECRET_HEADERS},
            body=body or {},
            at=from_micros(self._clock.now_us()),
        )
        dialect = kind(request) if kind else None
        reply = Reply()
        try:
            reply = self._reply_to(request)
            Service(exchange, book, request, reply).run(dialect)
        except Failure as failure:
            book.answered(request, failure.status)
            error = dialect.error(failure) if dialect else openai_error(failure)
            exchange.send_whole(failure.status, encoded(error), _failure_headers(request, reply))
        finally:
            book.close()

    def _reply_to(self, request: Request) -> Reply:
        """Return the scripted reply; a script that raises becomes a failure that names it."""
        try:
            return self._script.choose(request)
        except Exception as error:
            raise Failure(500, f"the reply script raised {type(error).__name__}: {error}") from error


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _failure_headers(request: Request, reply: Reply) -> dict[str, str]:
    headers = {"x-request-id": f"req_{request.number}", **reply.headers}
    if reply.retry_after is not None:
        headers["Retry-After"] = f"{reply.retry_after:g}"
    return headers
