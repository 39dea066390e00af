"""One request of an embedding model on its way through the gate. LlamaIndex drops what the provider says it used."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from llama_index_instrumentation.span import active_span_id

from maestro_core import Usage
from maestro_core.sending import Sending
from maestro_core.types import Attribution, Call

from ._models import attempts_of, base_url, model_name, provider_of
from ._passage import Heard, Passage
from ._peers import found_span
from ._spans import call_here

if TYPE_CHECKING:
    from collections.abc import Iterator

    from maestro_core.types import Reservation

__all__ = ["Texts", "listening", "to_embedding_call"]

# What the provider has answered to the requests of the embedding call around, as it came.
_answers: ContextVar[list[Any] | None] = ContextVar("maestro_answers", default=None)


def to_embedding_call(model: Any, texts: Any, *, where: Attribution, attempts: int) -> Call:
    """Return the call that embedding these texts is; `attempts` as in `to_call`."""
    name = model_name(model)
    return Call(
        provider=provider_of(model),
        model=name,
        input=texts,
        attempts=attempts,
        operation="embeddings",
        attribution=where,
        base_url=base_url(model),
        name=f"{type(model).__name__} {name}",
    )


class Texts(Passage):
    """One request for the embeddings of texts."""

    __slots__ = ("answers",)
    answers: list[Any]

    def __post_init__(self) -> None:
        Passage.__post_init__(self)
        object.__setattr__(self, "answers", [])

    @property
    def by_agent(self) -> bool:
        """Embeddings are no agent's answers: a refusal is always raised."""
        return False

    @property
    def fits(self) -> bool:
        """There is no output to limit."""
        return False

    def call(self) -> Call:
        """Return what is reserved for."""
        return to_embedding_call(self.llm, self.payload, where=self.where, attempts=attempts_of(self.llm))

    def send(self, reservation: Reservation | None = None) -> Any:  # noqa: ARG002 - as the base has it
        """Call the model's own method."""
        return self.method(self.payload, *self.arguments, **self.kwargs)

    def hears(self, reservation: Reservation, *, last: bool = False) -> Heard:  # noqa: ARG002
        """Return what notes the answer."""
        self.answers.clear()
        return _Vectors(reservation, self.answers)

    def sent(self, held: Reservation, *, last: bool = False) -> tuple[Sending, Heard]:
        """As the base. Another's span is of all the requests that a list of texts takes; it ends after the last of them."""
        found = found_span(active_span_id.get() or "") if call_here() is not None else None
        return Sending(self.maestro, held, self.parent_id, found=found), self.hears(held, last=last)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Also, what the provider answers inside the block is noted."""
        token = _answers.set(self.answers)
        try:
            with Passage.inside(self):
                yield
        finally:
            _answers.reset(token)


class _Vectors(Heard):
    """Vectors that have come back, and, of a client that is listened to, what they used."""

    __slots__ = ("answers",)

    def __init__(self, reservation: Reservation, answers: list[Any]) -> None:
        super().__init__(reservation)
        self.answers = answers

    def add(self, response: Any) -> Any:
        return response

    @property
    def usage(self) -> Usage | None:
        """What the provider reported; None if it was asked more than once, or not where it can be heard."""
        if len(self.answers) != 1:
            return None
        try:
            return Usage.parse(self.reservation.call.provider, self.answers[0], api="embeddings")
        except ValueError:
            return None


def listening(client: Any) -> Any:
    """Return OpenAI's client, whose answers to embedding requests are noted."""
    return _Client(client)


class _Client:
    def __init__(self, plain: Any) -> None:
        self._plain = plain

    @property
    def embeddings(self) -> Any:
        return _Embeddings(self._plain.embeddings)

    def __getattr__(self, name: str) -> Any:
        if name == "_plain":
            raise AttributeError(name)
        return getattr(self._plain, name)


class _Embeddings(_Client):
    def create(self, **request: Any) -> Any:
        answer = self._plain.create(**request)
        return _anoted(answer) if isawaitable(answer) else _noted(answer)


def _noted(answer: Any) -> Any:
    heard = _answers.get()
    if heard is not None:
        heard.append(answer)
    return answer


async def _anoted(answer: Any) -> Any:
    return _noted(await answer)
