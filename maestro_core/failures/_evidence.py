"""What an exception says of a failed request: status, headers, codes, names and text, wherever its library keeps them.

No library is imported: an exception is known by the names of its classes and by its attributes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Evidence", "collect"]

_MOST_TEXT = 4_000
_MOST_CAUSES = 8
_STATUSES = range(100, 600)
_CODE = re.compile(r"([a-z]+(?:_[a-z]+)+): ")

# These raise inside `except` without naming the cause. Elsewhere the error that was being handled may be another
# endpoint's.
_CAUSE_IN_CONTEXT = ("requests", "urllib3", "botocore", "aiohttp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was found.

    Attributes:
        names: Of the classes of the error and its causes, outermost first, as in their method resolution order.
        status: The HTTP status, or None.
        headers: The answer's headers, names in lower case.
        codes: The provider's codes, types and reasons in lower case, the most telling first.
        details: Google's structured details.
        text: What the error says, in lower case; only searched, never kept.
    """

    names: tuple[str, ...]
    status: int | None
    headers: Mapping[str, str]
    codes: tuple[str, ...]
    details: tuple[Any, ...]
    text: str


def collect(error: BaseException) -> Evidence:
    """Return what an exception and its causes say."""
    causes = list(_causes(error))
    bodies = [body for cause in causes for body in _bodies(cause)]
    codes = [code for cause in causes for code in _own_codes(cause)]
    codes += [code for body in bodies for code in _body_codes(body)]
    details = [detail for cause in causes for detail in _details(cause)]
    details += [detail for body in bodies for detail in _listed(body.get("details"))]
    codes += [detail["reason"] for detail in details if _is_text(detail, "reason")]
    return Evidence(
        names=tuple(cls.__name__ for cause in causes for cls in type(cause).__mro__),
        status=next((status for cause in causes if (status := _status(cause)) is not None), None),
        headers=next((headers for cause in causes if (headers := _headers(cause))), {}),
        codes=tuple(dict.fromkeys(code.lower() for code in codes if code)),
        details=tuple(details),
        text=" ".join(_text(cause) for cause in causes)[:_MOST_TEXT].lower(),
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if seen is None:
            return
        yield seen
        within = seen.__cause__
        if within is None and type(seen).__module__.partition(".")[0] in _CAUSE_IN_CONTEXT:
            within = seen.__context__
        seen = within


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error that cannot be shown has no text
        return ""


def _answer(error: BaseException) -> Any:
    for name in ("response", "raw_response", "http_response"):
        found = getattr(error, name, None)
        if found is not None:
            return found
    return None


def _metadata(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    found = answer.get("ResponseMetadata")
    return found if isinstance(found, Mapping) else {}


def _status(error: BaseException) -> int | None:
    answer = _answer(error)
    places: list[Any] = [
        getattr(error, name, None) for name in ("status_code", "code", "http_status", "status")
    ]
    if isinstance(answer, Mapping):  # botocore
        places.append(_metadata(answer).get("HTTPStatusCode"))
    else:
        places += [getattr(answer, name, None) for name in ("status_code", "status")]
    for found in places:
        if isinstance(found, int) and not isinstance(found, bool) and int(found) in _STATUSES:
            return int(found)
    return None


def _headers(error: BaseException) -> dict[str, str]:
    answer = _answer(error)
    if isinstance(answer, Mapping):
        found = _metadata(answer).get("HTTPHeaders")
    else:
        found = getattr(answer, "headers", None)
    if found is None:
        found = getattr(error, "headers", None)
    try:
        return {str(name).lower(): str(value) for name, value in (found or {}).items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def _own_codes(error: BaseException) -> Iterator[str]:
    for name in ("error_code", "code", "type", "status", "reason"):
        found = getattr(error, name, None)
        if isinstance(found, str):
            yield found
    # langchain-openai raises a plain ValueError("code: message") for an error inside a Responses stream.
    if isinstance(error, ValueError) and (said := _CODE.match(_text(error))):
        yield said[1]
    grpc = getattr(error, "grpc_status_code", None)
    if isinstance(getattr(grpc, "name", None), str):
        yield grpc.name  # type: ignore[union-attr]  # checked by the line above


def _bodies(error: BaseException) -> Iterator[Mapping[str, Any]]:
    """Yield the error objects in a response's body, however deeply its library and gateways wrapped them."""
    answer = _answer(error)
    places = [getattr(error, name, None) for name in ("body", "details", "error")] + list(error.args[:1])
    if isinstance(answer, Mapping):
        places.append(answer.get("Error"))
    for place in places:
        body = _parsed(place)
        for _ in range(3):
            if not isinstance(body, Mapping):
                break
            yield body
            body = _parsed(body.get("error") or body.get("innererror") or body.get("inner_error"))


def _parsed(body: Any) -> Any:
    if isinstance(body, str | bytes) and body[:1] in ("{", "[", b"{", b"["):
        try:
            body = json.loads(body)
        except ValueError:
            return None
    if isinstance(body, list) and len(body) == 1:  # Google's OpenAI-compatible endpoint
        return body[0]
    return body


def _body_codes(body: Mapping[str, Any]) -> Iterator[str]:
    for name in ("code", "Code", "error_code", "type", "status"):
        found = body.get(name)
        if isinstance(found, str):
            yield found


def _details(error: BaseException) -> list[Any]:
    return _listed(getattr(error, "details", None))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def _is_text(detail: Any, name: str) -> bool:
    return isinstance(detail, Mapping) and isinstance(detail.get(name), str)
