"""Calls that end after they were given up, and ledgers that fail when nothing depends on them any more."""

from __future__ import annotations

import logging
import threading
from contextvars import copy_context

import pytest
from openai import RateLimitError

from maestro_core import Cap
from maestro_core.errors import LedgerError
from maestro_core.testing import Reply
from maestro_core.types import Call
from maestro_langchain import MaestroCallbackHandler

HELD = Call(provider="openai", model="gpt-5-mini", input="Hello" * 1_000, max_output_tokens=100)


class GaveUpError(Exception):
    """What middleware with a timeout of its own raises."""


@pytest.mark.parametrize("fails", [False, True])
def test_an_abandoned_call_that_ends_after_all_posts_the_truth(fails, provider, openai, make_maestro):
    maestro = make_maestro(ledger="sqlite:///m.db", caps=[Cap("1")])
    arrived, go_on = threading.Event(), threading.Event()

    def reply(request):
        arrived.set()
        go_on.wait(30)
        return Reply(status=429) if fails else Reply(text="fine", input_tokens=1_000, output_tokens=100)

    provider.reply = reply
    handler = MaestroCallbackHandler(maestro)

    def answer():
        try:
            openai().invoke("Hello", config={"callbacks": [handler]})
        except RateLimitError:
            assert fails

    with pytest.raises(GaveUpError), maestro.doors.offer(maestro.reserve(HELD)) as offer:
        thread = threading.Thread(target=copy_context().run, args=(answer,))
        thread.start()
        assert arrived.wait(30)
        assert offer.taken
        raise GaveUpError
    (hold,) = maestro.ledger.holds()
    assert hold.state == "presumed"
    go_on.set()
    thread.join(30)
    assert maestro.ledger.holds() == []
    assert maestro.ledger.check() == []
    assert sum(each.cost_nanos for each in maestro.ledger.sums(())) == provider.bill_nanos
    assert (provider.bill_nanos == 0) is fails


def test_the_caller_keeps_its_result_if_the_ledger_fails_at_the_end(make_maestro, caplog):
    maestro = make_maestro(ledger="sqlite:///m.db", caps=[Cap("1")])
    reservation = maestro.reserve(HELD)

    def send():
        with maestro.doors.offer(reservation):
            maestro.ledger.close()
            return "from a cache"

    with caplog.at_level(logging.ERROR, "maestro"):
        assert send() == "from a cache"
    assert "stays held" in caplog.text
    with pytest.raises(LedgerError):
        maestro.release(reservation, "not sent")
