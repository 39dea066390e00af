"""Upper bounds of what a request can take in and a model can put out."""

from __future__ import annotations

import json
from collections import UserDict, UserList
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_core.estimate import context_window, input_bound, output_ceiling

TEXT = st.text(max_size=200)
CONTENT = TEXT | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=4)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": CONTENT}), max_size=6
)  # fmt: skip
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}


def bytes_of(content) -> int:
    """The tokens of a vocabulary that has nothing but single bytes: the most that any byte-level one can need."""
    if isinstance(content, str):
        return len(content.encode("utf-8", "surrogatepass"))
    return sum(bytes_of(part["content"] if "content" in part else part["text"]) for part in content)


@given(messages=MESSAGES)
def test_text_is_bounded_by_its_bytes(messages):
    framing = 5 * len(messages) + 3  # as OpenAI's cookbook counts it
    assert input_bound(messages) >= bytes_of(messages) + framing


@given(text=TEXT, role=st.sampled_from(["user", "tool"]))
def test_the_short_way_for_plain_messages_counts_as_the_long_one(text, role):
    plain = {"role": role, "content": text}
    named = plain | {"name": ""}
    assert input_bound(plain) == input_bound(named) - len("name") - 6
    assert input_bound({"role": role, "content": [text]}) == input_bound(plain) + 2


KEYS = st.sampled_from(["role", "type", "content", "args", "tool_calls", "more", "file_id", "é"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT | st.sampled_from(["text", "tool_use", "image", "file"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)


def wrapped(value):
    """Return the same with nothing in it that has a short way."""
    if isinstance(value, dict):
        return UserDict({name: wrapped(part) for name, part in value.items()})
    return UserList([wrapped(part) for part in value]) if isinstance(value, list) else value


def without_json(value):
    """Return the same with text where JSON is sent: a mapping of another kind is no JSON."""
    if isinstance(value, dict):
        sent = {"args", "tool_calls"}
        return {name: str(part) if name in sent else without_json(part) for name, part in value.items()}
    return [without_json(part) for part in value] if isinstance(value, list) else value


@given(value=PLAIN)
def test_plain_data_counts_as_any_other_mapping_or_sequence_of_the_same(value):
    value = without_json(value)
    assert input_bound(value) == input_bound(wrapped(value))


def test_nothing_takes_room_too():
    assert input_bound({"more": {}}) - input_bound({"more": ""}) == len("{}")
    assert input_bound({"more": None}) - input_bound({"more": ""}) == len("null,")
    assert input_bound(["a", "b"]) - input_bound([]) == len("a, b, ")


def test_the_type_of_a_block_may_be_anything():
    assert input_bound({"type": ["string", "null"]}) > input_bound({"type": []})


@given(value=PLAIN)
def test_what_is_sent_as_json_counts_as_its_json(value):
    assert input_bound({"args": value}) - input_bound({"args": None}) == len(json.dumps(value)) - len("null")


@given(text=TEXT)
def test_all_the_ways_to_say_the_same(text):
    least = bytes_of(text)
    message = SimpleNamespace(content=text, tool_calls=None, additional_kwargs={})
    for content in (text, [text], (text,), {"role": "user", "content": text}, message, [[message]]):
        bound = input_bound(content)
        assert least < bound < least + 200


def test_history_of_tool_calls_counts():
    arguments = {"query": "été " * 50}
    plain = input_bound([{"role": "assistant", "content": ""}])
    block = {"type": "tool_use", "name": "search", "input": arguments}
    called = input_bound([{"role": "assistant", "content": [block]}])
    assert called - plain > len(
        '{"query": "' + r"\u00e9t\u00e9 " * 50
    )  # as ASCII JSON, the longest way to send it


def test_tools_count_with_their_hidden_prompt():
    schema = {"name": "f", "description": "d" * 100, "parameters": {"type": "object"}}
    assert input_bound("x", tools=[schema]) > input_bound("x") + 100 + 735 + 530

    def lookup(city: str) -> str:
        """Return the weather."""

    assert input_bound("x", tools=[lookup]) > input_bound("x", tools=[]) + len("Return the weather.")


def test_langchain_messages_and_tools():
    messages = pytest.importorskip("langchain_core.messages")
    tools = pytest.importorskip("langchain_core.tools")

    @tools.tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    history = [
        messages.SystemMessage("s" * 100),
        messages.HumanMessage([{"type": "text", "text": "h" * 100}]),
        messages.AIMessage("a" * 100, tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "call_1"}],
                           usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}),
        messages.ToolMessage("t" * 100, tool_call_id="call_1"),
    ]  # fmt: skip
    bound = input_bound(history)
    assert 400 < bound < 800
    assert input_bound(history, tools=[add]) > bound + len("Add two numbers.")


@pytest.mark.parametrize(
    ("provider", "model", "most"),
    [
        ("openai", "gpt-4o", 1_445),
        ("openai", "gpt-4o-mini", 48_169),
        ("openai", "gpt-5-mini", 3_779),
        ("openai", "", 48_169),
        ("anthropic", "claude-sonnet-4-5", 1_640),
        ("anthropic", "claude-opus-5", 4_784),
        ("aws", "us.anthropic.claude-opus-5", 4_784),
        ("google", "gemini-3-flash-preview", 2_240),
    ],
)
def test_an_image_costs_what_the_provider_publishes_not_its_base64(provider, model, most):
    message = [{"role": "user", "content": [IMAGE]}]
    assert most <= input_bound(message, provider=provider, model=model) <= most + 200


@pytest.mark.parametrize(
    "content",
    [
        [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}],
        [{"role": "user", "content": [{"type": "document", "source": {"type": "base64", "data": "JVBERi"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}],
        [{"role": "user", "parts": [{"fileData": {"fileUri": "gs://bucket/a.mp4"}}]}],
        [{"role": "user", "parts": [{"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}}]}],
        {"previous_response_id": "resp_1", "input": "go on"},
        object(),
    ],
)
def test_content_without_a_known_size_has_no_bound(content):
    assert input_bound(content, provider="openai", model="gpt-5") is None


def test_images_of_providers_that_publish_no_limit_have_no_bound():
    message = [{"role": "user", "content": [IMAGE]}]
    assert input_bound(message, provider="mistral", model="pixtral-12b") is None
    assert input_bound(message, provider="google", model="gemini-2.5-pro") is None
    assert input_bound(message) is None


def test_a_text_document_is_text():
    source = {"type": "text", "media_type": "text/plain", "data": "d" * 1_000}
    bound = input_bound([{"role": "user", "content": [{"type": "document", "source": source}]}])
    assert 1_000 < bound < 1_300


@pytest.mark.parametrize(
    ("provider", "model", "tokens"),
    [
        ("openai", "gpt-5-mini", 128_000),
        ("openai", "gpt-5-pro", 272_000),
        ("openai", "gpt-4.1", 32_768),
        ("openai", "gpt-4o-2024-08-06", 16_384),
        ("openai", "o3", 100_000),
        ("azure", "gpt-5-mini", 128_000),
        ("openrouter", "openai/o3", 100_000),
        ("anthropic", "claude-opus-4-1", 32_000),
        ("anthropic", "claude-opus-4-1-20250805", 32_000),
        ("anthropic", "claude-sonnet-4-5-20250929", 64_000),
        ("anthropic", "claude-sonnet-4-6", 128_000),
        ("anthropic", "claude-opus-5", 128_000),
        ("aws", "us.anthropic.claude-opus-4-5-20251101-v1:0", 64_000),
        ("google", "gemini-2.5-flash", 65_536),
        ("groq", "openai/gpt-oss-120b", 131_072),  # no maximum in the table: the context window
        ("anthropic", "claude-sonnet-9-9", None),
        ("nobody", "gpt-5", None),
    ],
)
def test_output_ceilings(provider, model, tokens):
    assert output_ceiling(provider, model) == tokens


def test_context_windows():
    assert context_window("openai", "gpt-5") == 400_000
    assert context_window("openai", "no-such-model") is None
    assert context_window("nobody", "gpt-5") is None
