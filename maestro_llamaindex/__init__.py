"""Maestro for LlamaIndex: agents, query engines and models priced, attributed and capped as they stand."""

from __future__ import annotations

from .attachment import attach, detach
from .callbacks import MaestroCallbackHandler
from .installation import install
from .llms import RoutedLLM

__all__ = ["MaestroCallbackHandler", "RoutedLLM", "attach", "detach", "install"]
