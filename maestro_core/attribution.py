"""Who a call is for: the `attribution(...)` context, environment defaults, and how they merge."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextvars import ContextVar
from urllib.parse import unquote

from .blocks import Block
from .errors import SettingsError
from .types import check_dimension

__all__ = ["attribution", "cleaned", "clip", "current", "environment_defaults"]

MOST_DIMENSIONS = 16
MOST_CHARACTERS = 128

# These describe the call itself; letting a user set them would make one report contradict another.
_RESERVED = frozenset({"provider", "model"})

# OpenTelemetry resource attributes and the dimensions they stand for.
_RESOURCE = {"service.name": "service", "deployment.environment.name": "environment"}

_current: ContextVar[Mapping[str, str]] = ContextVar("maestro_attribution", default={})  # noqa: B039 - never mutated


class attribution(Block[Mapping[str, str]]):  # noqa: N801 - read as a verb: `with attribution(team="growth"):`
    """Say who pays for the calls made inside the `with` block; any keyword is a dimension.

    Blocks nest and merge, the inner one wins. The context follows asyncio tasks, `asyncio.to_thread` and the
    frameworks' tool threads. It does not reach raw threads, nor a generator consumed after the block has closed.

    Args:
        dimensions: `team="growth"`, `customer="acme"`, `run="..."`, `cost_center="cc-42"`. Values are text of 1 to
            128 characters, or an `int`; None leaves a dimension as it is. At most 16 dimensions in all.

    Raises:
        ValueError: For a reserved name (`provider`, `model`), a bad value, or too many dimensions.
    """

    __slots__ = ("_dimensions",)

    def __init__(self, **dimensions: str | int | None) -> None:
        super().__init__(_current)
        self._dimensions = {
            _check_name(name): _check_value(name, value)
            for name, value in dimensions.items()
            if value is not None
        }

    def _inside(self, around: Mapping[str, str]) -> Mapping[str, str]:
        merged = {**around, **self._dimensions}
        if len(merged) > MOST_DIMENSIONS:
            raise ValueError(
                f"{len(merged)} dimensions ({', '.join(sorted(merged))}); at most {MOST_DIMENSIONS} are kept"
            )
        return merged


def current() -> Mapping[str, str]:
    """Return the dimensions of the surrounding `attribution(...)` blocks."""
    return _current.get()


def clip(value: object) -> str:
    """Return a value from framework metadata as text of at most 128 characters.

    A longer one keeps its beginning and ends in a digest, so that two long values stay two values.
    """
    text = value if isinstance(value, str) else str(value)
    if len(text) <= MOST_CHARACTERS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: MOST_CHARACTERS - 9]}~{digest}"


def cleaned(found: Mapping[str, object], *, check_names: bool = False) -> dict[str, str]:
    """Return dimensions from outside as text: values clipped, those without a value left out.

    Args:
        found: From a plugin, or from a framework's metadata.
        check_names: Whether to check names too; adapters give only such as were declared.

    Raises:
        ValueError: If `check_names`, for a reserved or malformed name.
    """
    kept: dict[str, str] = {}
    for name, value in found.items():
        if value is None or value == "":
            continue
        short = type(value) is str and len(value) <= MOST_CHARACTERS  # as nearly every value of every call
        kept[_check_name(name) if check_names else name] = value if short else clip(value)  # type: ignore[assignment]
    return kept


def environment_defaults(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the dimensions that the environment declares for the whole process.

    `MAESTRO_ATTRIBUTION="team=growth,environment=prod"` wins over OpenTelemetry's `OTEL_SERVICE_NAME` and
    `OTEL_RESOURCE_ATTRIBUTES` (`service.name`, `deployment.environment.name`).

    Raises:
        SettingsError: If `MAESTRO_ATTRIBUTION` is malformed.
    """
    env = os.environ if environ is None else environ
    found: dict[str, str] = {}
    for name, value in _pairs(env.get("OTEL_RESOURCE_ATTRIBUTES", "")):
        if name in _RESOURCE and value:
            found[_RESOURCE[name]] = clip(unquote(value))
    if service := env.get("OTEL_SERVICE_NAME"):
        found["service"] = clip(service)
    text = env.get("MAESTRO_ATTRIBUTION", "")
    try:
        for name, value in _pairs(text):
            found[_check_name(name)] = _check_value(name, value)
    except ValueError as error:
        raise SettingsError(
            f'MAESTRO_ATTRIBUTION="{text}": {error}; write "team=growth,environment=prod"'
        ) from None
    return found


def _pairs(text: str) -> list[tuple[str, str]]:
    parts = (part.partition("=") for part in text.split(",") if part.strip())
    return [(name.strip(), value.strip()) for name, _, value in parts]


def _check_name(name: str) -> str:
    if name in _RESERVED:
        raise ValueError(f"{name!r} is a fact of the call, not a dimension that can be set")
    return check_dimension(name)


def _check_value(name: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or len(value) > MOST_CHARACTERS:
        raise ValueError(f"{name}={value!r}: a value is text of 1 to {MOST_CHARACTERS} characters, or an int")
    return value
