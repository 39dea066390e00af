"""What failed calls mean, asked of further makers' own clients, against a server that answers as those makers do.

They come with `make matrix`; without them these tests are skipped.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from maestro_core.failures import classify


@pytest.fixture
def answering():
    """A server on loopback that gives one answer to everything."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body, headers = server.answer
            raw = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(raw)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()

    def answer(status, body, **headers):
        server.answer = status, body, {name.replace("_", "-"): value for name, value in headers.items()}
        return f"http://127.0.0.1:{server.server_port}"

    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


def failed(work):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - every class there is
        work()
    return classify(caught.value)


def bedrock(url):
    boto3 = pytest.importorskip("boto3")
    config = pytest.importorskip("botocore.config").Config(
        retries={"total_max_attempts": 1}, read_timeout=0.5
    )
    return boto3.client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id="none",
        aws_secret_access_key="none",  # noqa: S106 - no secret
        config=config,
    )


def converse(url):
    messages = [{"role": "user", "content": [{"text": "Hello"}]}]
    return lambda: bedrock(url).converse(modelId="amazon.nova-lite-v1:0", messages=messages)


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "unbilled"),
    [
        (
            429,
            "ThrottlingException",
            "Too many requests, please wait before trying again.",
            "rate_limited",
            True,
        ),
        (
            429,
            "ThrottlingException",
            "Too many tokens per day, please wait before trying again.",
            "quota",
            True,
        ),
        (400, "ValidationException", "Input is too long for requested model.", "context_overflow", True),
        (400, "ValidationException", "Malformed input request", "bad_request", True),
        (400, "ServiceQuotaExceededException", "quota", "quota", True),
        (403, "AccessDeniedException", "You don't have access to the model", "permission", True),
        (403, "UnrecognizedClientException", "The security token is invalid", "authentication", True),
        (404, "ResourceNotFoundException", "no such model", "not_found", True),
        (408, "ModelTimeoutException", "slow", "timeout", False),
        (424, "ModelErrorException", "broken", "server_error", False),
        (429, "ModelNotReadyException", "starting", "overloaded", True),
        (500, "InternalServerException", "oops", "server_error", True),
        (503, "ServiceUnavailableException", "busy", "overloaded", True),
    ],
)
def test_bedrock(answering, status, code, message, kind, unbilled):
    url = answering(status, {"message": message}, **{"x-amzn-ErrorType": code})
    failure = failed(converse(url))
    assert (failure.kind, failure.status, failure.unbilled is not None) == (kind, status, unbilled)


def test_bedrock_says_when_to_come_back(answering):
    url = answering(
        429, {"message": "slow down"}, Retry_After="7", **{"x-amzn-ErrorType": "ThrottlingException"}
    )
    assert failed(converse(url)).retry_after_s == 7


def test_bedrock_through_langchain(answering):
    aws = pytest.importorskip("langchain_aws")
    url = answering(400, {"message": "Input is too long for requested model."}, **{"x-amzn-ErrorType": "ValidationException"})  # fmt: skip
    model = aws.ChatBedrockConverse(
        model="amazon.nova-lite-v1:0", client=bedrock(url), bedrock_client=bedrock(url)
    )
    assert failed(lambda: model.invoke("Hello")).kind == "context_overflow"


def test_bedrock_without_connection_or_credentials(monkeypatch):
    boto3 = pytest.importorskip("boto3")
    refused = failed(converse("http://127.0.0.1:9"))
    assert (refused.kind, refused.unbilled) == ("connection", "connection refused")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    client = boto3.client("bedrock-runtime", region_name="us-east-1", endpoint_url="http://127.0.0.1:9")
    anonymous = failed(lambda: client.converse(modelId="x", messages=[]))
    assert (anonymous.kind, anonymous.unbilled) == ("authentication", "no credentials")


def google_error(code, status, message, *details):
    return {"error": {"code": code, "status": status, "message": message, "details": list(details)}}


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37.5s"}
PER_DAY = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
}
BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
GOOGLE = [
    (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", [RETRY], "rate_limited", 37.5),
    (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", [PER_DAY, RETRY], "quota", 37.5),
    (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", [BAD_KEY], "authentication", None),
    (400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum number of tokens allowed (8).", [], "context_overflow", None),
    (400, "INVALID_ARGUMENT", "bad schema", [], "bad_request", None),
    (403, "PERMISSION_DENIED", "no", [], "permission", None),
    (404, "NOT_FOUND", "models/x is not found", [], "not_found", None),
    (503, "UNAVAILABLE", "The model is overloaded. Please try again later.", [], "overloaded", None),
    (504, "DEADLINE_EXCEEDED", "late", [], "timeout", None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "name", "message", "details", "kind", "retry_after_s"), GOOGLE)
@pytest.mark.parametrize("through", ["genai", "langchain"])
def test_google(answering, through, status, name, message, details, kind, retry_after_s):
    url = answering(status, google_error(status, name, message, *details))
    if through == "genai":
        genai = pytest.importorskip("google.genai")
        client = genai.Client(api_key="none", http_options={"base_url": url})
        failure = failed(lambda: client.models.generate_content(model="gemini-3-pro", contents="Hello"))
    else:
        adapter = pytest.importorskip("langchain_google_genai")
        model = adapter.ChatGoogleGenerativeAI(
            model="gemini-3-pro", api_key="none", base_url=url, max_retries=1
        )
        failure = failed(lambda: model.invoke("Hello"))
    assert (failure.kind, failure.status, failure.retry_after_s) == (kind, status, retry_after_s)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ResourceExhausted", "rate_limited"),
        ("ServiceUnavailable", "overloaded"),
        ("DeadlineExceeded", "timeout"),
        ("InternalServerError", "server_error"),
        ("InvalidArgument", "bad_request"),
        ("Unauthenticated", "authentication"),
        ("PermissionDenied", "permission"),
        ("NotFound", "not_found"),
        ("Cancelled", "cancelled"),
    ],
)
def test_google_over_grpc(name, kind):
    exceptions = pytest.importorskip("google.api_core.exceptions")
    assert classify(getattr(exceptions, name)("no luck")).kind == kind


def test_google_over_grpc_says_when_to_come_back():
    exceptions = pytest.importorskip("google.api_core.exceptions")
    info = pytest.importorskip("google.rpc.error_details_pb2").RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = 12, 500_000_000
    failure = classify(exceptions.ResourceExhausted("no luck", details=[info]))
    assert (failure.kind, failure.retry_after_s, failure.breaker) == ("rate_limited", 12.5, "opens")


def groq(url):
    model = pytest.importorskip("langchain_groq").ChatGroq
    return model(model="llama-3.3-70b-versatile", api_key="none", base_url=url, max_retries=0)


def mistral(url):
    model = pytest.importorskip("langchain_mistralai").ChatMistralAI
    return model(model="mistral-large-latest", api_key="none", base_url=url, max_retries=1)


def cohere(url):
    model = pytest.importorskip("langchain_cohere").ChatCohere
    return model(model="command-r", cohere_api_key="none", base_url=url)


def ollama(url):
    model = pytest.importorskip("langchain_ollama").ChatOllama
    return model(model="llama3", base_url=url)


def openrouter(url):
    model = pytest.importorskip("langchain_openrouter").ChatOpenRouter
    made = model(model="openai/gpt-5", api_key="none", base_url=url, max_retries=0)
    made.client.sdk_configuration.retry_config = None  # left unset, it would try for an hour
    return made


def fireworks(url):
    model = pytest.importorskip("langchain_fireworks").ChatFireworks
    return model(
        model="accounts/fireworks/models/llama-v3p1-8b-instruct", api_key="none", base_url=url, max_retries=1
    )


OTHERS = [groq, mistral, cohere, ollama, openrouter, fireworks]


@pytest.mark.parametrize("make", OTHERS)
@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "bad_request"), (401, "authentication"), (402, "quota"), (404, "not_found"), (429, "rate_limited"), (503, "overloaded")],
)  # fmt: skip
def test_others(answering, make, status, kind):
    body = {"error": {"message": "no luck", "code": status, "type": "x"}, "message": "no luck"}
    model = make(answering(status, body, Retry_After="3"))
    failure = failed(lambda: model.invoke("Hello"))
    assert (failure.kind, failure.status, failure.unbilled) == (kind, status, f"HTTP {status}")
    if make is not ollama:  # which keeps no header
        assert failure.retry_after_s == 3


# Fireworks and Ollama try a refused connection again by themselves, for longer than a test may wait.
@pytest.mark.parametrize("make", [groq, mistral, cohere, openrouter])
def test_others_refused(make):
    failure = failed(lambda: make("http://127.0.0.1:9").invoke("Hello"))
    assert (failure.kind, failure.fails_over) == ("connection", True)
