"""A provider on this machine that speaks the wire formats of Gemini, Bedrock Converse, Ollama and OpenAI, and keeps the bill.

Every call costs what `BILL_NANOS` says; whether an answer says what it used (also "as it goes") is the test's choice.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["BILL_NANOS", "RATES", "Dialects"]

# Tokens as a provider counts them; of the output, some are hidden where there are such.
INPUT, CACHED, OUTPUT, THOUGHTS = 1_000, 200, 70, 30
# Dollars per million.
RATES = {"input": "1", "cached": "0.1", "output": "4"}
# Who has a cache says so; with Ollama there is none.
BILL_NANOS = {
    True: (INPUT - CACHED) * 1_000 + CACHED * 100 + (OUTPUT + THOUGHTS) * 4_000,
    False: INPUT * 1_000 + (OUTPUT + THOUGHTS) * 4_000,
}
WORDS = ("This is ", "what I ", "know.")


class Dialects(ThreadingHTTPServer):
    """The server; `with Dialects() as provider` runs it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tells_usage, self.failures = True, 0
        self.bodies, self.bill_nanos = [], 0
        self.lock = threading.Lock()

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            failing = self.server.failures > 0
            self.server.failures -= failing
        if failing:
            self.server.bodies.append(body)
            self.answer(503, "application/json", b'{"error": {"code": 503, "message": "unavailable"}}')
            return
        dialect = next(speak for part, speak in _DIALECTS.items() if part in self.path)
        kind, parts, cached = dialect(body, self.path, self.server.tells_usage)
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.bill_nanos += BILL_NANOS[cached]
        self.answer(200, kind, b"".join(parts))

    def answer(self, status, kind, answer):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def _gemini(body, path, tells):
    streams = "streamGenerateContent" in path
    words = WORDS if streams else ("".join(WORDS),)
    chunks = [{"candidates": [{"content": {"role": "model", "parts": [{"text": each}]}}]} for each in words]
    if tells == "as it goes":
        for count, chunk in enumerate(chunks, start=1):
            chunk["usageMetadata"] = {
                "promptTokenCount": INPUT,
                "candidatesTokenCount": count,
                "totalTokenCount": INPUT + count,
            }
        chunks.append({"candidates": [{"content": {"role": "model"}}]})
    chunks[-1]["candidates"][0]["finishReason"] = "STOP"
    if tells:
        chunks[-1]["usageMetadata"] = {
            "promptTokenCount": INPUT, "cachedContentTokenCount": CACHED, "candidatesTokenCount": OUTPUT,
            "thoughtsTokenCount": THOUGHTS, "totalTokenCount": INPUT + OUTPUT + THOUGHTS,
        }  # fmt: skip
    if not streams:
        return "application/json", [json.dumps(chunks[0]).encode()], True
    return "text/event-stream", [f"data: {json.dumps(each)}\r\n\r\n".encode() for each in chunks], True


def _converse(body, path, tells):
    # Its input stands beside what is read from the cache.
    usage = {
        "inputTokens": INPUT - CACHED, "cacheReadInputTokens": CACHED, "cacheWriteInputTokens": 0,
        "outputTokens": OUTPUT + THOUGHTS, "totalTokens": INPUT + OUTPUT + THOUGHTS,
    }  # fmt: skip
    told = {"usage": usage} if tells else {}
    if not path.endswith("converse-stream"):
        message = {"role": "assistant", "content": [{"text": "".join(WORDS)}]}
        answer = {
            "output": {"message": message},
            "stopReason": "end_turn",
            "metrics": {"latencyMs": 1},
            **told,
        }
        return "application/json", [json.dumps(answer).encode()], True
    events = [("messageStart", {"role": "assistant"})]
    events += [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": each}}) for each in WORDS]
    events += [("contentBlockStop", {"contentBlockIndex": 0}), ("messageStop", {"stopReason": "end_turn"})]
    events += [("metadata", {**told, "metrics": {"latencyMs": 1}})] if tells else []
    return "application/vnd.amazon.eventstream", [_frame(*each) for each in events], True


def _frame(event, payload):
    """Return one message of AWS's event stream: lengths, headers, payload, and a checksum after each part."""
    named = {":event-type": event, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack("!H", len(value)) + value.encode()
        for name, value in named.items()
    )
    data = json.dumps(payload).encode()
    prelude = struct.pack("!II", len(headers) + len(data) + 16, len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + data
    return message + struct.pack("!I", zlib.crc32(message))


def _ollama(body, path, tells):
    words = WORDS if body.get("stream") else ("".join(WORDS),)
    base = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z", "done": False}
    chunks = [{**base, "message": {"role": "assistant", "content": each}} for each in words]
    if body.get("stream"):
        chunks.append({**base, "message": {"role": "assistant", "content": ""}})
    chunks[-1] |= {"done": True, "done_reason": "stop"}
    if tells:
        chunks[-1] |= {"prompt_eval_count": INPUT, "eval_count": OUTPUT + THOUGHTS}
    return "application/x-ndjson", [json.dumps(each).encode() + b"\n" for each in chunks], False


def _openai(body, path, tells):
    usage = {
        "prompt_tokens": INPUT, "prompt_tokens_details": {"cached_tokens": CACHED},
        "completion_tokens": OUTPUT + THOUGHTS, "completion_tokens_details": {"reasoning_tokens": THOUGHTS},
        "total_tokens": INPUT + OUTPUT + THOUGHTS,
    }  # fmt: skip
    base = {"id": "x", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        answer = {**base, "object": "chat.completion", **({"usage": usage} if tells else {})}
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return "application/json", [json.dumps(answer).encode()], True
    base["object"] = "chat.completion.chunk"
    chunks = [{**base, "choices": [{"index": 0, "delta": {"content": each}}]} for each in WORDS]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    if tells and body.get("stream_options", {}).get("include_usage"):  # to nobody who does not ask
        chunks.append({**base, "choices": [], "usage": usage})
    lines = [f"data: {json.dumps(each)}\n\n".encode() for each in chunks]
    return "text/event-stream", [*lines, b"data: [DONE]\n\n"], True


_DIALECTS = {
    "enerateContent": _gemini,
    "/converse": _converse,
    "/api/chat": _ollama,
    "/chat/completions": _openai,
}
