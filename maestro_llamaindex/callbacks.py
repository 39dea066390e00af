"""The door for users of LlamaIndex's `CallbackManager`: it can stop a call, and cannot wait or change a request."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index_instrumentation.span import active_span_id

from maestro_core import Maestro
from maestro_core.failures import classify

from ._classes import governance_of
from ._convert import has_usage, to_call, to_reply, to_usage
from ._models import attempts_of, streams_silently
from ._passage import is_inside
from ._peers import found_span
from ._spans import call_here, run_here, watch
from ._texts import to_embedding_call

if TYPE_CHECKING:
    from maestro_core.types import Call

__all__ = ["MaestroCallbackHandler"]

_log = logging.getLogger("maestro")


class MaestroCallbackHandler(BaseCallbackHandler):
    """Prices, attributes and caps the model calls of every LLM and embedding model whose `CallbackManager` has it.

    `Settings.callback_manager = CallbackManager([MaestroCallbackHandler()])`, before the models are made. It cannot
    change a request, so under a cap it holds the most that the request may cost: give models an output limit. It
    cannot wait for money that other calls hold: `attach` can. Beside `attach`, a call counts once.

    Args:
        maestro: The instance to use; `Maestro.default()`, built from settings on first use, if None.

    Raises:
        CapExceeded: Out of the model's method, before anything is sent.
        PriceNotFound: Likewise, under a cap, for a model without a known price.
    """

    def __init__(self, maestro: Maestro | None = None) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        if maestro is not None:
            self.maestro = maestro
        watch(self)

    @cached_property
    def maestro(self) -> Maestro:
        """The instance that this handler reports to."""
        return Maestro.default()

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",  # noqa: ARG002 - the signature is LlamaIndex's
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        """Reserve for a model's call; raise if a cap does not admit it."""
        if event_type in {CBEventType.LLM, CBEventType.EMBEDDING}:
            call = self._call(payload or {}, event_id)
            if call is not None:
                found = found_span(active_span_id.get() or "")
                self.maestro.runs.reserve(event_id, run_here(), call, found=found)
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Settle a call at what the provider reported, or at its hold; release it if it provably was not billed."""
        if event_type not in {CBEventType.LLM, CBEventType.EMBEDDING}:
            return
        try:
            self._end(payload or {}, event_id)
        except Exception:  # noqa: BLE001 - the answer is good; the hold stands until it is presumed spent
            _log.exception("Maestro could not settle a LlamaIndex call")

    def start_trace(self, trace_id: str | None = None) -> None:
        """Nothing to do: LlamaIndex's spans tell more."""

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        """Likewise."""

    def _call(self, payload: dict[str, Any], event_id: str) -> Call | None:
        """Return the call that begins, or None if another door, or another call, has it in hand."""
        here = call_here()
        if here is None or here.claimed or is_inside(self.maestro):
            return None
        model = here.instance
        if isinstance(model, BaseEmbedding):
            governed = governance_of(model)
            if governed is not None and governed.gate.maestro is self.maestro:
                return None
            where = self.maestro.runs.whom(event_id, run_here())
            return to_embedding_call(model, here.batch(), where=where, attempts=attempts_of(model))
        if isinstance(getattr(model, "llm", None), BaseLLM):  # one that only translates for another
            return None
        here.claim()
        asked = payload.get(EventPayload.ADDITIONAL_KWARGS)
        arguments: dict[str, Any] = asked if isinstance(asked, dict) else {}
        if here.streams and streams_silently(model):
            arguments.setdefault("stream_options", {"include_usage": True})
        said = payload.get(EventPayload.MESSAGES)
        prompt = said if said is not None else payload.get(EventPayload.PROMPT, "")
        where = self.maestro.runs.whom(event_id, run_here())
        return to_call(model, prompt, arguments, where=where, governed=False, attempts=attempts_of(model))

    def _end(self, payload: dict[str, Any], event_id: str) -> None:
        runs = self.maestro.runs
        call = runs.call(event_id)
        if call is None:
            return
        error = payload.get(EventPayload.EXCEPTION)
        response = payload.get(EventPayload.RESPONSE) or payload.get(EventPayload.COMPLETION)
        if error is not None:
            why = classify(error).unbilled
            if why:
                runs.release(event_id, why, error)
            else:
                runs.settle(event_id, None, error=error, reason="ended without usage")
            return
        usage = to_usage(call, response) if response is not None and has_usage(response) else None
        reason = "" if usage else "the provider reported no usage"
        runs.settle(event_id, usage, reply=to_reply(response), reason=reason)
