"""The wire formats of usage blocks: which key means which kind.

A block says by its keys what it is, so that gateways, proxies and compatible servers need no table of their own.
The mappings agree with the extractors of genai-prices on its recorded responses; `docs/prices.md` names differences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

__all__ = [
    "ANTHROPIC", "BESIDE_COMPLETION", "CHAT", "COHERE", "LANGCHAIN", "MARKS", "OCR_ANNOTATED", "REALTIME", "RESPONSES",
    "ROOTS", "Shape",
]  # fmt: skip

# Where a usage block may be in a response or an event of a stream, the first that is there.
ROOTS = (
    "usage", "usageMetadata", "usage_metadata", "usage_info", "response.usage", "message.usage", "x_groq.usage",
    "meta.billed_units", "metadata.usage",
)  # fmt: skip
# Tokens that these count beside `completion_tokens`; everyone else counts them inside.
BESIDE_COMPLETION = {
    "x-ai": ("completion_tokens_details.reasoning_tokens",),
    "perplexity": ("reasoning_tokens", "citation_tokens"),
}
_Table = tuple[tuple[str, str], ...]  # (kind, dotted path in the block); paths of one kind are added
# (key in the block, path from there to what holds the counts, ((kind, whole path, key of the count), ...))
_Group = tuple[str, str, tuple[tuple[str, str, str], ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """One wire format of a usage block."""

    table: _Table
    total: str = ""  # where the provider's own grand total is, to check ours against
    unsplit_writes: bool = False  # whether cache writes may come without saying for how long
    groups: tuple[_Group, ...] = field(
        init=False
    )  # the table by what holds the counts: most blocks lack most of it

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(_grouped(self.table)))


def _grouped(table: _Table) -> list[_Group]:
    groups = []
    for parent, rows in groupby(table, key=lambda row: row[1].rpartition(".")[0]):
        first, _, rest = parent.partition(".")
        groups.append((first, rest, tuple((kind, path, path.rpartition(".")[2]) for kind, path in rows)))
    return groups


CHAT = Shape((
    ("input_tokens", "prompt_tokens"),
    ("output_tokens", "completion_tokens"),
    ("cache_read_tokens", "prompt_tokens_details.cached_tokens"),
    ("cache_write_tokens", "prompt_tokens_details.cache_write_tokens"),
    ("input_audio_tokens", "prompt_tokens_details.audio_tokens"),
    ("input_video_tokens", "prompt_tokens_details.video_tokens"),
    ("output_audio_tokens", "completion_tokens_details.audio_tokens"),
    ("output_image_tokens", "completion_tokens_details.image_tokens"),
    ("output_reasoning_tokens", "completion_tokens_details.reasoning_tokens"),
), total="total_tokens")  # fmt: skip
RESPONSES = Shape((
    ("input_tokens", "input_tokens"),
    ("output_tokens", "output_tokens"),
    ("cache_read_tokens", "input_tokens_details.cached_tokens"),
    ("cache_write_tokens", "input_tokens_details.cache_write_tokens"),
    ("input_text_tokens", "input_tokens_details.text_tokens"),
    ("input_image_tokens", "input_tokens_details.image_tokens"),
    ("input_audio_tokens", "input_tokens_details.audio_tokens"),
    ("output_text_tokens", "output_tokens_details.text_tokens"),
    ("output_image_tokens", "output_tokens_details.image_tokens"),
    ("output_audio_tokens", "output_tokens_details.audio_tokens"),
    ("output_reasoning_tokens", "output_tokens_details.reasoning_tokens"),
), total="total_tokens")  # fmt: skip
REALTIME = Shape((
    ("input_tokens", "input_tokens"),
    ("output_tokens", "output_tokens"),
    ("input_text_tokens", "input_token_details.text_tokens"),
    ("input_audio_tokens", "input_token_details.audio_tokens"),
    ("input_image_tokens", "input_token_details.image_tokens"),
    ("cache_read_tokens", "input_token_details.cached_tokens"),
    ("cache_text_read_tokens", "input_token_details.cached_tokens_details.text_tokens"),
    ("cache_audio_read_tokens", "input_token_details.cached_tokens_details.audio_tokens"),
    ("cache_image_read_tokens", "input_token_details.cached_tokens_details.image_tokens"),
    ("output_text_tokens", "output_token_details.text_tokens"),
    ("output_audio_tokens", "output_token_details.audio_tokens"),
    ("audio_seconds", "billable_audio_seconds"),
    ("input_text_messages", "input_text_messages"),
), total="total_tokens")  # fmt: skip
ANTHROPIC = Shape((
    ("input_tokens", "input_tokens"),
    ("input_tokens", "cache_creation_input_tokens"),
    ("input_tokens", "cache_read_input_tokens"),
    ("cache_write_tokens", "cache_creation_input_tokens"),
    ("cache_write_5m_tokens", "cache_creation.ephemeral_5m_input_tokens"),
    ("cache_write_1h_tokens", "cache_creation.ephemeral_1h_input_tokens"),
    ("cache_read_tokens", "cache_read_input_tokens"),
    ("web_searches", "server_tool_use.web_search_requests"),
    ("output_tokens", "output_tokens"),
    ("output_reasoning_tokens", "output_tokens_details.thinking_tokens"),
), unsplit_writes=True)  # fmt: skip
_CONVERSE = Shape((
    ("input_tokens", "inputTokens"),
    ("input_tokens", "cacheReadInputTokens"),
    ("input_tokens", "cacheWriteInputTokens"),
    ("cache_read_tokens", "cacheReadInputTokens"),
    ("cache_write_tokens", "cacheWriteInputTokens"),
    ("cache_write_5m_tokens", "cacheDetails.5m.inputTokens"),
    ("cache_write_1h_tokens", "cacheDetails.1h.inputTokens"),
    ("output_tokens", "outputTokens"),
), total="totalTokens")  # fmt: skip
LANGCHAIN = Shape((
    ("input_tokens", "input_tokens"),
    ("output_tokens", "output_tokens"),
    ("cache_read_tokens", "input_token_details.cache_read"),
    # LangChain sets cache_creation to 0 where the lifetimes are known: what was written is their sum.
    ("cache_write_tokens", "input_token_details.cache_creation"),
    ("cache_write_tokens", "input_token_details.ephemeral_5m_input_tokens"),
    ("cache_write_tokens", "input_token_details.ephemeral_1h_input_tokens"),
    ("cache_write_5m_tokens", "input_token_details.ephemeral_5m_input_tokens"),
    ("cache_write_1h_tokens", "input_token_details.ephemeral_1h_input_tokens"),
    ("input_audio_tokens", "input_token_details.audio"),
    ("input_image_tokens", "input_token_details.image"),
    ("input_video_tokens", "input_token_details.video"),
    ("output_audio_tokens", "output_token_details.audio"),
    ("output_image_tokens", "output_token_details.image"),
    ("output_reasoning_tokens", "output_token_details.reasoning"),
), total="total_tokens", unsplit_writes=True)  # fmt: skip
COHERE = Shape((
    ("input_tokens", "billed_units.input_tokens"),
    ("output_tokens", "billed_units.output_tokens"),
    ("rerank_searches", "billed_units.search_units"),
))  # fmt: skip
_COHERE_UNITS = Shape(tuple((kind, path.removeprefix("billed_units.")) for kind, path in COHERE.table))
_COHERE_TOKENS = Shape((
    ("input_tokens", "tokens.input_tokens"),
    ("output_tokens", "tokens.output_tokens"),
    ("cache_read_tokens", "cached_tokens"),
))  # fmt: skip
_OCR = Shape((("input_document_pages", "pages_processed"),))
OCR_ANNOTATED = Shape((*_OCR.table, ("input_annotated_document_pages", "pages_processed")))
_SECONDS = Shape((("audio_seconds", "seconds"),))


def _google() -> Shape:
    """Google lists tokens by modality; documents are billed as images, thoughts and tool prompts stand beside."""
    table = [
        ("input_tokens", "promptTokenCount"),
        ("input_tokens", "toolUsePromptTokenCount"),
        ("input_tool_tokens", "toolUsePromptTokenCount"),
        ("cache_read_tokens", "cachedContentTokenCount"),
        ("output_tokens", "candidatesTokenCount"),
        ("output_tokens", "thoughtsTokenCount"),
        ("output_reasoning_tokens", "thoughtsTokenCount"),
    ]
    for modality in ("TEXT", "AUDIO", "IMAGE", "DOCUMENT", "VIDEO"):
        name = {"DOCUMENT": "image"}.get(modality, modality.lower())
        table += [
            (f"input_{name}_tokens", f"promptTokensDetails.{modality}.tokenCount"),
            (f"input_{name}_tokens", f"toolUsePromptTokensDetails.{modality}.tokenCount"),
            (f"input_{name}_tool_tokens", f"toolUsePromptTokensDetails.{modality}.tokenCount"),
            (f"cache_{name}_read_tokens", f"cacheTokensDetails.{modality}.tokenCount"),
            (f"output_{name}_tokens", f"candidatesTokensDetails.{modality}.tokenCount"),
        ]
    return Shape(tuple(table), total="totalTokenCount")


def _snake(path: str) -> str:
    """`promptTokensDetails.TEXT` as Google's Python SDK spells it: `prompt_tokens_details.TEXT`."""
    names = (
        part if part.isupper() else "".join(f"_{c.lower()}" if c.isupper() else c for c in part)
        for part in path.split(".")
    )
    return ".".join(names)


_GOOGLE = _google()
_GOOGLE_SDK = Shape(tuple((kind, _snake(path)) for kind, path in _GOOGLE.table), total="total_token_count")

# The first row that has one of its keys in the block names the format. Bare input_tokens are decided by the reader.
MARKS: tuple[tuple[tuple[str, ...], Shape], ...] = (
    (("billed_units",), COHERE),
    (("tokens",), _COHERE_TOKENS),
    (("inputTokens",), _CONVERSE),
    (("promptTokenCount", "candidatesTokenCount", "totalTokenCount"), _GOOGLE),
    (("prompt_token_count", "candidates_token_count", "total_token_count"), _GOOGLE_SDK),
    (("prompt_tokens",), CHAT),
    (
        ("cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation", "server_tool_use"),
        ANTHROPIC,
    ),
    (("input_tokens_details",), RESPONSES),
    (("pages_processed",), _OCR),
    (("seconds",), _SECONDS),
    (("search_units", "image_tokens"), _COHERE_UNITS),
)
