"""What has to be known of a LlamaIndex LLM to govern it: its identity, its limits, its retries."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from maestro_core.prices.places import place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LIMITS",
    "attempts_of",
    "base_url",
    "beside",
    "can_limit",
    "is_legacy_completion",
    "least_output_tokens",
    "limit_kwargs",
    "model_name",
    "own_limit",
    "packages",
    "provider_of",
    "read",
    "streams_silently",
]

# The integration package that a class comes from (`llama_index.llms.<package>`), and the price book's provider id.
_PROVIDERS = {
    "azure_inference": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "gemini": "google",
    "google_genai": "google",
    "mistralai": "mistral",
    "openai_like": "openai",
    "vertex": "google",
    "xai": "x-ai",
}
# The call argument that sets the output limit of one request for certain.
_LIMIT_ARGUMENTS = {
    "anthropic": "max_tokens",
    "bedrock_converse": "max_tokens",
    "litellm": "max_tokens",
    "openai": "max_tokens",
}
_TWICE = frozenset({"bedrock_converse", "openai"})  # they retry by themselves what their clients have retried
LIMITS = (
    "max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample", "max_new_tokens", "num_predict",
)  # fmt: skip
_URLS = ("azure_endpoint", "api_base", "base_url", "endpoint", "endpoint_url")
# A reasoning model thinks before it answers, and inside the limit.
_REASONING_TOKENS = 4_096
_LEAST_ANSWER = 256
_MODEL_NAMES = ("model", "model_name", "model_id")


_has: dict[tuple[type, str], bool] = {}


def read(component: Any, name: str) -> Any:
    """Return a field of a component, or None. To ask pydantic for what a class does not have takes longer than the rest."""
    fields = component.__dict__
    if name in fields:
        return fields[name]
    kind = type(component)
    has = _has.get((kind, name))
    if has is None:
        # A class that takes any field keeps them elsewhere.
        has = _has[kind, name] = hasattr(kind, name) or kind.model_config.get("extra") == "allow"
    return getattr(component, name, None) if has else None


_classes_have: dict[tuple[type, tuple[str, ...]], list[str]] = {}


def _those(component: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return those of these fields that a component has: as `read`, of several at once."""
    fields = component.__dict__
    found = {name: fields[name] for name in names if name in fields}
    kind = type(component)
    others = _classes_have.get((kind, names))
    if others is None:
        takes_any = kind.model_config.get("extra") == "allow"
        others = _classes_have[kind, names] = [name for name in names if takes_any or hasattr(kind, name)]
    for name in others:
        if name not in found:
            found[name] = getattr(component, name, None)
    return found


_known: dict[type, list[str]] = {}


def packages(component: Any) -> list[str]:
    """Return the integration packages that a component's class and its bases come from, the nearest first."""
    kind = type(component)
    if kind not in _known:
        homes = [cls.__module__.split(".") for cls in kind.__mro__]
        # As in llama_index.llms.openai.
        _known[kind] = [
            home[2]
            for home in homes
            if home[0] == "llama_index" and len(home) > 2 and home[1] != "core"  # noqa: PLR2004
        ]
    return _known[kind]


def provider_of(component: Any) -> str:
    """Return the price book's id for what bills an LLM's or an embedding model's requests."""
    name = next(iter(packages(component)), "")
    if name == "anthropic":  # the same class speaks to three clouds
        client = type(getattr(component, "_client", None)).__name__
        return {"AnthropicVertex": "google", "AnthropicBedrock": "aws"}.get(client, "anthropic")
    return _PROVIDERS.get(name, name or "unknown")


def model_name(component: Any) -> str:
    """Return the model as its provider names it."""
    for name in _MODEL_NAMES:
        found = read(component, name)
        if isinstance(found, str) and found:
            return found
    return "unknown"


def base_url(component: Any) -> str:
    """Return where requests go, if that is not the maker's own place; never with credentials."""
    found = _those(component, _URLS)
    for name in _URLS:
        if url := found.get(name):
            return place_of(url)
    return ""


# Content that the provider keeps, and bills as if it were sent.
_KEPT_THERE = ("previous_response_id", "conversation", "prompt")


def beside(llm: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request says beside messages and tools: texts, and a name for what the provider keeps of it."""
    found = {name: value for name, value in settings.items() if isinstance(value, str)}
    if _is_responses(llm):
        found.setdefault("instructions", llm.instructions or "")
        kept = next((settings[name] for name in _KEPT_THERE if settings.get(name)), None)
        found["previous_response_id"] = str(kept or llm._previous_response_id or "")  # noqa: SLF001 - it has no other name
    return found


_legacy: dict[tuple[type, str], bool] = {}  # asking a model for its metadata takes longer than all else here


def is_legacy_completion(llm: Any) -> bool:
    """Return whether it is an OpenAI model of the old completions API, whose limit LlamaIndex sets by itself."""
    if "openai" not in packages(llm) or _is_responses(llm):
        return False
    key = type(llm), model_name(llm)
    if key not in _legacy:
        try:
            _legacy[key] = not llm.metadata.is_chat_model
        except ValueError:  # a model that LlamaIndex does not know; it will say so itself
            return False
    return _legacy[key]


def can_limit(llm: Any) -> bool:
    """Return whether `limit_kwargs` knows how to limit its output."""
    known = packages(llm)
    named = "google_genai" in known or not _LIMIT_ARGUMENTS.keys().isdisjoint(known)
    return named and not is_legacy_completion(llm)


def limit_kwargs(llm: Any, tokens: int) -> dict[str, Any] | None:
    """Return the call arguments that limit the output to so many tokens, or None for a class that is not known."""
    if is_legacy_completion(llm):
        return None
    if _is_responses(llm):
        return {"max_output_tokens": tokens}
    known = packages(llm)
    if "google_genai" in known:
        return {"generation_config": {"max_output_tokens": tokens}}
    name = next((_LIMIT_ARGUMENTS[package] for package in known if package in _LIMIT_ARGUMENTS), None)
    if name is None:
        return None
    # OpenAI itself takes the old name only for its old models; servers that are like it may know only the old one.
    official = known[0] == "openai" and not base_url(llm)
    if official and getattr(llm, "max_tokens", None) is None:
        name = "max_completion_tokens"
    return {name: tokens}


def own_limit(llm: Any, kwargs: dict[str, Any], *, governed: bool) -> int | None:
    """Return the output limit that a request carries by itself.

    Args:
        llm: The model.
        kwargs: The arguments of the call.
        governed: Whether `attach` has made the call's own limit win over the constructor's.

    Returns:
        Tokens; the largest, where several are set and it is not known which one wins; None if there is none.
    """
    asked = _limits(kwargs, kwargs.get("generation_config"), kwargs.get("extra_body"))
    fields = _those(llm, LIMITS)
    private = (llm.__pydantic_private__ or {}).get("_generation_config")
    built = _limits(fields, read(llm, "additional_kwargs"), read(llm, "generation_config"), private)
    if is_legacy_completion(llm):
        asked = []  # LlamaIndex replaces it by all that the context window leaves
    elif asked and governed and "openai" in packages(llm):
        built = []
    return max((*asked, *built), default=None)


def _limits(*places: Any) -> list[int]:
    return [
        value
        for place in places
        if place and isinstance(place, dict)
        for name in LIMITS
        if isinstance(value := place.get(name), int) and value > 0
    ]


def attempts_of(component: Any) -> int:
    """Return how often a component may send a request: some have retries of their own on top of their client's."""
    retries = read(component, "max_retries")
    if not isinstance(retries, int) or retries <= 0:
        return 1
    twice = not _TWICE.isdisjoint(packages(component))
    return retries * (1 + retries) if twice else 1 + retries


def least_output_tokens(llm: Any) -> int:
    """Return the output tokens below which a thinking model gives no answer."""
    thinking = read(llm, "thinking_dict") or {}
    if isinstance(budget := thinking.get("budget_tokens"), int):
        return budget + _LEAST_ANSWER
    home = sys.modules.get("llama_index.llms.openai.utils")
    reasons = model_name(llm) in getattr(home, "O1_MODELS", ())
    quiet = read(llm, "reasoning_effort") == "none"
    return _REASONING_TOKENS if reasons and not quiet and "openai" in packages(llm) else 1


def streams_silently(llm: Any) -> bool:
    """Return whether its streams say what they used only if they are asked to."""
    return "openai" in packages(llm) and not _is_responses(llm) and not is_legacy_completion(llm)


def _is_responses(llm: Any) -> bool:
    kind = type(llm)
    if kind not in _responses:
        _responses[kind] = any(cls.__name__ == "OpenAIResponses" for cls in kind.__mro__)
    return _responses[kind]


_responses: dict[type, bool] = {}
