"""What tests of Maestro, and tests of code that uses Maestro, stand on.

`FakeProvider` speaks OpenAI's and Anthropic's HTTP and keeps the true bill; `FakeClock` moves on demand. Installed
as a pytest plugin with the fixtures `fake_provider` and `fake_clock`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._bill import Charge
    from ._script import Reply, Request
    from .clock import FakeClock
    from .provider import FakeProvider

__all__ = ["Charge", "FakeClock", "FakeProvider", "Reply", "Request"]

_HOMES = {
    "Charge": "_bill", "FakeClock": "clock", "FakeProvider": "provider", "Reply": "_script", "Request": "_script",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: the pytest plugin lives in this package, and every pytest run loads that."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
