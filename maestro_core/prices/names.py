"""From the name of a model to its entry in the price book, without guessing.

The price book matches names by prefix and substring, so that `gemini-3.8-flash-cyber` would get the price of
`gemini-3.8-flash`. Here a name must be one that the book lists, or differ from it only by a date, a version,
`latest` or `preview`, or by the path that a cloud puts in front.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from maestro_core.errors import PriceNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genai_prices.types import ModelInfo, Provider

__all__ = ["Entry", "closest", "entries", "find", "provider_id"]

# Other ids under which frameworks and SDKs know the same providers.
_PROVIDERS = {
    "amazon_bedrock": "aws",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "fireworks-ai": "fireworks",
    "gemini": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "mistralai": "mistral",
    "together_ai": "together",
    "vertex": "google",
    "xai": "x-ai",
}
# Resource paths in front of a model's name: Gemini API, Vertex, Bedrock ARNs.
_PATHS = {
    "google": re.compile(r"^(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/[^/]+/)?models/"),
    "aws": re.compile(r"^arn:aws[a-z-]*:bedrock:[^/]*/"),
}
# A geography in front of a Bedrock name. Anthropic's models cost the same in all of them where the book does not
# list one apart; other makers' prices are those of the US.
_GEOGRAPHY = re.compile(r"(?:(?:us|global)\.)?(?:amazon\.|anthropic/|google/|openai/)?")
_ANTHROPIC_GEOGRAPHY = re.compile(r"(?:(?:us|eu|apac|au|jp|ca|in|global)\.)?(?:anthropic[./])?")

_DATE = r"20\d{2}-?[01]\d-?[0-3]\d|[01]\d-(?:20\d{2}|[0-3]\d)|\d{4}|00\d"
_SUFFIX = re.compile(rf"(?:[-@.:](?:{_DATE}|latest|preview|exp|v\d+)|:\d+|@default)*")  # Vertex: @default
_FULL_DATE = re.compile(r"[-@](20\d{2})-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])$")
# OpenAI's fine-tuned models carry the organisation and a name: ft:gpt-4o-2024-08-06:acme::A1b2.
_FINE_TUNE = re.compile(r"-?[\d-]*(?::[^/]*)?")
_SIZE = re.compile(r"\d+b(?:-it)?")  # the Gemma family has one price for all sizes


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the price book. `home` tells whether the asked provider lists it, or resells another's model."""

    provider: str
    model: ModelInfo
    home: bool


@lru_cache(maxsize=1)
def _providers() -> dict[str, Provider]:
    from genai_prices.data import providers  # 0.3 s: only when a price is asked for

    return {provider.id: provider for provider in providers}


def provider_id(provider: str) -> str:
    """Return the price book's id of a provider.

    Raises:
        PriceNotFound: For a provider that the book does not have.
    """
    name = provider.strip().lower()
    name = _PROVIDERS.get(name, name)
    if name not in _providers():
        raise PriceNotFound(
            f"no price: the price book has no provider {provider!r}",
            difflib.get_close_matches(name, _providers(), n=3),
        )
    return name


def find(provider: str, model: str | None) -> Entry:
    """Return the entry of a model.

    Raises:
        PriceNotFound: If the book does not list it; `.closest` has near names.
    """
    home = provider_id(provider)
    name = (model or "").strip().lower()
    if path := _PATHS.get(home):
        name = path.sub("", name)
    if found := _listed(home, name):
        return found
    if not name:
        raise PriceNotFound(f"no price: the model of this {home} call is not known")
    near = closest(home, name)
    hint = f"; closest are {', '.join(near)}" if near else ""
    raise PriceNotFound(f"no price: the price book has no model {model!r} of {home}{hint}", near)


@lru_cache(maxsize=4096)  # also for what is not there, which takes longest
def _listed(home: str, name: str) -> Entry | None:
    for owner in (home, *(_providers()[home].fallback_model_providers or ())):
        if name and (found := _find(owner, name)):
            return Entry(home, found, owner == home)
    return None


@lru_cache(maxsize=1024)
def closest(provider: str, model: str) -> tuple[str, ...]:
    """Return up to three model names of a provider that come nearest, best first; empty for an unknown provider."""
    known = _providers().get(_PROVIDERS.get(provider.lower(), provider.lower()))
    if known is None or not model:
        return ()
    names = {entry.id.lower(): entry.id for entry in known.models}
    return tuple(names[name] for name in difflib.get_close_matches(model.lower(), names, n=3))


def entries() -> Iterator[Entry]:
    """Yield every model that the price book lists."""
    for provider in _providers().values():
        for model in provider.models:
            yield Entry(provider.id, model, home=True)


def _find(provider: str, name: str) -> ModelInfo | None:
    exact = _exact(provider)
    # Gateways write dates compactly: gpt-5.2-20251211 is gpt-5.2-2025-12-11.
    dashed = _FULL_DATE.sub(r"-\1-\2-\3", name)
    for candidate in dict.fromkeys((name, dashed)):
        if found := exact.get(candidate):
            return found
        for model in _providers()[provider].models:
            if _is_same(model.match, candidate):
                return model
    return exact.get(_FULL_DATE.sub("", name))


@lru_cache(maxsize=64)
def _exact(provider: str) -> dict[str, ModelInfo]:
    names: dict[str, ModelInfo] = {}
    models = _providers()[provider].models
    for model in models:
        for literal in _literals(model.match):
            names.setdefault(literal.lower(), model)
    for model in models:
        names.setdefault(model.id.lower(), model)
    return names


def _literals(clause: Any) -> Iterator[str]:
    if (literal := getattr(clause, "equals", None)) is not None:
        yield literal
    for part in getattr(clause, "or_", ()):
        yield from _literals(part)


def _is_same(clause: Any, name: str) -> bool:
    """Whether a clause of the price book matches a name, and nothing but a date or version is left over."""
    if (parts := getattr(clause, "or_", None)) is not None:
        return any(_is_same(part, name) for part in parts)
    if (parts := getattr(clause, "and_", None)) is not None:
        return all(part.is_match(name) for part in parts) and any(_is_same(part, name) for part in parts)
    if (literal := getattr(clause, "starts_with", None)) is not None:
        return name.startswith(literal.lower()) and _is_suffix(literal.lower(), name[len(literal) :])
    if (literal := getattr(clause, "ends_with", None)) is not None:
        return name.endswith(literal.lower()) and _is_prefix(
            literal.lower(), name.removesuffix(literal.lower())
        )
    if (literal := getattr(clause, "contains", None)) is not None:
        before, found, after = name.partition(literal.lower())
        return bool(found) and _is_prefix(literal.lower(), before) and _is_suffix(literal.lower(), after)
    if (pattern := getattr(clause, "regex", None)) is not None:
        found_at = re.search(pattern, name) if pattern.startswith("^") else None
        if found_at is None or not found_at[0]:
            return False
        rest = name[found_at.end() :]
        return not rest if pattern.endswith("$") else bool(rest) and _is_suffix(found_at[0], rest)
    return False  # equality is looked up in _exact()


def _is_prefix(literal: str, before: str) -> bool:
    if literal.startswith("/"):  # the end of a resource path, which says nothing about the price
        return True
    pattern = _ANTHROPIC_GEOGRAPHY if "anthropic" in literal or "claude" in literal else _GEOGRAPHY
    return pattern.fullmatch(before) is not None


def _is_suffix(literal: str, after: str) -> bool:
    if literal.startswith("ft:") or ".ft-" in literal:
        return _FINE_TUNE.fullmatch(after) is not None
    if literal.startswith("gemma-") and _SIZE.fullmatch(after):
        return True
    if literal[-1] in "-@.:":
        after = literal[-1] + after
    elif literal[-1].isdigit() and after[:1].isdigit():
        # The literal ends within a date (claude-sonnet-4-2025); judge the whole number: 4-1 is not 4-12.
        digits = re.search(r"[-@.:]\d+$", literal)
        after = (digits[0] if digits else "") + after
    return _SUFFIX.fullmatch(after) is not None
