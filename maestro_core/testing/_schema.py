"""A value that fits a JSON schema: what the provider answers where structured output is asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["example"]

# Deeper than this a recursive schema is closed with its shortest value.
_MOST_DEPTH = 6

_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "ada@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example(schema: Mapping[str, Any]) -> Any:
    """Return the same small value for the same schema.

    Reads `$ref` within the schema, `anyOf` `oneOf` `allOf`, `enum` `const`, objects, arrays, numbers with bounds and
    strings with lengths and formats; not `pattern`, conditions or tuples.
    """
    return _value(schema, schema, 0)


def _value(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    schema = _resolved(schema, root, depth)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = "null" if "null" in kind and depth > _MOST_DEPTH else next(k for k in kind if k != "null")
    if kind == "object":
        return _object(schema, root, depth)
    if kind == "array":
        return _array(schema, root, depth)
    if kind == "string":
        return _text(schema)
    if kind == "boolean":
        return True
    return None if kind == "null" else _number(schema, whole=kind == "integer")


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    """Follow references and choices until a plain schema is left."""
    while True:
        if "$ref" in schema:
            target: Any = root
            for name in schema["$ref"].removeprefix("#").strip("/").split("/"):
                target = target[name] if name else target
            schema = target
        elif "allOf" in schema:
            merged = {key: value for key, value in schema.items() if key != "allOf"}
            for part in schema["allOf"]:
                merged.update(_resolved(part, root, depth))
            schema = merged
        elif choices := schema.get("anyOf") or schema.get("oneOf"):
            nulls = [choice for choice in choices if choice.get("type") == "null"]
            others = [choice for choice in choices if choice.get("type") != "null"]
            schema = (nulls or others)[0] if depth > _MOST_DEPTH else (others or nulls)[0]
        else:
            return schema


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    names = schema.get("required", ()) if depth > _MOST_DEPTH else properties
    return {name: _value(properties.get(name, {}), root, depth + 1) for name in names}


def _array(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> list[Any]:
    length = max(schema.get("minItems", 0), 0 if depth > _MOST_DEPTH else 1)
    length = min(length, schema.get("maxItems", length))
    return [_value(schema.get("items", {}), root, depth + 1) for _ in range(length)]


def _text(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(schema.get("format", ""), "text").ljust(schema.get("minLength", 0), "t")
    return text[: schema.get("maxLength", len(text))]


def _number(schema: Mapping[str, Any], *, whole: bool) -> int | float:
    step = schema.get("multipleOf", 1 if whole else 0)
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is None and above is not None:
        top = below if below is not None else high
        low = above + (step or (1 if top is None else (top - above) / 2))
    if low is None:
        low = high if high is not None else 1 if below is None else below - (step or 1)
    return int(_stepped(low, step)) if whole else _stepped(low, step)


def _stepped(value: float, step: float) -> float:
    """Return the first multiple of `step` that is not below the value."""
    return math.ceil(value / step) * step if step else value
