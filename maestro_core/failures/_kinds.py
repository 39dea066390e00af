"""The kinds of failure, and what is done about each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TREATMENTS", "Breaker", "FailureKind", "Treatment"]

FailureKind = Literal[
    "rate_limited",
    "quota",
    "overloaded",
    "server_error",
    "timeout",
    "connection",
    "authentication",
    "permission",
    "not_found",
    "bad_request",
    "unsupported",
    "context_overflow",
    "content_policy",
    "cancelled",
    "cap",
    "unknown",
]

Breaker = Literal["ignores", "counts", "opens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What is done about one kind of failure.

    Attributes:
        meaning: What happened, in one phrase.
        fails_over: Whether another endpoint is asked.
        retries: Whether the same endpoint may answer if it is asked again.
        breaker: `"opens"`: the endpoint gets no more requests for `open_s`. `"counts"`: enough of them open it.
            `"ignores"`: it says nothing about the endpoint's health.
        open_s: For how many seconds the breaker opens at once; infinite: until the configuration changes.
        callers_fault: Whether the request, not the endpoint, is to blame.
    """

    meaning: str
    fails_over: bool = False
    retries: bool = False
    breaker: Breaker = "ignores"
    open_s: float = 0.0
    callers_fault: bool = False


TREATMENTS: Mapping[FailureKind, Treatment] = MappingProxyType(
    {
        "rate_limited": Treatment(
            meaning="too many requests or tokens for now", fails_over=True, retries=True, breaker="counts"
        ),
        "quota": Treatment(
            meaning="the account's money or daily quota is gone",
            fails_over=True,
            breaker="opens",
            open_s=600.0,
        ),
        "overloaded": Treatment(
            meaning="the provider has no capacity for now", fails_over=True, retries=True, breaker="counts"
        ),
        "server_error": Treatment(
            meaning="the provider failed, or its answer was unreadable",
            fails_over=True,
            retries=True,
            breaker="counts",
        ),
        "timeout": Treatment(
            meaning="no answer in time; the model may have run",
            fails_over=True,
            retries=True,
            breaker="counts",
        ),
        "connection": Treatment(
            meaning="no connection, or one that broke", fails_over=True, retries=True, breaker="counts"
        ),
        "authentication": Treatment(
            meaning="the key is missing, wrong or expired", fails_over=True, breaker="opens", open_s=math.inf
        ),
        "permission": Treatment(
            meaning="the key may not use this model here", fails_over=True, breaker="opens", open_s=math.inf
        ),
        "not_found": Treatment(
            meaning="no such model or deployment", fails_over=True, breaker="opens", open_s=600.0
        ),
        "bad_request": Treatment(meaning="the request is malformed", callers_fault=True),
        "unsupported": Treatment(
            meaning="this model cannot do what the request asks for", fails_over=True, callers_fault=True
        ),
        "context_overflow": Treatment(
            meaning="the request is too long for this model", fails_over=True, callers_fault=True
        ),
        "content_policy": Treatment(meaning="the provider declined the content", callers_fault=True),
        "cancelled": Treatment(meaning="the caller gave up", callers_fault=True),
        "cap": Treatment(meaning="a cap did not admit the call; nothing was sent", callers_fault=True),
        "unknown": Treatment(meaning="an error that Maestro does not know", fails_over=True),
    }
)
