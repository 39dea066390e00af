"""The names of spans, attributes, metrics and events: OpenTelemetry's GenAI conventions, and Maestro's own.

They are kept in this one file because the conventions still move
(https://github.com/open-telemetry/semantic-conventions-genai, read in 2026-11). The released metric names are used
unless `OTEL_SEMCONV_STABILITY_OPT_IN` asks for `gen_ai_latest_experimental`, as OpenTelemetry's own packages do.
"""

from __future__ import annotations

import os
from typing import Final, Literal

__all__ = ["KIND_NAMES", "PROVIDER_NAMES", "Operation", "latest"]

Operation = Literal["invoke_agent", "execute_tool", "chat", "embeddings"]

# -- of the conventions -------------------------------------------------------------------------------------------

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_CHOICES: Final = "gen_ai.request.choice.count"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
AGENT: Final = "gen_ai.agent.name"
TOOL: Final = "gen_ai.tool.name"
TOOL_CALL: Final = "gen_ai.tool.call.id"
TOOL_TYPE: Final = "gen_ai.tool.type"
CONVERSATION: Final = "gen_ai.conversation.id"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - the name of an attribute
SERVER: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
TOOL_ERROR: Final = "tool_error"  # the error.type of a tool that answers that it failed

# Usage kinds and their attributes; each is a part of the input or output total. The conventions renamed
# cache_creation to cache_write; backends read either, so both are written.
KIND_NAMES: Final = {
    "input_tokens": ("gen_ai.usage.input_tokens",),
    "output_tokens": ("gen_ai.usage.output_tokens",),
    "cache_read_tokens": ("gen_ai.usage.cache_read.input_tokens",),
    "cache_write_tokens": (
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_write.input_tokens",
    ),
    "output_reasoning_tokens": ("gen_ai.usage.reasoning.output_tokens",),
}

# OpenTelemetry spells some providers differently from genai-prices.
PROVIDER_NAMES: Final = {
    "aws": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google": "gcp.gen_ai",
    "ibm": "ibm.watsonx.ai",
    "mistral": "mistral_ai",
    "moonshotai": "moonshot_ai",
    "x-ai": "x_ai",
}

TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105 - the name of a metric
DURATION: Final = "gen_ai.client.operation.duration"
FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
LATEST_DURATION: Final = "gen_ai.client.inference.duration"
LATEST_FIRST_CHUNK: Final = "gen_ai.client.inference.time_to_first_chunk"
LATEST_TOKENS: Final = "gen_ai.client.inference.operation.{}_tokens"

# The buckets that the conventions ask for.
TOKEN_BUCKETS: Final = tuple(4**exponent for exponent in range(14))
SECOND_BUCKETS: Final = tuple(0.01 * 2**exponent for exponent in range(14))

# -- Maestro's own ------------------------------------------------------------------------------------------------

# No convention for cost is released. This is the spelling that most backends read; any other fractional number under
# `gen_ai.usage.` makes Langfuse drop all usage of the span.
COST: Final = "gen_ai.usage.cost"
COST_NANOS: Final = "maestro.cost.nano_usd"
COST_ESTIMATED: Final = "maestro.cost.estimated"
COST_UNPRICED: Final = "maestro.cost.unpriced"
COST_SOURCE: Final = "maestro.cost.source"
PRICE: Final = "maestro.price.id"
RUN_COST: Final = "maestro.run.cost.usd"
REFUSED: Final = "maestro.refused"
OVERRUN: Final = "maestro.overrun"
FITTED: Final = "maestro.fitted_output_tokens"
TEAM: Final = "maestro.team"
FEATURE: Final = "maestro.feature"
ENDPOINT: Final = "maestro.endpoint"
DECISION: Final = "maestro.decision"
FAILED_OVER: Final = "maestro.failed_over_from"
CAP: Final = "maestro.cap"
BUCKET: Final = "maestro.bucket"
REASON: Final = "maestro.reason"
ANOMALY: Final = "maestro.anomaly"

COST_METRIC: Final = "maestro.cost.usd"
COST_BY_AGENT: Final = "maestro.cost.agent.usd"
CORRECTIONS_METRIC: Final = "maestro.cost.corrections.usd"
REFUSALS_METRIC: Final = "maestro.refusals"
OVERRUNS_METRIC: Final = "maestro.overruns"
DECISIONS_METRIC: Final = "maestro.decisions"
FAILOVERS_METRIC: Final = "maestro.failovers"
HEADROOM_METRIC: Final = "maestro.cap.headroom.usd"
USED_METRIC: Final = "maestro.cap.used_ratio"

REFUSAL_EVENT: Final = "maestro.refusal"
FAILOVER_EVENT: Final = "maestro.failover"
OVERRUN_EVENT: Final = "maestro.overrun"
DECISION_EVENT: Final = "maestro.decision"
ANOMALY_EVENT: Final = "maestro.anomaly"
ALERT_EVENT: Final = "maestro.alert"


def latest() -> bool:
    """Return whether the environment asks for the names that are not released yet."""
    return "gen_ai_latest_experimental" in os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "")
