"""What the three chat protocols have in common, for the server: read a request, write an answer, a stream, an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ._tokens import compact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._answer import Answer, Asked
    from ._bill import Counts
    from ._script import Request

__all__ = ["Dialect", "Event", "Failure", "forced", "openai_error"]


class Failure(Exception):
    """The provider refuses a request; it costs nothing."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. `is_piece`: it carries one generated piece."""

    data: Mapping[str, Any] | str
    name: str | None = None
    is_piece: bool = False

    def encode(self) -> bytes:
        """Return the event as it travels."""
        head = f"event: {self.name}\n" if self.name else ""
        data = self.data if isinstance(self.data, str) else compact(self.data)
        return f"{head}data: {data}\n\n".encode("utf-8", "replace")


class Dialect(Protocol):
    """One protocol, for one request."""

    name: str

    def __init__(self, request: Request) -> None: ...

    def asked(self) -> Asked:
        """Return what the request asks for.

        Raises:
            Failure: If the request is malformed.
        """
        ...

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        ...

    def events(self, answer: Answer) -> Iterator[Event]:
        """Yield the events of a stream; those with `is_piece` are as many as `answer.pieces`."""
        ...

    def usage(self, counts: Counts) -> dict[str, Any]:
        """Return the usage block."""
        ...

    def error(self, failure: Failure) -> dict[str, Any]:
        """Return the body of a failed request."""
        ...

    def broken(self, failure: Failure) -> Event:
        """Return the event that ends a stream which fails on its way."""
        ...


_OPENAI_ERRORS = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}


def openai_error(failure: Failure) -> dict[str, Any]:
    """Return OpenAI's error body (https://platform.openai.com/docs/guides/error-codes)."""
    kind, code = _OPENAI_ERRORS.get(failure.status, ("server_error", None))
    if failure.code == "insufficient_quota":  # its type is its code
        kind = failure.code
    body = {"message": str(failure), "type": kind, "param": None, "code": failure.code or code}
    return {"error": body}


def forced(choice: Any, tools: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]] | None:
    """Return name and schema of the tool that a `tool_choice` makes obligatory, in any protocol's spelling."""
    if choice in ("required", "any") or (isinstance(choice, dict) and choice.get("type") == "any"):
        return next(iter(tools.items()), None)
    if not isinstance(choice, dict):
        return None
    name = choice.get("name") or choice.get("function", {}).get("name")
    return (name, tools[name]) if name in tools else None
