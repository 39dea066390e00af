"""What is free, reviewed by hand.

The price book lists models without any rate. Some are free of charge; of others the price is just not known. Only what
stands here costs nothing; everything else without a rate is unpriced.
"""

from __future__ import annotations

__all__ = ["is_free"]

# (provider, model id in the price book): why it is free.
_FREE_MODELS: dict[tuple[str, str], str] = {
    (
        "google",
        "gemma-3",
    ): "free of charge on the Gemini API, no paid tier (ai.google.dev/gemini-api/docs/pricing)",
    (
        "google",
        "gemma-3n",
    ): "free of charge on the Gemini API, no paid tier (ai.google.dev/gemini-api/docs/pricing)",
    ("google", "gemma-4-26b-a4b-it"): "free of charge on the Gemini API; Vertex uses another id",
    ("google", "gemma-4-31b-it"): "free of charge on the Gemini API; not offered per token on Vertex",
    (
        "openai",
        "moderation",
    ): "the moderation endpoint is free of charge (platform.openai.com/docs/guides/moderation)",
}


def is_free(provider: str, model_id: str) -> bool:
    """Return whether a model that has no rates in the price book costs nothing.

    OpenRouter's `:free` variants are rate-limited and billed at zero (openrouter.ai/docs, "Free Models").
    """
    return (provider, model_id) in _FREE_MODELS or (provider == "openrouter" and model_id.endswith(":free"))
