"""The environments that Maestro is tried in besides its own: what each holds, and which tests run there."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ENVIRONMENTS", "Environment"]


@dataclass(frozen=True, slots=True)
class Environment:
    """One virtual environment.

    Args:
        name: How it is called, also as a folder.
        what: What it is for.
        packages: What is installed, besides the test tools; `.` is Maestro.
        tests: What pytest is given.
        shown: The packages whose versions the page names.
        lowest: Whether everything that is named is installed in the lowest version that it allows, Maestro's own
            dependencies too; else in the newest.
    """

    name: str
    what: str
    packages: tuple[str, ...]
    tests: tuple[str, ...]
    shown: tuple[str, ...]
    lowest: bool = False


_LANGCHAIN = (
    "tests/ranges/alone_langchain.py",
    "tests/test_handler.py",
    "tests/test_limits.py",
    "tests/test_embeddings.py",
    "tests/test_middleware.py",
)
_LLAMAINDEX = (
    "tests/ranges/alone_llamaindex.py",
    "tests/test_llamaindex_attach.py",
    "tests/test_llamaindex_bursts.py",
    "tests/test_llamaindex_installation.py",
    "tests/test_llamaindex_loops.py",
    "tests/test_llamaindex_routed.py",
    "tests/test_llamaindex_settling.py",
    "tests/test_llamaindex_telemetry.py",
)
_CHAIN_SHOWN = (
    "langchain-core",
    "langchain",
    "langgraph",
    "langchain-openai",
    "langchain-anthropic",
    "anthropic",
)
_INDEX_SHOWN = ("llama-index-core", "llama-index-llms-openai", "llama-index-llms-anthropic", "anthropic")
_INDEX = (
    ".[llamaindex]",
    "llama-index-embeddings-openai>=0.6",
    "llama-index-llms-anthropic>=0.12",
    "llama-index-llms-openai>=0.7",
    "anthropic>=0.75,<1",
)
_MAKERS = ("google-genai", "bedrock-converse", "ollama", "openai-like")

ENVIRONMENTS = (
    Environment(
        "langchain-lowest",
        "only LangChain, lowest",
        (".[demo]", "numpy>=2.1"),
        _LANGCHAIN,
        _CHAIN_SHOWN,
        lowest=True,
    ),
    Environment(
        "llamaindex-lowest", "only LlamaIndex, lowest", _INDEX, _LLAMAINDEX, _INDEX_SHOWN, lowest=True
    ),
    Environment(
        "llamaindex-makers",
        "LlamaIndex with other makers' clients, newest",
        (".[llamaindex]", *(f"llama-index-llms-{maker}" for maker in _MAKERS)),
        ("tests/ranges/makers.py",),
        ("llama-index-core", *(f"llama-index-llms-{maker}" for maker in _MAKERS)),
    ),
)
