"""From a runaway's first call to the webhook, over HTTP, through `maestro watch` on a ledger that nobody watched before.

A ledger gets two weeks of usual spend, with a call every five minutes. Then `maestro watch` starts as a process of its own,
and an application, which looks for nothing itself, spends twenty times as much through a real ChatOpenAI, a call every five seconds, and
as much as usual before. Printed is when the webhook received the alert, counted from the runaway's first call, and what
the runaway had cost by then according to the provider. Takes about five minutes.

Run: python tests/benchmarks/bench_watch.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from langchain_openai import ChatOpenAI

from maestro_core import Maestro, attribution
from maestro_core.ledger import open_ledger
from maestro_core.testing import FakeProvider, Reply
from maestro_core.types import Attribution, Hold, Settlement, new_key
from maestro_langchain import MaestroCallbackHandler

MINUTE_US = 60_000_000
EVERY_MINUTES = 5
CALL_NANOS = 2_750_000  # 10,000 tokens in, 125 out, of gpt-5-mini
REPLY = Reply(input_tokens=10_000, output_tokens=125)
LONGEST_S = 600


class Past:
    """A clock that is set by hand."""

    def __init__(self, at_us):
        self.at_us = at_us

    def now_us(self):
        return self.at_us


def fill(url):
    now_us = time.time_ns() // 1_000
    clock = Past(now_us - 14 * 24 * 60 * MINUTE_US)
    ledger = open_ledger(url, clock=clock)
    who = Attribution({"team": "growth"})
    while clock.at_us < now_us - EVERY_MINUTES * MINUTE_US:
        key = new_key()
        ledger.reserve(Hold(key, 0, "openai", "gpt-5-mini", who))
        ledger.settle(key, Settlement(cost_nanos=CALL_NANOS))
        clock.at_us += EVERY_MINUTES * MINUTE_US
    ledger.close()


class Hook(BaseHTTPRequestHandler):
    """Keeps what it is sent, and when."""

    got: list[tuple[float, dict]] = []  # noqa: RUF012 - of one run
    arrived = threading.Event()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.got.append((time.monotonic(), body))
        self.arrived.set()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def main(folder):
    url = f"sqlite:///{folder}/ledger.db"
    fill(url)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "MAESTRO_LEDGER": url,
        "MAESTRO_ALERTS__WEBHOOK": f"http://127.0.0.1:{server.server_port}/",
        "MAESTRO_ALERTS__MIN_USD": "0.01",
    }
    command = [str(Path(sys.executable).with_name("maestro")), "watch"]
    watch = subprocess.Popen(command, env={**os.environ, **settings}, cwd=folder)
    maestro = Maestro(ledger=url, alerts={"detect": False, "log": False})
    try:
        time.sleep(75)  # until it has learned, and seen a minute of its own
        with FakeProvider([REPLY] * (LONGEST_S // 5)) as provider, attribution(team="growth"):
            model = ChatOpenAI(model="gpt-5-mini", base_url=provider.openai_url, api_key="x")
            began = time.monotonic()
            while not Hook.arrived.is_set() and time.monotonic() < began + LONGEST_S:
                model.invoke("hi", {"callbacks": [MaestroCallbackHandler(maestro)]})
                Hook.arrived.wait(5)
            spent = provider.bill_nanos / 1e9
        for at, alert in Hook.got:
            print(f"{at - began:.0f} s after the runaway's first call, {spent:.3f} $ burned: {alert['text']}")
        print(f"a usual day costs {288 * CALL_NANOS / 1e9:.2f} $")
    finally:
        watch.terminate()
        watch.wait(20)
        maestro.close()
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(place)
