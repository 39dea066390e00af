"""A sample of the crash drill (`make drill` kills a hundred), and what stopping, forking and deleting do."""

from __future__ import annotations

import pytest
from drills.crashes import drill


@pytest.mark.slow
def test_no_call_is_lost_and_no_cap_passed_when_workers_are_killed(tmp_path):
    found = drill(tmp_path, kills=12, seed=1)
    assert found.wrong == []
    assert found.requests >= found.kills
    assert found.outcomes["served"] > 0
    assert found.booked_nanos >= found.bill_nanos > 0
