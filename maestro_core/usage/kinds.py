"""The vocabulary of usage: every kind of token and paid use that can be counted.

The words are those of the price book (genai-prices), so that its rates need no translation. Counts are *totals*:
`input_tokens` includes what was read from or written to a cache and every modality; `output_tokens` includes reasoning.
A test compares this file with the installed price book, which is not imported here because that takes 0.3 s.
"""

from __future__ import annotations

__all__ = ["ALIASES", "INPUT_PARTS", "KINDS", "OUTPUT_PARTS"]

_MODALITIES = ("text", "audio", "image", "video")
_CACHE_KINDS = ("read", "write", "write_5m", "write_1h")

_TOKENS = (
    "input_tokens",
    "output_tokens",
    *(f"cache_{kind}_tokens" for kind in _CACHE_KINDS),
    *(f"input_{modality}_tokens" for modality in _MODALITIES),
    *(f"output_{modality}_tokens" for modality in _MODALITIES),
    *(f"cache_{modality}_{kind}_tokens" for modality in _MODALITIES for kind in _CACHE_KINDS),
    "input_tool_tokens",
    *(f"input_{modality}_tool_tokens" for modality in _MODALITIES),
    "output_reasoning_tokens",
    *(f"output_{modality}_reasoning_tokens" for modality in _MODALITIES),
    "output_citation_tokens",
    *(f"output_{modality}_citation_tokens" for modality in _MODALITIES),
)
_OTHERS = (
    "input_characters",
    "input_text_messages",
    "audio_seconds",
    "input_audio_seconds",
    "output_audio_seconds",
    "input_pixels",
    "input_document_pages",
    "input_annotated_document_pages",
    "rerank_searches",
    "web_searches",
    "social_searches",
    "storage_searches",
    "code_executions",
    "requests",
)
KINDS: frozenset[str] = frozenset(_TOKENS + _OTHERS)

# Disjoint splits of a total: by modality, and by cache. Each split may cover the total only in part.
INPUT_PARTS: tuple[tuple[str, ...], ...] = (
    ("input_text_tokens", "input_audio_tokens", "input_image_tokens", "input_video_tokens"),
    ("cache_read_tokens", "cache_write_tokens", "input_tool_tokens"),
)
OUTPUT_PARTS: tuple[tuple[str, ...], ...] = (
    ("output_text_tokens", "output_audio_tokens", "output_image_tokens", "output_video_tokens"),
    ("output_reasoning_tokens", "output_citation_tokens"),
)

# Kinds that are their parent by another name: no sheet has a rate of their own for them.
ALIASES: dict[str, str] = {
    "input_text_tokens": "input_tokens",
    "output_text_tokens": "output_tokens",
    "cache_write_5m_tokens": "cache_write_tokens",
    **{f"cache_text_{kind}_tokens": f"cache_{kind}_tokens" for kind in _CACHE_KINDS},
    **{f"cache_{m}_write_5m_tokens": f"cache_{m}_write_tokens" for m in _MODALITIES},
    "input_tool_tokens": "input_tokens",
    **{f"input_{m}_tool_tokens": f"input_{m}_tokens" for m in _MODALITIES},
    **{f"output_{m}_reasoning_tokens": "output_reasoning_tokens" for m in _MODALITIES},
    **{f"output_{m}_citation_tokens": "output_citation_tokens" for m in _MODALITIES},
}
