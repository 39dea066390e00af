"""litellm's part of the comparison: makes the grid of models and usages, and prices it. Runs in litellm's environment."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import timeit
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download at import

_PROVIDERS = {
    "gemini": "google", "xai": "x-ai", "bedrock_converse": "aws", "bedrock": "aws", "azure_ai": "azure",
    "fireworks_ai": "fireworks", "together_ai": "together", "cohere_chat": "cohere", "text-completion-openai": "openai",
}  # fmt: skip
_MODES = {"chat", "responses", "completion", "embedding"}
# What each kind of usage needs in litellm's entry to mean something.
_NEEDS = {
    "cache read": ("cache_read_input_token_cost",),
    "cache write 5m": ("cache_creation_input_token_cost",),
    "cache write 1h": ("cache_creation_input_token_cost_above_1hr",),
    "300k in": ("cache_read_input_token_cost",),
    "audio": ("input_cost_per_audio_token", "output_cost_per_audio_token"),
    "batch": ("input_cost_per_token_batches", "output_cost_per_token_batches"),
    "flex": ("input_cost_per_token_flex", "output_cost_per_token_flex"),
    "priority": ("input_cost_per_token_priority", "output_cost_per_token_priority"),
}
_LEAST_WINDOW = {"250k in": 252_000, "300k in": 302_000}


def memory_mb() -> float:
    """Return the memory that the process has now; the peak, where that cannot be read."""
    try:
        return (
            int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            * resource.getpagesize()
            / 2**20
        )
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


before_mb, started = memory_mb(), time.perf_counter()
import litellm  # noqa: E402 - its import is measured
from litellm.cost_calculator import batch_cost_calculator  # noqa: E402
from litellm.types.utils import (  # noqa: E402
    CacheCreationTokenDetails,
    CompletionTokensDetailsWrapper,
    PromptTokensDetailsWrapper,
    Usage,
)

import_s, import_mb = time.perf_counter() - started, memory_mb()
litellm.suppress_debug_info = True


def to_usage(counts: dict[str, int]) -> Usage:
    """Return counts by Maestro's kinds as litellm takes them."""
    written, hour = counts.get("cache_write_tokens", 0), counts.get("cache_write_1h_tokens", 0)
    details = {
        "cached_tokens": counts.get("cache_read_tokens"),
        "audio_tokens": counts.get("input_audio_tokens"),
        "cache_creation_tokens": written or None,
    }
    if written:
        details["cache_creation_token_details"] = CacheCreationTokenDetails(
            ephemeral_5m_input_tokens=written - hour, ephemeral_1h_input_tokens=hour
        )
    return Usage(
        prompt_tokens=counts.get("input_tokens", 0),
        completion_tokens=counts.get("output_tokens", 0),
        total_tokens=counts.get("input_tokens", 0) + counts.get("output_tokens", 0),
        prompt_tokens_details=PromptTokensDetailsWrapper(**details),
        completion_tokens_details=CompletionTokensDetailsWrapper(
            reasoning_tokens=counts.get("output_reasoning_tokens"),
            audio_tokens=counts.get("output_audio_tokens"),
        ),
        **({"cache_creation_input_tokens": written} if written else {}),
    )


def price(key: str, provider: str, usage: Usage, tier: str | None, mode: str) -> str:
    """Return the dollars as text, or why there are none."""
    try:
        if tier == "batch":
            parts = batch_cost_calculator(usage=usage, model=key, custom_llm_provider=provider)
        else:
            parts = litellm.cost_per_token(
                model=key,
                custom_llm_provider=provider,
                usage_object=usage,
                service_tier=tier,
                call_type="embedding" if mode == "embedding" else "completion",
            )
    except Exception as error:  # noqa: BLE001 - whatever it raises is its answer
        return f"error: {type(error).__name__}"
    return repr(sum(parts))


def applies(kind: str, entry: dict) -> bool:
    """Return whether litellm's entry says that a usage is possible."""
    if entry["mode"] == "embedding":
        return kind == "plain"
    window = entry.get("max_input_tokens") or 0
    return all(entry.get(name) for name in _NEEDS.get(kind, ())) and window >= _LEAST_WINDOW.get(kind, 0)


def name_of(key: str, provider: str) -> str:
    """Return a model's name without the prefix that says whose it is."""
    for prefix in (f"{provider}/", "bedrock/", "vertex_ai/"):
        key = key.removeprefix(prefix)
    return key


def main() -> None:
    """Read the kinds of usage; write the grid with litellm's prices, and what it weighs."""
    started = time.perf_counter()
    price("gpt-5.4", "openai", Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2), None, "chat")
    first_s, priced_mb = time.perf_counter() - started, memory_mb()
    kinds = json.load(sys.stdin)
    usages = {kind: to_usage(each["counts"]) for kind, each in kinds.items()}
    cells = []
    for key, entry in litellm.model_cost.items():
        provider = str(entry.get("litellm_provider"))
        if entry.get("mode") not in _MODES or not entry.get("input_cost_per_token"):
            continue
        ours = "google" if provider.startswith("vertex_ai") else _PROVIDERS.get(provider, provider)
        for kind, each in kinds.items():
            if applies(kind, entry):
                dollars = price(key, provider, usages[kind], each["tier"], entry["mode"])
                cells.append({"provider": ours, "group": provider, "model": name_of(key, provider), "kind": kind, "usd": dollars})  # fmt: skip
    usage = usages["plain"]
    took_us = (
        timeit.timeit(lambda: price("gpt-5.4", "openai", usage, None, "chat"), number=2_000) / 2_000 * 1e6
    )
    measures = {"version": litellm_version(), "price_us": took_us, "import_s": import_s, "first_s": first_s,
                "import_mb": import_mb - before_mb, "priced_mb": priced_mb - before_mb}  # fmt: skip
    sys.stdout.write("\n")  # the answer is the last line, whatever a library printed before
    json.dump({"cells": cells, "measures": measures}, sys.stdout)


def litellm_version() -> str:
    """Return the installed version."""
    from importlib.metadata import version

    return version("litellm")


if __name__ == "__main__":
    main()
