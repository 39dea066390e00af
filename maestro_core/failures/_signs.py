"""By what each kind of failure is known, maker by maker.

Sources: the error pages and SDKs of OpenAI (https://platform.openai.com/docs/guides/error-codes), Azure, Anthropic
(https://docs.anthropic.com/en/api/errors), Google (https://ai.google.dev/gemini-api/docs/troubleshooting and
google.rpc.Code), Bedrock (the service model of bedrock-runtime), Groq, OpenRouter and xAI; phrases only where a maker
gives no code.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._kinds import FailureKind

__all__ = ["DEFINITE", "NAMES", "NOT_SENT", "PHRASES", "STATUSES", "UNBILLED", "USUAL"]


def _table(rows: Mapping[FailureKind, str | Iterable[str]]) -> Mapping[str, FailureKind]:
    return MappingProxyType(
        {
            sign: kind
            for kind, signs in rows.items()
            for sign in (signs.split() if isinstance(signs, str) else signs)
        }
    )


# Codes that settle the matter, whatever the status.
DEFINITE = _table(
    {
        "context_overflow": "context_length_exceeded request_too_large string_above_max_length",
        "content_policy": (
            "content_filter content_policy_violation responsibleaipolicyviolation moderation_blocked invalid_prompt"
        ),
        "quota": (
            "insufficient_quota billing_hard_limit_reached billing_not_active billing_error payment_required"
            " servicequotaexceededexception contract_spend_limit_reached enforced_spend_limit_reached"
            " linked_organization_spend_limit_reached"
        ),
        "authentication": (
            "invalid_api_key api_key_invalid authentication_error unauthenticated account_deactivated"
            " expiredtokenexception expiredtoken unrecognizedclientexception invalidsignatureexception"
            " invalidclienttokenid"
        ),
        "not_found": "model_not_found deploymentnotfound not_found_error resourcenotfoundexception",
        "unsupported": "unsupported_parameter unsupported_value model_not_supported",
        "server_error": "tool_use_failed modelerrorexception modelstreamerrorexception",
        "timeout": "modeltimeoutexception",
        "overloaded": "overloaded_error modelnotreadyexception engine_overloaded slow_down",
    }
)

# What a message says where there is no such code; searched in lower case, in this order.
PHRASES = _table(
    {
        "context_overflow": (
            "prompt is too long",  # Anthropic
            "exceed context limit",  # Anthropic, input and max_tokens together
            "input is too long",  # Bedrock
            "too many input tokens",  # Bedrock
            "input tokens exceeded",  # Nova
            "exceeds the maximum number of tokens",  # Google
            "maximum context length",  # OpenAI, vLLM
            "maximum prompt length",  # xAI
            "exceeds the context window",  # OpenAI's Responses API
            "input tokens exceed the configured limit",  # OpenAI
            "context size has been exceeded",  # llama.cpp
            "exceeds the available context size",  # llama.cpp
            "request too large for",  # OpenAI and Groq: more than a minute's tokens at once
        ),
        "content_policy": (
            "blocked by content filtering policy",  # Anthropic
            "flagged as potentially violating",  # OpenAI
            "content management policy",  # Azure
            "input was flagged",  # OpenRouter
            "content violates usage guidelines",  # xAI
        ),
        "quota": (
            "credit balance is too low",  # Anthropic
            "reached your specified api usage limits",  # Anthropic
            "insufficient balance",  # DeepSeek
            "insufficient credits",  # OpenRouter
            "too many tokens per day",  # Bedrock
            "used all available credits",  # xAI
        ),
        "authentication": ("api key not valid", "incorrect api key"),  # Google and xAI, with status 400
        "permission": ("user location is not supported", "don't have access to the model"),  # Google; Bedrock
        "unsupported": (
            "does not support tools",
            "is not supported with this model",
            "no endpoints found that support",
        ),
    }
)

# What each HTTP status means where nothing says more. Other 4xx are bad requests, other 5xx server errors.
STATUSES: Mapping[int, FailureKind] = MappingProxyType(
    {
        401: "authentication",
        402: "quota",
        403: "permission",
        404: "not_found",
        408: "timeout",
        409: "server_error",  # OpenAI: a conflict with another request; its client tries again
        413: "context_overflow",
        424: "server_error",  # Bedrock: the model failed
        425: "overloaded",
        429: "rate_limited",
        498: "overloaded",  # Groq: no flex capacity
        499: "cancelled",
        501: "unsupported",
        503: "overloaded",
        504: "timeout",
        524: "timeout",  # Cloudflare
        529: "overloaded",  # Anthropic
    }
)

# Codes for errors that come without a telling status, as inside a stream.
USUAL = _table(
    {
        "rate_limited": (
            "rate_limit_exceeded rate_limit_error ratelimitreached too_many_requests throttlingexception"
            " resource_exhausted"
        ),
        "overloaded": "unavailable serviceunavailableexception service_unavailable",
        "server_error": "server_error api_error internal internalserverexception internal_server_error",
        "timeout": "deadline_exceeded timeout_error",
        "permission": "permission_denied permission_error accessdeniedexception",
        "not_found": "not_found",
        "bad_request": "invalid_request_error invalid_argument failed_precondition validationexception",
        "cancelled": "cancelled",
    }
)

# Names of exceptions, which speak where there is no answer.
NAMES = _table(
    {
        "cap": "CapExceeded",
        "cancelled": "CancelledError KeyboardInterrupt SystemExit GeneratorExit GraphBubbleUp",
        "context_overflow": "ContextOverflowError",
        "content_policy": "ContentFilterFinishReasonError OpenAIRefusalError",
        "bad_request": (
            "LengthFinishReasonError ModelInvalidRequestError InvalidArgument BadRequestError BadRequest ParamValidationError"
        ),
        "authentication": (
            "ModelAuthenticationError AuthenticationError NoCredentialsError PartialCredentialsError CredentialsError"
            " DefaultCredentialsError RefreshError Unauthenticated"
        ),
        "permission": "ModelPermissionDeniedError PermissionDeniedError PermissionDenied",
        "not_found": "ModelNotFoundError NotFoundError NotFound",
        "rate_limited": "ModelRateLimitError RateLimitError ResourceExhausted TooManyRequests",
        "overloaded": "OverloadedError ServiceUnavailable",
        "timeout": (
            "ModelTimeoutError APITimeoutError TimeoutException Timeout TimeoutError ReadTimeoutError ConnectTimeoutError"
            " ServerTimeoutError DeadlineExceeded EdgeNetworkTimeoutResponseError"
        ),
        "connection": (
            "ModelConnectionError APIConnectionError TransportError ConnectionError HTTPClientError ClientConnectionError"
            " NewConnectionError ProtocolError IncompleteRead ClientPayloadError ChunkedEncodingError gaierror SSLError"
            " NoResponseError"
        ),
        "server_error": (
            "ModelAPIError InternalServerError ServerError JSONDecodeError APIResponseValidationError"
            " ResponseValidationError ResponseParserError EventStreamError APIError"
        ),
        "unsupported": "NotImplementedError",
    }
)

# Statuses that a provider answers before or instead of inference, and does not bill. A gateway's timeout
# (408, 504) is not among them: the model may have run.
UNBILLED = frozenset(
    {400, 401, 402, 403, 404, 405, 409, 413, 415, 422, 425, 429, 498, 500, 501, 502, 503, 529}
)

# Exceptions, by name, that say that no request left.
NOT_SENT: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("ConnectionRefusedError", "ConnectError", "EndpointConnectionError", "NewConnectionError"),
            "connection refused",
        ),
        **dict.fromkeys(("gaierror", "NameResolutionError", "ClientConnectorDNSError"), "unknown host"),
        **dict.fromkeys(("ConnectTimeout", "ConnectTimeoutError"), "no connection in time"),
        "ClientConnectorError": "connection refused",
        "PoolTimeout": "no free connection in time",
        "NoCredentialsError": "no credentials",
        "PartialCredentialsError": "no credentials",
        "CapExceeded": "refused by a cap",
    }
)
