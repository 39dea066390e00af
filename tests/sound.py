"""What has to hold after any test that spent money."""

from __future__ import annotations

import time


def assert_sound(maestro, provider, cap_nanos=None):
    """Nothing is held, the counters agree with the journal, the ledger with the bill, and the bill with the cap."""
    patience = time.monotonic() + 10
    # Tools of a halted agent may run on in their threads for a moment.
    while maestro.ledger.holds() and time.monotonic() < patience:
        time.sleep(0.02)
    provider.wait_idle()
    assert maestro.ledger.check() == []
    assert maestro.ledger.holds() == []
    assert sum(s.cost_nanos for s in maestro.ledger.sums(())) == provider.bill_nanos
    if cap_nanos is not None:
        assert provider.bill_nanos <= cap_nanos


def usd(nanos):
    """Write nano-dollars as a cap's limit."""
    return f"{nanos / 1e9:.9f}"
