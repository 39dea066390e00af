"""Governed classes: an LLM or an embedding model becomes, as it stands, an object of a subclass whose calls pass a gate.

Methods set on the object would not do: a copy of it would carry them along, bound to the original.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

from maestro_core.boto import silent_boto

from ._data import asking
from ._models import LIMITS, packages
from ._passage import Passage, is_inside
from ._texts import Texts, listening
from .gate import exit_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from .gate import ExitBehavior, Gate

__all__ = ["Governance", "govern", "governance_of", "governed_class", "silent", "ungovern"]

_KEY = "_maestro_governance"
_CLIENTS = ("_client", "_aclient", "_async_client")


@dataclass(frozen=True, slots=True)
class Governance:
    """What is kept on a governed object.

    Args:
        gate: What its calls pass.
        exit_behavior: How an agent leaves that was not attached itself.
        plain: The class that it had.
        retries: How often its client sent a failed request again.
        fields: What was changed on it, to be put back.
        tickets: For whom it is governed; undone with the last of them.
    """

    gate: Gate
    exit_behavior: ExitBehavior
    plain: type
    retries: int
    fields: dict[str, Any]
    tickets: weakref.WeakSet[Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> Governance:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a ledger does not travel to other processes")


def governance_of(component: Any) -> Governance | None:
    """Return what is kept on a component, or None if it is not governed."""
    found = getattr(component, "__dict__", {}).get(_KEY)
    return found if isinstance(found, Governance) else None


def govern(
    component: Any, gate: Gate, exit_behavior: ExitBehavior, make: Callable[[type], type]
) -> Governance:
    """Let a component's calls pass a gate; again with another gate, that one takes over."""
    before = governance_of(component)
    if before is None:
        plain, retries, fields = type(component), *_silenced(component)
        object.__setattr__(component, "__class__", make(plain))
    else:
        plain, retries, fields = before.plain, before.retries, before.fields
    tickets = before.tickets if before is not None and before.gate is gate else weakref.WeakSet()
    found = Governance(gate, exit_behavior, plain, retries, fields, tickets)
    component.__dict__[_KEY] = found
    return found


def ungovern(component: Any) -> None:
    """Put a component back as it was."""
    found = governance_of(component)
    if found is None:
        return
    del component.__dict__[_KEY]
    object.__setattr__(component, "__class__", found.plain)
    for name, value in found.fields.items():
        setattr(component, name, value)


def silent(component: Any) -> tuple[Any, int]:
    """Return a copy of an LLM without retries of its own, as a governed one is, and how often it would have retried.

    Nothing governs the copy: whoever has it reserves.
    """
    found = governance_of(component)
    twin = component.model_copy()
    if found is not None:
        ungovern(twin)
    plain = type(twin)
    retries, _ = _silenced(twin)
    object.__setattr__(twin, "__class__", governed_class(plain))
    return twin, retries


def _silenced(component: Any) -> tuple[int, dict[str, Any]]:
    """Switch off the retries that a component and its clients make; return how many, and what was changed."""
    retries = getattr(component, "max_retries", None)
    if not isinstance(retries, int) or retries <= 0:
        return 0, {}
    private = component.__pydantic_private__ or {}
    clients = {name: private[name] for name in _CLIENTS if private.get(name) is not None}
    quiet = {name: _quiet(component, client) for name, client in clients.items()}
    if None in quiet.values():
        return 0, {}  # not a client of a kind that can be told; its attempts are held for all at once
    if "bedrock_converse" in packages(component) and private.get("_config") is not None:
        # Its asynchronous clients are made for each call.
        quiet["_config"] = private["_config"].merge(type(private["_config"])(retries={"max_attempts": 0}))
    before = {"max_retries": retries}
    before |= {name: private[name] for name in (*_CLIENTS, *quiet) if name in private}
    component.max_retries = 0
    for name, client in quiet.items():
        setattr(component, name, client)
    return retries, before


def _quiet(component: Any, client: Any) -> Any:
    """Return a client that sends nothing again by itself, or None if this one cannot be made to."""
    if hasattr(client, "with_options"):
        return client.with_options(max_retries=0)
    try:
        if "google_genai" in packages(component):  # it retries only if its maker's options say so
            return client if client._api_client._http_options.retry_options is None else None  # noqa: SLF001
        return silent_boto(client) if "bedrock_converse" in packages(component) else None
    except AttributeError:  # of the user's own making
        return None


# -- the classes ------------------------------------------------------------------------------------------------------

_governed: dict[type, type] = {}
# Each is one request, and is asked for what no cache has.
_EMBEDDING = ("query_embedding", "text_embedding", "text_embeddings")


def governed_class(cls: type) -> type:
    """Return the governed subclass of a class of LLMs or embedding models; one for each class."""
    if cls not in _governed:
        _governed[cls] = _subclass(cls, _texts(cls) if issubclass(cls, BaseEmbedding) else _chats(cls))
    return _governed[cls]


def _chats(cls: type) -> dict[str, Any]:
    ways = {before + name: way for before, way in _WAYS.items() for name in ("chat", "complete")}
    body: dict[str, Any] = {name: _gated(cls, name, way, Passage) for name, way in ways.items()}
    if hasattr(cls, "_use_chat_completions"):
        body["_get_model_kwargs"] = _obeying(cls)
    return body | asking(cls)


def _texts(cls: type) -> dict[str, Any]:
    ways = {f"_{a}get_{name}": f"{a}run" for a in ("", "a") for name in _EMBEDDING}
    body: dict[str, Any] = {name: _gated(cls, name, way, Texts) for name, way in ways.items()}
    if cls.__module__.startswith("llama_index.embeddings.openai"):
        body |= {name: _heard(cls, name) for name in ("_get_client", "_get_aclient") if hasattr(cls, name)}
    return body


def _heard(cls: type, name: str) -> Callable[..., Any]:
    """Return a method that gives out the client, listened to."""
    plain = getattr(cls, name)

    def method(self: Any) -> Any:
        return listening(plain(self))

    return method


def _subclass(cls: type, body: dict[str, Any]) -> type:
    def reduce(self: Any, protocol: Any) -> Any:
        # Elsewhere it is what it was before: its Maestro stays here.
        plain = governance_of(self)
        twin = cls.model_copy(self)  # type: ignore[attr-defined]
        if plain is not None:
            ungovern(twin)
        return twin.__reduce_ex__(protocol)

    for method in body.values():
        # LlamaIndex would draw a span around each of them, besides the one of the class's own method.
        setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    named = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls)(cls.__name__, (cls,), {**named, **body, "__reduce_ex__": reduce})


_PAYLOADS = ("messages", "prompt", "query", "text", "texts")
_WAYS = {"": "run", "stream_": "stream", "a": "arun", "astream_": "astream"}


def _gated(cls: type, name: str, way: str, kind: type[Passage]) -> Callable[..., Any]:
    """Return a method that sends the class's own through the gate."""
    plain = getattr(cls, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _begun(self, plain, args, kwargs, kind)
        if begun is None:
            return plain.__get__(self, type(self))(*args, **kwargs)
        governance, passage = begun
        return getattr(governance.gate, way)(passage, exit_here(governance.exit_behavior))

    async def amethod(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)  # the stream itself, of a stream that passes the gate
        return await result if isawaitable(result) else result

    chosen = amethod if way.startswith("a") else method
    chosen.__name__, chosen.__qualname__, chosen.__doc__ = name, f"{cls.__qualname__}.{name}", plain.__doc__
    return chosen


def _begun(
    llm: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], kind: type[Passage]
) -> tuple[Governance, Passage] | None:
    """Return what a call has to pass, or None if it is part of one that has passed already."""
    governance = governance_of(llm)
    named = next((name for name in _PAYLOADS if name in kwargs), None)
    if governance is None or is_inside(governance.gate.maestro, llm) or not (args or named):
        return None
    rest = {key: value for key, value in kwargs.items() if args or key != named}
    passage = kind(
        maestro=governance.gate.maestro,
        llm=llm,
        # LlamaIndex looks at the signature in each call; that of an unbound method takes it half as long again.
        method=plain.__get__(llm, type(llm)),
        payload=args[0] if args else kwargs[named or ""],
        arguments=args[1:],
        kwargs=rest,
        retries=governance.retries,
    )
    return governance, passage


def _obeying(cls: type) -> Callable[..., dict[str, Any]]:
    """Return OpenAI's way from its fields to a request, in which the limit of a call wins over the constructor's.

    Streams are asked to say what they used.
    """
    plain = cls._get_model_kwargs  # type: ignore[attr-defined]

    def method(self: Any, **kwargs: Any) -> dict[str, Any]:
        request: dict[str, Any] = plain(self, **kwargs)
        asked = [kwargs[name] for name in LIMITS if isinstance(kwargs.get(name), int)]
        if asked:
            there = [name for name in LIMITS if name in request]
            kept = next((name for name in there if name in kwargs), there[0] if there else "max_tokens")
            request = {name: value for name, value in request.items() if name not in LIMITS}
            request[kept] = min(asked)
        if request.get("stream"):
            request.setdefault("stream_options", {"include_usage": True})
        return request

    return method
