"""LlamaIndex's requests and answers as Maestro's calls and usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maestro_core import Usage
from maestro_core.exits import CUT
from maestro_core.prefixes import History
from maestro_core.prices.caching import asked_writes
from maestro_core.types import Call

from ._models import base_url, beside, least_output_tokens, model_name, own_limit, provider_of, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from maestro_core.types import Attribution

__all__ = ["SLACK", "data_of", "has_usage", "to_call", "to_input", "to_reply", "to_usage", "was_cut"]

# What integrations leave on an answer's message for their users; no provider is sent it.
_KEPT_AT_HOME = frozenset({"maestro", "stop_reason", "thinking_delta", "usage"})
# What an integration may add to a request beyond the messages and tools: names, markers, an empty system block.
SLACK = " " * 256
_USAGE_KEYS = ("usage", "usage_metadata", "usageMetadata", "x_groq")


def to_call(
    llm: Any,
    payload: Sequence[Any] | str,
    kwargs: dict[str, Any],
    *,
    where: Attribution,
    governed: bool,
    attempts: int = 1,
) -> Call:
    """Return the call that a method of an LLM will make.

    Args:
        llm: The model.
        payload: Messages, or the text of a prompt.
        kwargs: The arguments of the call.
        where: Whom it is for.
        governed: Whether `attach` looks after the model.
        attempts: How often the model may send it by itself.
    """
    name = model_name(llm)
    extra = read(llm, "additional_kwargs") or {}
    settings = {**extra, **kwargs}
    sent = [value for key in ("tools", "mcp_servers", "generation_config") if (value := read(llm, key))]
    return Call(
        provider=provider_of(llm),
        model=name,
        input=[SLACK, {"cache_idx": read(llm, "cache_idx")}, beside(llm, settings)],
        history=to_input(payload),
        max_output_tokens=own_limit(llm, kwargs, governed=governed),
        tools=[*sent, *data_of(settings)],
        least_output_tokens=least_output_tokens(llm),
        n=int(settings.get("n") or 1),
        attempts=attempts,
        tier=settings.get("service_tier") or read(llm, "service_tier"),
        attribution=where,
        name=f"{type(llm).__name__} {name}",
        base_url=base_url(llm),
    )


def data_of(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the arguments of a request that are sent as JSON: tools, schemas, options."""
    for value in settings.values():
        if value and (isinstance(value, dict | list | tuple) or hasattr(value, "model_json_schema")):
            yield value


def to_input(payload: Sequence[Any] | str) -> History:
    """Return messages as plain data that holds everything a provider is sent of them; only measured."""
    if isinstance(payload, str):
        return History([{"role": "user", "content": payload}])
    return History([_plain(message) for message in payload])


def _plain(message: Any) -> dict[str, Any]:
    fields = message.__dict__
    content, calls = [], False
    for block in fields.get("blocks") or ():
        kind = block.block_type
        calls = calls or kind == "tool_call"
        content.append(block.text if kind == "text" else _block(kind, block))
    more = fields.get("additional_kwargs") or {}
    if more:
        more = {
            name: value
            for name, value in more.items()
            if name not in _KEPT_AT_HOME and not (calls and name == "tool_calls")  # the blocks say the same
        }
    return {"role": fields["role"]._value_, "content": content, "more": more}


def _block(kind: str, block: Any) -> Any:
    if kind == "tool_call":
        called = {"name": block.tool_name, "input": block.tool_kwargs, "id": block.tool_call_id}
        return {"type": "tool_call", **called}
    if kind in {"image", "audio", "video", "document"}:
        return {"type": kind}  # how many tokens they are does not follow from their bytes
    return block.model_dump()


def to_reply(response: Any) -> dict[str, Any] | None:
    """Return what the model answered, as it will stand in the next call's messages."""
    message = getattr(response, "message", None)
    return _plain(message) if message is not None else None


def has_usage(response: Any) -> bool:
    """Return whether an answer, or a chunk of one, says what it used. Cheap: it is asked for every chunk."""
    raw = response.raw
    if isinstance(raw, dict):
        metadata = raw.get("metadata")
        places: list[Any] = [raw.get(key) for key in _USAGE_KEYS]
        places.append(metadata.get("usage") if isinstance(metadata, dict) else None)
    else:
        places = [getattr(raw, key, None) for key in _USAGE_KEYS]
    return any(place is not None for place in places) or bool(response.additional_kwargs.get("usage"))


def to_usage(call: Call, response: Any) -> Usage | None:
    """Return what the provider reported, or None if it reported nothing that can be trusted."""
    for payload in (response.raw, {"usage": response.additional_kwargs.get("usage")}):
        try:
            usage = Usage.parse(call.provider, payload)
        except ValueError:
            continue
        # Some streams report zeros where they mean "unknown"; no call has an empty input.
        if usage.input_tokens and not _hides_cache(call, response.raw) and not _goes_on(response.raw):
            return usage
    return None


def _hides_cache(call: Call, raw: Any) -> bool:
    """Return whether Claude may have used its cache without saying so: a stream's first event, which does, is dropped."""
    if not isinstance(raw, dict) or raw.get("type") != "message_delta":
        return False
    used = getattr(raw.get("usage"), "cache_creation_input_tokens", None)
    return used is None and asked_writes(call) != "none"


def _goes_on(raw: Any) -> bool:
    """Return whether Gemini goes on: its streams say all along what was used so far, and LlamaIndex may drop their end."""
    return isinstance(raw, dict) and "usage_metadata" in raw and raw.get("finish_reason", raw) is None


def was_cut(response: Any) -> bool:
    """Return whether an answer ended because its output limit was reached."""
    raw = response.raw
    found = [response.additional_kwargs.get("stop_reason")]
    message = getattr(response, "message", None)
    if message is not None:
        found.append(message.additional_kwargs.get("stop_reason"))
    found += [_get(choice, "finish_reason") for choice in _get(raw, "choices") or ()]
    found += [_get(raw, name) for name in ("stop_reason", "stopReason", "finish_reason", "done_reason")]
    found += [_get(_get(raw, "delta"), "stop_reason"), _get(_get(raw, "messageStop"), "stopReason")]
    found.append(_get(_get(raw, "incomplete_details"), "reason"))
    return not CUT.isdisjoint({str(getattr(reason, "value", reason)) for reason in found if reason})


def _get(place: Any, name: str) -> Any:
    return place.get(name) if isinstance(place, dict) else getattr(place, name, None)
