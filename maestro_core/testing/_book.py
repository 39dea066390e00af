"""What the provider wrote down since its start or its last reset."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ._bill import Charge, nanos, rates_of
from ._cache import PromptCache
from ._dialect import Failure
from ._script import Request

if TYPE_CHECKING:
    from ._bill import Counts, Ending

__all__ = ["Book"]

# A text that the model reads, and the cache time it is marked with.
Block = tuple[str, str | None]


class Book:
    """Requests, charges and the prompt cache; safe from any thread."""

    def __init__(self) -> None:
        self.cache = PromptCache()
        self._changed = threading.Condition()
        self._requests: list[Request] = []
        self._charges: list[Charge] = []
        self._conversations: dict[str, list[Block]] = {}
        self._open = 0

    def open(self, **facts: Any) -> Request:
        """Write down that a request arrived."""
        with self._changed:
            request = Request(number=len(self._requests) + 1, **facts)
            self._requests.append(request)
            self._open += 1
            return request

    def answered(self, request: Request, status: int) -> None:
        """Write down the HTTP status of the answer, before the client can see it."""
        with self._changed:
            self._requests[request.number - 1] = replace(request, status=status)

    def close(self) -> None:
        """Write down that a request is dealt with, whatever its end."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def charge(self, request: Request, model: str, counts: Counts, ending: Ending) -> None:
        """Put a served call on the bill.

        Raises:
            KeyError: If the model is not offered.
        """
        rates = rates_of(model)
        if rates is None:
            raise KeyError(model)
        charge = Charge(
            request=request.number,
            model=model,
            protocol=request.protocol,
            input_tokens=counts.input,
            output_tokens=counts.output,
            cache_read_tokens=counts.cache_read,
            cache_write_tokens=counts.cache_write,
            cache_write_1h_tokens=counts.cache_write_1h,
            reasoning_tokens=counts.reasoning,
            nanos=nanos(rates, counts),
            status=ending,
        )
        with self._changed:
            self._charges.append(charge)

    def remember(self, response_id: str, blocks: list[Block]) -> None:
        """Keep a conversation, for a request that continues it by `previous_response_id`."""
        with self._changed:
            self._conversations[response_id] = blocks

    def conversation(self, response_id: str | None) -> list[Block]:
        """Return what the model reads again, and the provider bills again; nothing for None.

        Raises:
            Failure: If no such response was given.
        """
        with self._changed:
            if response_id is not None and response_id not in self._conversations:
                message = f"Previous response with id '{response_id}' not found."
                raise Failure(400, message, "previous_response_not_found")
            return self._conversations[response_id] if response_id else []

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no request is being dealt with; return whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout_s)

    @property
    def requests(self) -> list[Request]:
        """Every request, in the order of arrival."""
        with self._changed:
            return list(self._requests)

    @property
    def charges(self) -> list[Charge]:
        """Every charge, in the order in which they were made."""
        with self._changed:
            return list(self._charges)
