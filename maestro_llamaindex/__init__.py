"""Maestro for LlamaIndex: agents, query engines and models priced, attributed and capped as they stand."""

from __future__ import annotations

try:
    from .attachment import attach, detach
    from .callbacks import MaestroCallbackHandler
    from .installation import install
    from .llms import RoutedLLM
except ModuleNotFoundError as error:
    if not str(error.name).startswith("llama_index"):
        raise
    raise ImportError(
        f'maestro_llamaindex needs {error.name}: pip install "maestro-finops[llamaindex]"'
    ) from error

__all__ = ["MaestroCallbackHandler", "RoutedLLM", "attach", "detach", "install"]
