"""How many tokens a call can have at most, before it is sent: without a tokenizer, in microseconds.

Text: every token of a byte-level vocabulary covers at least one byte, so the UTF-8 length is a bound, whatever the
language. That holds for OpenAI's vocabularies (and was checked against them), and for vocabularies with byte fallback,
as the other makers publish them where they do. What a provider adds around the text is a margin on top.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any

from .errors import PriceNotFound

__all__ = ["context_window", "input_bound", "output_ceiling"]

# Framing of a message: OpenAI's cookbook counts 3 to 4 tokens, and 1 for a name; chat templates of open models up to 10.
_MESSAGE = 16
# Around a request: the priming of the reply, a date or an identity line that some models are given.
_REQUEST = 64
# The hidden prompt that makes tools work: Anthropic documents 159 to 530 tokens for its models, up to 735 more for its
# own tools; the others publish nothing.
_TOOL_PROMPT = 1_536
# Around each tool, and each call of one in the history: names, ids and markers.
_TOOL = 32

# What a message sends. Everything else that frameworks keep on it (usage, artifacts, metadata) stays at home.
_MESSAGE_FIELDS = ("content", "tool_calls", "additional_kwargs", "name", "tool_call_id")
# Structures that are sent as JSON, escapes and all.
_JSON_FIELDS = frozenset({"args", "input", "parameters", "input_schema", "tool_calls"})
_TOOL_BLOCKS = frozenset({"function", "function_call", "tool_call", "tool_result", "tool_use"})
# Content that is not in the request itself; its size is not known here.
_REFERENCES = frozenset({
    "previous_response_id", "file_id", "fileId", "file_uri", "fileUri", "file_url", "file_data", "fileData", "container",
})  # fmt: skip
# Blocks whose tokens do not follow from their bytes.
_UNKNOWN_BLOCKS = frozenset({
    "audio", "document", "file", "input_audio", "input_file", "item_reference", "video", "video_url",
})  # fmt: skip
_IMAGE_BLOCKS = frozenset({"image", "image_url", "input_image"})

# The most tokens of one image, by provider and model; the first pattern that is found in the model's name.
# OpenAI: 85 + 170 for each of at most 8 tiles (guide "Images and vision"); gpt-4o-mini 2,833 + 5,667 each; small models
# 1,536 patches times at most 2.46; from gpt-5.4 on 10,000 patches times 1.2 in original detail.
# Anthropic: 1,568 patches of 28 x 28 pixels; from Opus 4.7 on 2,576 pixels on the long edge, at most 4,784 patches.
# Google: from Gemini 3 on a budget per image, 2,240 at the highest resolution; before, large images are cut into any
# number of tiles.
_IMAGE_TOKENS: dict[str, tuple[tuple[str, int], ...]] = {
    "openai": (
        (r"gpt-4o-mini", 48_169),
        (r"gpt-4\.1-(mini|nano)|o4-mini|gpt-5(\.4)?-(mini|nano)", 3_779),
        (r"gpt-4|gpt-5(-2|$)|gpt-5\.[01]|o[13]", 1_445),
        (r"gpt-(5\.[2-9]|[6-9])", 12_000),
        (r"", 48_169),
    ),
    "anthropic": (
        (r"claude-(3|opus-4-[0-6]|sonnet-4|haiku-4)", 1_640),
        (r"", 4_784),
    ),
    "google": ((r"gemini-([3-9]|\d\d)", 2_240),),
}

# The most output tokens of one completion, where the context window would be far too much. The numbers are the makers'
# model pages; patterns are tried in order on the price book's name of the model.
_OUTPUT_TOKENS: tuple[tuple[str, int], ...] = (
    (r"gpt-5-pro", 272_000),
    (r"gpt-(5|6)", 128_000),
    (r"gpt-4\.1", 32_768),
    (r"gpt-4o-2024-05-13", 4_096),
    (r"gpt-4o|chatgpt-4o|gpt-audio", 16_384),
    (r"gpt-4-(turbo|vision)|gpt-3\.5", 4_096),
    (r"o1-mini", 65_536),
    (r"o1-preview", 32_768),
    (r"(^|[./])o[134](-|$)", 100_000),
    (r"claude-(2|v1|3-haiku|3-opus|3-sonnet)", 4_096),
    (r"claude-3-5", 8_192),
    (r"claude-3-7", 128_000),
    (r"claude-(opus-4-[01](\D|$)|4-opus|opus-4-2025)", 32_000),
    (r"claude-(sonnet-4-[05](\D|$)|4-sonnet|sonnet-4-2025|haiku-4-5|opus-4-5)", 64_000),
    (r"claude-", 128_000),
    (r"gemini-(1\.|2\.0)", 8_192),
    (r"gemini-(2\.5|3)", 65_536),
)


def input_bound(
    content: object, *, tools: Sequence[object] = (), provider: str = "", model: str = ""
) -> int | None:
    """Return the most input tokens that a request can have, or None if they have no bound here.

    Args:
        content: Text, messages, or any nesting of them; dicts, and objects of LangChain and LlamaIndex.
        tools: Tool definitions: JSON schemas, or objects with `name`, `description` and `args`.
        provider: Provider id; it decides what an image can cost at most.
        model: The model; without it, the provider's dearest image counts.

    Returns:
        Tokens; None where content is sent by reference (file ids, `previous_response_id`), or is a document, audio,
        video, or an image of a provider that publishes no limit. Callers then use the model's context window.
    """
    counter = _Counter(provider, model)
    total = counter.tokens(content) + _MESSAGE
    for tool in tools:
        total += counter.tool(tool) + _TOOL
    if counter.unbounded:
        return None
    return total + _REQUEST + (_TOOL_PROMPT if tools else 0)


@lru_cache(maxsize=4096)
def output_ceiling(provider: str, model: str) -> int | None:
    """Return the most output tokens of one completion: of the model, else its context window, else None."""
    name = _book_name(provider, model)
    if name is None:
        return None
    for pattern, tokens in _OUTPUT_TOKENS:
        if re.search(pattern, name):
            return tokens
    return context_window(provider, model)


@lru_cache(maxsize=4096)
def context_window(provider: str, model: str) -> int | None:
    """Return the most tokens that the model takes in one request, or None if the price book does not say."""
    from .prices.names import find

    try:
        return find(provider, model).model.context_window
    except PriceNotFound:
        return None


def _book_name(provider: str, model: str) -> str | None:
    from .prices.names import find

    try:
        return find(provider, model).model.id.lower()
    except PriceNotFound:
        return None


_NONE = len(repr(None)) + 1
_EMPTY = len("{}")
_EMPTY_JSON: dict[type, int] = {type(None): len("null"), list: len("[]"), dict: len("{}")}
_NUMBERS = frozenset({bool, int, float})
_as_json = json.JSONEncoder(default=str).encode
_PLAIN_MESSAGE = len("role") + len("content") + 2 * 6 + _MESSAGE


class _Counter:
    """Adds up bytes; notes when something has no bound."""

    def __init__(self, provider: str, model: str) -> None:
        self.provider = provider
        self.model = model
        self.unbounded = False

    def tokens(self, obj: Any) -> int:
        """Return the most tokens that a value can become."""
        kind = type(obj)  # the checks against abstract classes below take longer than the counting
        if kind is dict:
            return self._mapping(obj)
        if kind is list or kind is tuple:
            return self._sequence(obj)
        if isinstance(obj, str):
            return len(obj) if obj.isascii() else len(obj.encode("utf-8", "surrogatepass"))
        if obj is None or kind in _NUMBERS:
            return len(repr(obj)) + 1
        fields = getattr(obj, "__dict__", None)
        if isinstance(fields, dict) and ("content" in fields or "blocks" in fields):
            return self._message(fields)
        if isinstance(obj, Mapping):
            return self._mapping(obj)
        if isinstance(obj, Sequence | AbstractSet) and not isinstance(obj, bytes | bytearray | memoryview):
            return self._sequence(obj)
        return self._object(obj)

    def tool(self, tool: object) -> int:
        """Return the most tokens of a tool's definition: the length of its JSON, escapes included."""
        if isinstance(tool, Mapping):
            return _json_length(tool)
        return _json_length(_definition(tool))

    def _sequence(self, parts: Collection[Any]) -> int:
        total = 2 * len(parts)
        for part in parts:
            if type(part) is str and part.isascii():
                total += len(part)
            elif type(part) is dict:
                total += self._mapping(part)
            else:
                total += self.tokens(part)
        return total

    def _mapping(self, block: Mapping[Any, Any]) -> int:
        if len(block) == 2 and "role" in block and isinstance(text := block.get("content"), str):  # noqa: PLR2004
            # Most of a long conversation. What follows says the same of it, and takes three times as long.
            return self.tokens(text) + self.tokens(block["role"]) + _PLAIN_MESSAGE
        kind = block.get("type")
        if not isinstance(kind, str):  # in a JSON schema it may be a list
            kind = None
        if kind in _IMAGE_BLOCKS or "inlineData" in block or "inline_data" in block:
            return self._image(block)
        elsewhere = kind in _UNKNOWN_BLOCKS and not _is_plain_text(block)
        if elsewhere or (not _REFERENCES.isdisjoint(block) and any(map(block.get, _REFERENCES))):
            self.unbounded = True
            return 0
        total = 0
        for key, value in block.items():
            if key in _JSON_FIELDS:
                size = _json_length(value)
            elif value is None:
                size = _NONE
            elif type(value) is str and value.isascii():
                size = len(value)
            elif type(value) is dict and not value:
                size = _EMPTY
            else:
                size = self.tokens(value)
            # 6: quotes, colon, comma and spaces of each pair
            total += size + (len(key) if type(key) is str else len(str(key))) + 6
        return total + (_MESSAGE if "role" in block or kind in _TOOL_BLOCKS else _EMPTY)

    def _message(self, fields: Mapping[str, Any]) -> int:
        """A message of LangChain, or of LlamaIndex (where `content` only repeats the text of `blocks`)."""
        total = _MESSAGE
        blocks = fields.get("blocks")
        if isinstance(blocks, list):
            total += sum(map(self._block, blocks))
        else:
            total += self.tokens(fields["content"])
        if calls := fields.get("tool_calls"):
            total += _json_length(calls) + _TOOL * len(calls)
        if extra := fields.get("additional_kwargs"):
            total += _json_length(extra)
        for name in ("name", "tool_call_id"):
            if text := fields.get(name):
                total += self.tokens(text)
        return total

    def _object(self, obj: object) -> int:
        if isinstance(obj, bytes | bytearray | memoryview):
            return len(obj) * 4 // 3 + 4  # as base64
        content = getattr(obj, "content", None)
        if content is not None:
            return self._message({name: getattr(obj, name, None) for name in _MESSAGE_FIELDS})
        for dump in ("model_dump", "to_dict"):
            if callable(make := getattr(obj, dump, None)):
                return self.tokens(make())
        self.unbounded = True  # whatever it is, its size on the wire is not known
        return 0

    def _block(self, block: object) -> int:
        kind = getattr(block, "block_type", "text")
        if kind == "image":
            return self._image({})
        if kind in _UNKNOWN_BLOCKS:
            self.unbounded = True
            return 0
        text = getattr(block, "text", None)
        return self.tokens(text) + 2 if isinstance(text, str) else self.tokens(_dumped(block))

    def _image(self, block: Mapping[Any, Any]) -> int:
        media = block.get("inlineData") or block.get("inline_data") or {}
        mime = str(_get(media, "mimeType") or _get(media, "mime_type") or "image/")
        most = None if not mime.startswith("image/") else _image_tokens(self.provider, self.model)
        if most is None:
            self.unbounded = True
            return 0
        return most + 2 * _MESSAGE


def _is_plain_text(block: Mapping[Any, Any]) -> bool:
    """Whether a document is plain text that stands in the request (Anthropic)."""
    source = block.get("source")
    return isinstance(source, Mapping) and source.get("type") in {"text", "content"}


def _json_length(value: object) -> int:
    """Return the length of a value as JSON with every character outside ASCII escaped: the longest form it is sent in."""
    if not value and (known := _EMPTY_JSON.get(type(value))):
        return known
    return len(_as_json(value))


def _definition(tool: object) -> object:
    """Return what a framework sends of a tool object, or more."""
    metadata = getattr(tool, "metadata", None)
    if callable(make := getattr(metadata, "to_openai_tool", None)):  # LlamaIndex
        return make()
    if isinstance(tool, type):
        schema: Any = tool
    else:  # LangChain; `tool_call_schema` leaves out arguments that are injected
        schema = getattr(tool, "tool_call_schema", None) or getattr(tool, "args_schema", None)
    if isinstance(schema, type) and callable(make := getattr(schema, "model_json_schema", None)):
        schema = make()
    named = (getattr(tool, "name", None) or getattr(tool, "__name__", ""), getattr(tool, "description", None))
    plain = (getattr(tool, "__doc__", None), getattr(tool, "__annotations__", None)) if schema is None else ()
    return [*named, schema, *plain]


def _get(obj: object, key: str) -> object:
    return obj.get(key) if isinstance(obj, Mapping) else getattr(obj, key, None)


def _dumped(block: object) -> object:
    dump = getattr(block, "model_dump", None)
    return dump() if callable(dump) else block


@lru_cache(maxsize=1024)
def _image_tokens(provider: str, model: str) -> int | None:
    from .prices.names import provider_id

    try:
        maker = provider_id(provider) if provider else ""
    except PriceNotFound:
        maker = provider
    if "claude" in model.lower():
        maker = "anthropic"
    elif maker == "azure":
        maker = "openai"
    for pattern, tokens in _IMAGE_TOKENS.get(maker, ()):
        if re.search(pattern, model.lower()) and (model or not pattern):
            return tokens
    return None
