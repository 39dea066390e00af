"""Where requests go: a place of the user's own has its own prices."""

from __future__ import annotations

from .fields import normal_url

__all__ = ["place_of"]

# Where the makers' own clients send requests if nobody says otherwise.
_USUAL_URLS = frozenset({
    "https://api.openai.com/v1",
    "https://api.anthropic.com",
    "https://api.mistral.ai/v1",
    "https://api.deepseek.com",
    "https://api.deepseek.com/v1",
    "https://api.groq.com",
    "https://api.x.ai/v1",
    "https://api.together.xyz/v1",
    "https://api.together.ai/v1",
    "https://api.fireworks.ai/inference/v1",
    "https://openrouter.ai/api/v1",
})  # fmt: skip


def place_of(url: object) -> str:
    """Return a place of the user's own, normalised and without credentials; empty for a maker's own, or none."""
    try:
        found = normal_url(str(url)) if url else ""
    except ValueError:
        return ""
    return "" if found in _USUAL_URLS else found
