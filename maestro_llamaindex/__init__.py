"""Maestro for LlamaIndex: agents, query engines and models priced, attributed and capped as they stand."""

from __future__ import annotations

from .attachment import attach, detach

__all__ = ["attach", "detach"]
