"""What a failed call means, asked of errors that the real clients raise at a stand-in provider."""

from __future__ import annotations

import asyncio
import http.client
import math
import socket
from types import SimpleNamespace

import httpx
import openai as openai_sdk
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from langchain_anthropic import ChatAnthropic
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI

from maestro_core import Cap, CapExceeded, PriceNotFound
from maestro_core.failures import TREATMENTS, Failure, classify, pause_s
from maestro_core.testing import FakeProvider, Reply


@pytest.fixture(params=["openai", "responses", "anthropic"])
def model(request, provider):
    """A real LangChain model, with its SDK's retries off."""
    common = {"max_tokens": 100, "max_retries": 0, "api_key": "none", "timeout": 5}
    if request.param == "anthropic":
        return ChatAnthropic(model="claude-sonnet-5", base_url=provider.anthropic_url, **common)
    responses = request.param == "responses"
    return ChatOpenAI(
        model="gpt-5-mini",
        base_url=provider.openai_url,
        use_responses_api=responses,
        stream_usage=True,
        **common,
    )


def error_of(model, provider, reply, *, stream=False):
    provider.reply = reply
    with pytest.raises(Exception) as caught:  # noqa: PT011 - every class there is
        list(model.stream("Hello")) if stream else model.invoke("Hello")
    return caught.value


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(status=400), "bad_request"),
        (Reply(status=401), "authentication"),
        (Reply(status=402), "quota"),
        (Reply(status=403), "permission"),
        (Reply(status=404), "not_found"),
        (Reply(status=408), "timeout"),
        (Reply(status=409), "server_error"),
        (Reply(status=422), "bad_request"),
        (Reply(status=429), "rate_limited"),
        (Reply(status=429, error_code="insufficient_quota"), "quota"),
        (Reply(status=400, error="Your credit balance is too low to access the Anthropic API."), "quota"),
        (Reply(status=500), "server_error"),
        (Reply(status=502), "server_error"),
        (Reply(status=503), "overloaded"),
        (Reply(status=504), "timeout"),
        (Reply(status=529), "overloaded"),
        (Reply(status=400, error_code="context_length_exceeded"), "context_overflow"),
        (Reply(status=400, error="prompt is too long: 215000 tokens > 200000 maximum"), "context_overflow"),
        (Reply(status=400, error="input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"), "context_overflow"),
        (Reply(status=429, error="Request too large for gpt-5 on tokens per min (TPM): Limit 30000, Requested 40000"), "context_overflow"),
        (Reply(status=400, error_code="content_filter"), "content_policy"),
        (Reply(status=400, error="Output blocked by content filtering policy"), "content_policy"),
        (Reply(status=400, error_code="unsupported_value"), "unsupported"),
    ],
    ids=str,
)  # fmt: skip
def test_an_answer_is_known_by_its_status_code_and_words(model, provider, reply, kind):
    failure = classify(error_of(model, provider, reply))
    assert (failure.kind, failure.status) == (kind, reply.status)
    assert failure.unbilled == (None if reply.status in (408, 504) else f"HTTP {reply.status}")
    assert provider.bill == 0


def test_the_words_of_langchain_agree(model, provider):
    error = error_of(model, provider, Reply(status=400, error="prompt is too long: 2 > 1"))
    assert isinstance(error, ContextOverflowError)
    assert classify(error).kind == "context_overflow"


@pytest.mark.parametrize(
    ("status", "error_code", "kind"),
    [
        (529, "", "overloaded"),
        (429, "", "rate_limited"),
        (500, "", "server_error"),
        (503, "", "server_error"),
    ],
)
def test_a_stream_that_breaks_names_its_reason_under_a_status_of_200(
    model, provider, status, error_code, kind
):
    error = error_of(
        model, provider, Reply(text="some words to stream", status=status, cut_after=1), stream=True
    )
    failure = classify(error, streamed=True)
    # OpenAI has no word for an overloaded provider, and says 500 and 503 alike.
    alike = {"server_error", "overloaded"}
    assert failure.kind == kind or {failure.kind, kind} == alike
    assert failure.fails_over
    assert failure.unbilled is None
    assert provider.bill > 0


def test_a_lost_connection_may_have_been_billed(model, provider):
    failure = classify(error_of(model, provider, Reply(text="fine", cut_after=0)))
    assert (failure.kind, failure.unbilled, failure.breaker) == ("connection", None, "counts")
    assert provider.bill > 0


def test_a_lost_stream_is_a_connection(model, provider):
    failure = classify(
        error_of(model, provider, Reply(text="fine words", cut_after=1), stream=True), streamed=True
    )
    assert (failure.kind, failure.unbilled) == ("connection", None)
    assert provider.bill > 0


def test_a_hang_is_a_timeout_and_may_have_been_billed(model, provider):
    short = model.model_copy(update={"root_client": model.root_client.with_options(timeout=0.2)}) if isinstance(model, ChatOpenAI) else ChatAnthropic(model="claude-sonnet-5", base_url=provider.anthropic_url, max_retries=0, api_key="none", timeout=0.2)  # fmt: skip
    if isinstance(model, ChatOpenAI):
        short.client = short.root_client.chat.completions
    failure = classify(error_of(short, provider, Reply(text="fine", hang_s=5)))
    assert (failure.kind, failure.unbilled, failure.fails_over, failure.retries) == (
        "timeout",
        None,
        True,
        True,
    )
    provider.wait_idle()
    assert provider.bill > 0


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def refused_by(client):
    url = f"http://127.0.0.1:{free_port()}/v1"
    match client:
        case "openai":
            ChatOpenAI(model="gpt-5-mini", base_url=url, api_key="none", max_retries=0).invoke("Hello")
        case "anthropic":
            ChatAnthropic(model="claude-sonnet-5", base_url=url, api_key="none", max_retries=0).invoke(
                "Hello"
            )
        case "httpx":
            httpx.post(url)
        case "requests":
            requests.post(url, timeout=5)
        case "http.client":
            http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/v1")).request("GET", "/")


@pytest.mark.parametrize("client", ["openai", "anthropic", "httpx", "requests", "http.client"])
def test_a_refused_connection_was_not_billed(client):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - every class there is
        refused_by(client)
    failure = classify(caught.value)
    assert (failure.kind, failure.unbilled, failure.fails_over) == ("connection", "connection refused", True)
    assert failure.status is None


def test_what_was_being_handled_meanwhile_is_not_the_cause(provider):
    """A call that timed out while the refusal of another was handled may have been billed."""
    provider.reply = Reply(text="fine", hang_s=5)
    try:
        refused_by("httpx")
    except httpx.ConnectError:
        with pytest.raises(httpx.ReadTimeout) as caught:
            httpx.post(f"{provider.openai_url}/chat/completions", json={"model": "gpt-5-mini", "messages": [{"role": "user", "content": "x"}]}, timeout=0.2)  # fmt: skip
    assert caught.value.__cause__.__context__ is not None
    failure = classify(caught.value)
    assert (failure.kind, failure.unbilled) == ("timeout", None)


async def test_who_gives_up_is_not_failed_over(openai, provider):
    provider.reply = Reply(hang_s=5)
    task = asyncio.ensure_future(openai().ainvoke("Hello"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    failure = classify(caught.value)
    assert (failure.kind, failure.fails_over, failure.breaker, failure.unbilled) == ("cancelled", False, "ignores", None)  # fmt: skip


def test_a_cap_is_no_failure_of_the_endpoint(openai, make_maestro):
    from maestro_langchain import MaestroCallbackHandler

    maestro = make_maestro(caps=[Cap("0.000001", per="run")])
    with pytest.raises(CapExceeded) as caught:
        openai().invoke("Hello", config={"callbacks": [MaestroCallbackHandler(maestro)]})
    failure = classify(caught.value)
    assert (failure.kind, failure.unbilled, failure.breaker) == ("cap", "refused by a cap", "ignores")
    assert not failure.fails_over
    assert not failure.retries


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("rate"), KeyError("choices"), PriceNotFound("no price")]
)
def test_what_is_unknown_is_tried_elsewhere_and_opens_nothing(error):
    failure = classify(error)
    assert (failure.kind, failure.fails_over, failure.breaker, failure.unbilled) == (
        "unknown",
        True,
        "ignores",
        None,
    )


def test_own_kinds_go_first():
    class TenantSuspended(Exception):
        code = "tenant_suspended"

    assert classify(TenantSuspended()).kind == "unknown"
    assert classify(TenantSuspended(), more={"TenantSuspended": "permission"}).kind == "permission"
    assert classify(TenantSuspended(), more={"tenant_suspended": "quota"}).kind == "quota"


# -- other makers' errors, in the shapes that their libraries give them ------------------------------------------------
# (test_failures_of_clients.py asks the libraries themselves, where they are installed.)


def answered(status, body=None, *, headers=None, text=""):
    response = httpx.Response(status, json=body, headers=headers, request=httpx.Request("POST", "http://x"))
    return httpx.HTTPStatusError(text or response.text, request=response.request, response=response)


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37.5s"}


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, code, status, text="", headers=None):
        super().__init__(f"An error occurred ({code}) when calling the Converse operation: {text}")
        meta = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
        self.response = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": meta}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientError("ThrottlingException", 429), "rate_limited"),
        (ClientError("throttlingException", 200), "rate_limited"),
        (ClientError("ThrottlingException", 429, "Too many tokens per day, please wait"), "quota"),
        (ClientError("ServiceQuotaExceededException", 400), "quota"),
        (
            ClientError("ValidationException", 400, "Input is too long for requested model."),
            "context_overflow",
        ),
        (ClientError("ValidationException", 400, "Malformed input request"), "bad_request"),
        (ClientError("ModelTimeoutException", 408), "timeout"),
        (ClientError("ModelNotReadyException", 429), "overloaded"),
        (ClientError("ModelErrorException", 424), "server_error"),
        (ClientError("modelStreamErrorException", 200), "server_error"),
        (ClientError("AccessDeniedException", 403, "You don't have access to the model"), "permission"),
        (ClientError("ExpiredTokenException", 403), "authentication"),
        (ClientError("ResourceNotFoundException", 404), "not_found"),
        (ClientError("ServiceUnavailableException", 503), "overloaded"),
    ],
    ids=str,
)
def test_the_codes_of_bedrock(error, kind):
    assert classify(error).kind == kind


def test_retry_after_in_seconds_milliseconds_dates_and_words():
    def asked(**headers):
        return classify(
            answered(429, headers={k.replace("_", "-"): v for k, v in headers.items()})
        ).retry_after_s

    assert asked(retry_after="17") == 17
    assert asked(retry_after="0.25") == 0.25
    assert asked(retry_after_ms="1500", retry_after="2") == 1.5
    assert asked(retry_after="Tue, 24 Nov 2026 10:00:30 GMT", date="Tue, 24 Nov 2026 10:00:00 GMT") == 30
    assert asked(retry_after="Tue, 24 Nov 2026 09:00:00 GMT", date="Tue, 24 Nov 2026 10:00:00 GMT") == 0
    assert asked(retry_after="soon") is None
    assert asked(retry_after="-1") is None
    assert asked(retry_after="nan") is None
    assert asked(retry_after="inf") is None
    dated = answered(429, headers={"retry-after": "Tue, 24 Nov 2026 10:00:30 GMT"})
    assert classify(dated).retry_after_s is None
    assert classify(dated, now_s=1_795_514_400).retry_after_s == 30
    said = "Rate limit reached for gpt-5. Please try again in 6m0.5s. Visit the site"
    assert classify(answered(429, text=said)).retry_after_s == 360.5
    assert classify(answered(429, text="Please try again in 20ms.")).retry_after_s == 0.02
    assert classify(answered(429, text="Please retry after 9 seconds.")).retry_after_s == 9
    assert classify(answered(429, text="Please try again in a while")).retry_after_s is None


def test_the_details_of_google():
    quota = {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": "RequestsPerMinute"}],
    }
    daily = {**quota, "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}

    def failed(code, status, message, *details):
        error = Exception(message)
        error.code, error.details = code, {"error": {"code": code, "status": status, "message": message, "details": list(details)}}  # fmt: skip
        error.status = status
        return classify(error)

    limited = failed(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", quota, RETRY_INFO)
    assert (limited.kind, limited.retry_after_s, limited.breaker, limited.open_s) == ("rate_limited", 37.5, "opens", 37.5)  # fmt: skip
    assert (
        failed(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", daily, RETRY_INFO).kind
        == "quota"
    )
    too_long = "The input token count (1300000) exceeds the maximum number of tokens allowed (1048576)."
    assert failed(400, "INVALID_ARGUMENT", too_long).kind == "context_overflow"
    invalid = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    assert failed(400, "INVALID_ARGUMENT", "API key not valid.", invalid).kind == "authentication"
    assert failed(400, "INVALID_ARGUMENT", "bad tool").kind == "bad_request"
    assert failed(503, "UNAVAILABLE", "The model is overloaded.").kind == "overloaded"
    assert failed(504, "DEADLINE_EXCEEDED", "late").unbilled is None


def test_azure_names_its_filter_inside():
    body = {"error": {"code": "content_filter", "message": "filtered", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}  # fmt: skip
    error = SimpleNamespace(status_code=400, body=body)
    failed = type("E", (Exception,), error.__dict__)()
    assert classify(failed).kind == "content_policy"


# -- what is done about it ---------------------------------------------------------------------------------------------


def test_a_provider_that_says_when_to_come_back_opens_the_breaker_for_that_long():
    assert Failure(kind="rate_limited").breaker == "counts"
    waits = Failure(kind="overloaded", retry_after_s=12.0)
    assert (waits.breaker, waits.open_s) == ("opens", 12.0)
    assert Failure(kind="bad_request", retry_after_s=12.0).breaker == "ignores"
    assert Failure(kind="authentication").open_s == math.inf
    assert Failure(kind="quota", retry_after_s=5.0).open_s == 5.0


def test_the_provider_has_the_last_word_on_retries():
    assert classify(answered(429)).retries
    assert not classify(answered(429, headers={"x-should-retry": "false"})).retries
    assert classify(answered(400, headers={"x-should-retry": "true"})).retries


def test_the_callers_faults_never_open_a_breaker():
    for kind, treatment in TREATMENTS.items():
        if treatment.callers_fault:
            assert treatment.breaker == "ignores", kind
        assert (treatment.open_s > 0) == (treatment.breaker == "opens"), kind
        assert treatment.fails_over or not treatment.retries, kind


@given(st.integers(0, 30), st.none() | st.floats(0, 1e9))
def test_pauses_are_bounded(attempt, asked):
    pause = pause_s(Failure(kind="rate_limited", retry_after_s=asked), attempt=attempt)
    assert 0 <= pause <= 60
    if asked is not None and asked <= 60:
        assert pause == asked


attributes = st.dictionaries(
    st.sampled_from(["status_code", "code", "type", "body", "details", "response", "headers", "error", "status"]),
    st.none() | st.text(max_size=9) | st.integers() | st.lists(st.integers() | st.text(), max_size=2)
    | st.dictionaries(st.sampled_from(["error", "code", "details", "Error", "ResponseMetadata"]), st.text() | st.integers() | st.lists(st.dictionaries(st.sampled_from(["retryDelay", "violations", "reason"]), st.text() | st.integers()), max_size=2)),
)  # fmt: skip


@given(attributes, st.text())
def test_no_error_is_too_odd_to_be_classified(fields, message):
    error = Exception(message)
    error.__dict__.update(fields)
    assert classify(error).kind in TREATMENTS


def test_the_models_own_words_are_not_kept():
    with FakeProvider(Reply(status=400, error="a secret in the prompt"), keep_alive=False) as running:
        client = openai_sdk.OpenAI(base_url=running.openai_url, api_key="none", max_retries=0)
        with pytest.raises(openai_sdk.BadRequestError) as caught:
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "x"}])
        client.close()
    assert "secret" not in repr(classify(caught.value))


@pytest.mark.parametrize(
    "error", [answered(500), answered(429), httpx.ConnectError("refused")], ids=["500", "429", "refused"]
)
def test_whatever_ends_it_a_call_with_output_was_billed(error):
    assert classify(error).unbilled
    assert classify(error, streamed=True).unbilled is None
