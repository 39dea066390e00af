"""The pytest plugin: `fake_provider` and `fake_clock`, in every project that has Maestro installed.

pytest loads it in every run, so it imports nothing else until a test asks for a fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import FakeClock, FakeProvider

__all__ = ["fake_clock", "fake_provider"]


@pytest.fixture
def fake_provider() -> Iterator[FakeProvider]:
    """A fresh stand-in for OpenAI and Anthropic on loopback, which keeps the true bill."""
    from . import FakeProvider

    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands at 2026-01-01 00:00 UTC until the test advances it."""
    from . import FakeClock

    return FakeClock()
