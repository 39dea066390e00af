"""What Maestro can do for each LangChain chat integration, found out by sending requests to this machine.

Run it in an environment that has them all (`make matrix`); it then writes docs/providers.md. With `--json` it prints
the rows of those that are installed, which tests/test_provider_matrix.py compares with the page.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from maestro_core import MaestroError, Usage, price
from maestro_langchain._models import limit_settings, model_key, without_sdk_retries

PAGE = Path(__file__).parents[2] / "docs/providers.md"
LIMIT, OWN_LIMIT = 777, 901
PATIENCE_S = 8
COLUMNS = ("integration", "provider and model known", "priced", "limit", "stream usage", "retries off")
HEAD = """# Providers

What Maestro does for LangChain's chat integrations. The table is generated: each class is made with a dummy key, asked
to send requests to a server on this machine that always answers 503, and what arrives there is compared with what was
wanted. No provider was called. `make matrix` makes the table anew.

- **provider and model known**: the ids that LangChain reports are the price book's, or are translated to them.
- **priced**: the model in brackets has a price; without one, calls are counted as unpriced, and refused under a cap
  unless `[[prices]]` says what they cost.
- **limit**: the argument with which `MaestroMiddleware` sets the output limit of a call, as it was seen to win over
  the constructor's on the wire. *no*: there the middleware holds for the request's own limit, as the handler does.
- **stream usage**: *asked for*: the request of a stream asks for usage. *as the provider sends it*: the API has no
  such option. Without usage, a stream settles at its hold.
- **retries off**: with the model that the middleware makes of yours, one failed call was one request. *no*: the
  client sent it again by itself. Each sending is held for; what it was billed for one that failed is not seen, so set its
  retries to none, where it lets you.

"""


class Unavailable(BaseHTTPRequestHandler):
    """Answers everything with 503, and remembers it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append(body.decode("utf-8", "replace"))
        answer = b'{"error": {"message": "unavailable", "code": 503}, "message": "unavailable"}'
        self.send_response(503)
        self.send_header("content-type", "application/json")
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


def anonymous():
    return importlib.import_module("google.auth.credentials").AnonymousCredentials()


CLAUDE = "anthropic.claude-sonnet-4-5-20250929-v1:0"
# Package, class, how to make one that talks to a URL.
INTEGRATIONS = [
    ("langchain_openai", "ChatOpenAI",
     lambda url: {"model": "gpt-5-mini", "api_key": "x", "base_url": f"{url}/v1"}),
    ("langchain_openai", "AzureChatOpenAI",
     lambda url: {"model": "gpt-5-mini", "azure_deployment": "d", "azure_endpoint": url, "api_version": "2024-10-21",
                  "api_key": "x"}),
    ("langchain_anthropic", "ChatAnthropic",
     lambda url: {"model": "claude-sonnet-4-5", "api_key": "x", "base_url": url}),
    ("langchain_google_genai", "ChatGoogleGenerativeAI",
     lambda url: {"model": "gemini-2.5-flash", "google_api_key": "x", "base_url": url}),
    ("langchain_google_vertexai", "ChatVertexAI",
     lambda url: {"model": "gemini-2.5-flash", "project": "p", "location": "us-central1", "api_transport": "rest",
                  "base_url": url, "credentials": anonymous()}),
    ("langchain_aws", "ChatBedrockConverse",
     lambda url: {"model": CLAUDE, "region_name": "us-east-1", "base_url": url, "aws_access_key_id": "x",
                  "aws_secret_access_key": "x"}),
    ("langchain_mistralai", "ChatMistralAI",
     lambda url: {"model": "mistral-large-latest", "api_key": "x", "base_url": f"{url}/v1"}),
    ("langchain_groq", "ChatGroq",
     lambda url: {"model": "llama-3.3-70b-versatile", "api_key": "x", "base_url": url}),
    ("langchain_ollama", "ChatOllama", lambda url: {"model": "llama3.2", "base_url": url}),
    ("langchain_deepseek", "ChatDeepSeek",
     lambda url: {"model": "deepseek-chat", "api_key": "x", "api_base": url}),
    ("langchain_xai", "ChatXAI", lambda url: {"model": "grok-4", "api_key": "x", "base_url": f"{url}/v1/"}),
    ("langchain_openrouter", "ChatOpenRouter",
     lambda url: {"model": "openai/gpt-5-mini", "api_key": "x", "base_url": url}),
    ("langchain_cohere", "ChatCohere",
     lambda url: {"model": "command-r-plus", "cohere_api_key": "x", "base_url": url}),
    ("langchain_fireworks", "ChatFireworks",
     lambda url: {"model": "accounts/fireworks/models/gpt-oss-120b", "api_key": "x", "base_url": f"{url}/v1"}),
    ("langchain_together", "ChatTogether",
     lambda url: {"model": "openai/gpt-oss-120b", "api_key": "x", "base_url": f"{url}/v1"}),
]  # fmt: skip

# In these APIs a request can ask a stream for usage, or else gets none.
ASKS = {"langchain_openai", "langchain_deepseek", "langchain_xai", "langchain_openrouter", "langchain_fireworks",
        "langchain_together"}  # fmt: skip


def sent(server, work):
    """Return the bodies of the requests that some work sends."""
    server.seen = seen = []

    def fail():
        try:
            work()
        except Exception:  # every call fails with 503; what was sent is the result
            logging.getLogger(__name__).debug("failed", exc_info=True)

    # A client that retries may go on for minutes; a few seconds show that it does.
    thread = threading.Thread(target=fail, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    if thread.is_alive():
        seen.append("still at it")
    return list(seen)


def row(package, name, arguments):
    """Return one line of the table."""
    # One server each: a client that goes on sending must not be counted for the next one.
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unavailable)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    kind = getattr(importlib.import_module(package), name)
    model = kind(**arguments(url))
    provider, asked = model_key(model)
    governed, _ = without_sdk_retries(model)
    settings = limit_settings(model, LIMIT)
    if settings:
        name_of_limit = next(iter(settings))
        limited, _ = without_sdk_retries(kind(**arguments(url), **{name_of_limit: OWN_LIMIT}))
    once = sent(server, lambda: (limited if settings else governed).invoke("q", **(settings or {})))
    streamed = sent(server, lambda: list(governed.stream("q")))
    wins = settings and once and all(str(LIMIT) in body and str(OWN_LIMIT) not in body for body in once)
    server.shutdown()
    server.server_close()
    return [
        f"`{name}` ({package.replace('_', '-')})",
        f"{provider} (`{asked}`)",
        priced(provider, asked),
        ", ".join(f"`{key}`" for key in settings) if wins else "no",
        stream_usage(package, streamed),
        "yes" if len(once) == 1 else f"no ({len(once)} requests)",
    ]


def priced(provider, model):
    """Return whether the price book has the model."""
    try:
        price(provider, model, Usage(input_tokens=1, output_tokens=1))
    except MaestroError:
        return "no"
    return "yes"


def stream_usage(package, bodies):
    """Return what a stream says about its usage."""
    if package not in ASKS:
        return "as the provider sends it" if bodies else "not tried"
    return "asked for" if bodies and all('"include_usage"' in body for body in bodies) else "no"


def rows():
    """Return a line for each integration that is installed."""
    return [row(*each) for each in INTEGRATIONS if importlib.util.find_spec(each[0])]


def line(cells):
    """Return a table's line in Markdown."""
    return f"| {' | '.join(cells)} |"


def main():
    """Print the rows, or write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ |= {"LANGSMITH_TRACING": "false", "AWS_DEFAULT_REGION": "us-east-1"}
    found = rows()
    if arguments.json:
        print(json.dumps([line(each) for each in found]))  # noqa: T201 - its output
        return
    if len(found) < len(INTEGRATIONS):
        raise SystemExit(f"{len(INTEGRATIONS) - len(found)} integrations are not installed; run make matrix")
    table = [line(COLUMNS), line(["---"] * len(COLUMNS)), *map(line, found)]
    PAGE.write_text(HEAD + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
