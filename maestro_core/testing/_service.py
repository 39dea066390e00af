"""How one accepted request is served: waited, generated, sent and billed, as the test scripted it."""

from __future__ import annotations

import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ._answer import compose
from ._bill import Counts, rates_of
from ._dialect import Failure
from ._embeddings import count_input, embeddings
from ._http import Lost
from ._tokens import compact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._answer import Answer
    from ._bill import Ending
    from ._book import Book
    from ._dialect import Dialect
    from ._http import Exchange
    from ._script import Reply, Request

__all__ = ["Service", "encoded"]

_FIRST_ERROR = 400
_KNOWN = frozenset(HTTPStatus)


class Service:
    """Serves one accepted request."""

    def __init__(self, exchange: Exchange, book: Book, request: Request, reply: Reply) -> None:
        self._exchange = exchange
        self._book = book
        self._request = request
        self._reply = reply

    def run(self, dialect: Dialect | None) -> None:
        """Answer as scripted.

        Raises:
            Failure: If the provider refuses the request.
            Lost: If the connection is gone.
        """
        request, reply = self._request, self._reply
        if not request.protocol:
            raise Failure(404, f"Invalid URL ({request.path})", "unknown_url")
        if not request.body:
            raise Failure(400, "We could not parse the JSON body of your request.")
        if reply.drop:
            raise Lost
        self._check_model()
        failure = self._scripted_failure()
        if failure and not (request.stream and reply.cut_after):
            self._exchange.pause(reply.delay_s)
            raise failure
        if dialect is None:
            self._embed()
        elif request.path.endswith("/count_tokens"):
            self._count_tokens(dialect)
        else:
            self._generate(dialect)

    def _scripted_failure(self) -> Failure | None:
        reply = self._reply
        if reply.status < _FIRST_ERROR:
            return None
        usual = HTTPStatus(reply.status).phrase if reply.status in _KNOWN else "Overloaded"
        return Failure(reply.status, reply.error or usual, reply.error_code)

    def _check_model(self) -> None:
        for model in (self._request.model, self._reply.model):
            if model == "":
                raise Failure(400, "you must provide a model parameter")
            if model is not None and rates_of(model) is None:
                message = f"The model `{model}` does not exist or you do not have access to it."
                raise Failure(404, message if self._request.protocol != "messages" else f"model: {model}")

    def _count_tokens(self, dialect: Dialect) -> None:
        counts = self._book.cache.count("", [(text, None) for text, _ in dialect.asked().blocks])
        self._send({"input_tokens": counts.input})

    def _embed(self) -> None:
        counted = count_input(self._request)
        tokens = counted if self._reply.input_tokens is None else self._reply.input_tokens
        body = embeddings(self._request, tokens)
        self._deliver(self._reply.model or self._request.model, Counts(input=tokens), body)

    def _generate(self, dialect: Dialect) -> None:
        try:
            answer = self._composed(dialect)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise Failure(400, f"cannot read the request: {type(error).__name__}: {error}") from error
        if self._request.stream:
            self._stream(answer, dialect)
        else:
            self._deliver(answer.model, answer.counts, dialect.whole(answer))

    def _composed(self, dialect: Dialect) -> Answer:
        asked = dialect.asked()
        earlier = self._book.conversation(self._request.body.get("previous_response_id"))
        blocks = [*earlier, *asked.blocks]
        cached = self._book.cache.count(self._reply.model or asked.model, blocks)
        # Unique beyond this provider: graphs replace a message by one with the same id.
        name = secrets.token_hex(12)
        created = int(self._request.at.timestamp())
        answer = compose(asked, self._reply, name=name, created=created, cached=cached)
        if self._request.protocol == "responses":
            said = [answer.text, *(call.name + call.arguments for call in answer.calls)]
            self._book.remember(f"resp_{name}", [*blocks, *((text, None) for text in said)])
        return answer

    def _deliver(self, model: str, counts: Counts, body: dict[str, Any]) -> None:
        """Send a plain answer. It is billed before the client can see it, and also if nobody waits for it."""
        ending: Ending = "complete" if self._reply.cut_after is None else "cut"
        try:
            self._exchange.pause(self._reply.delay_s + self._reply.hang_s)
        except Lost:
            ending = "undelivered"
        self._book.charge(self._request, model, counts, ending)
        if ending != "complete":
            raise Lost
        self._send(body)

    def _stream(self, answer: Answer, dialect: Dialect) -> None:
        """Send a stream. It is billed once: when all is generated, or when the connection is gone."""
        meter = _Meter(self._book, self._request, answer)
        try:
            self._exchange.pause(self._reply.delay_s)
            if self._reply.hang_s:
                self._hang(meter, len(answer.pieces))
            self._send_events(meter, answer, dialect)
        except (Lost, OSError):
            meter.bill("abandoned")
            raise

    def _hang(self, meter: _Meter, total: int) -> None:
        """Keep silent over a stream that is generated already, and owed in full."""
        meter.generated = total
        try:
            self._exchange.pause(self._reply.hang_s)
        except Lost:
            meter.bill("undelivered")
            raise

    def _send_events(self, meter: _Meter, answer: Answer, dialect: Dialect) -> None:
        total = len(answer.pieces)
        cut_after = None if self._reply.cut_after is None else min(self._reply.cut_after, total)
        if cut_after == 0:
            meter.bill("cut")
            raise Lost
        self._book.answered(self._request, 200)
        self._exchange.start_stream()
        delay_s, sent = self._reply.first_chunk_delay_s, 0
        for event in dialect.events(answer):
            if event.is_piece:
                self._exchange.pause(delay_s)
                delay_s, sent = self._reply.chunk_delay_s, sent + 1
                meter.generated = max(meter.generated, sent)
            elif sent == total:
                # Billed before the end is sent: whoever has seen the end finds it on the bill.
                meter.bill("complete")
            self._exchange.send_chunk(event.encode())
            if event.is_piece and sent == cut_after:
                meter.bill("cut")
                self._break(dialect)
                return
        self._exchange.send_chunk(b"")

    def _break(self, dialect: Dialect) -> None:
        """End a stream before its time: with an error event if a status is scripted, else without a word."""
        failure = self._scripted_failure()
        if failure is None:
            raise Lost
        self._exchange.send_chunk(dialect.broken(failure).encode())
        self._exchange.send_chunk(b"")

    def _send(self, body: dict[str, Any]) -> None:
        self._book.answered(self._request, 200)
        self._exchange.send_whole(200, encoded(body), {"x-request-id": f"req_{self._request.number}"})


class _Meter:
    """Bills one stream, once."""

    def __init__(self, book: Book, request: Request, answer: Answer) -> None:
        self.generated = 0
        self._book = book
        self._request = request
        self._answer = answer
        self._billed = False

    def bill(self, ending: Ending) -> None:
        """Bill what was generated, unless that is done."""
        if not self._billed:
            self._billed = True
            counts = self._answer.counts_after(self.generated)
            self._book.charge(self._request, self._answer.model, counts, ending)


def encoded(body: Mapping[str, Any]) -> bytes:
    """Return a body as it travels."""
    return compact(body).encode("utf-8", "replace")
