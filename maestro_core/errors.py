"""Every error that Maestro raises.

MaestroError
  x CapExceeded            a cap does not admit the call
  x PriceNotFound          (LookupError) no price for a model, tier or region; `.closest` has near names
  x NoEndpoint             no endpoint may serve a routed call; `.rejected` says why, for each
  x EndpointsExhausted     every endpoint that might serve a routed call failed; `.attempts` has each error
  x SettingsError          (ValueError) a setting is unknown or malformed
  x LedgerError            the ledger cannot do what was asked
    + LedgerUnavailable    its store cannot be reached or written
    + ReservationClosed    the reservation was already settled or released otherwise

MaestroWarning             (UserWarning) something is counted less exactly than it could be
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from .types import Attribution, Cap

__all__ = [
    "CapExceeded",
    "EndpointsExhausted",
    "LedgerError",
    "LedgerUnavailable",
    "MaestroError",
    "MaestroWarning",
    "NoEndpoint",
    "PriceNotFound",
    "ReservationClosed",
    "SettingsError",
]

Reason = Literal["spent", "held", "ceiling", "latched"]


class MaestroError(Exception):
    """The base of all errors that Maestro raises."""


class CapExceeded(MaestroError):
    """A cap does not admit the call; nothing was sent and nothing is held for it.

    Attributes:
        reason: `"spent"`: the money is gone. `"held"`: other calls hold it for now. `"ceiling"`: one such call
            may cost more than the whole limit. `"latched"`: this run was already told that the money is spent.
        cap: The cap that refuses.
        bucket: Which of its buckets, as text: `"customer=acme every day"`.
        spent: US dollars settled in that bucket's window.
        held: US dollars that open calls hold.
        presumed: US dollars counted for calls whose end nobody saw.
        needed: US dollars that this call may cost at most.
        headroom: US dollars still free in the bucket.
        resets_at: When the window ends (aware UTC), or None for a cap without a window.
        attribution: Whom the call was for.
        partial: What the model had said, where an answer was cut because the cap left no more; else empty.
    """

    reason: Reason
    cap: Cap
    bucket: str
    spent: Decimal
    held: Decimal
    presumed: Decimal
    needed: Decimal
    headroom: Decimal
    resets_at: datetime | None
    attribution: Attribution
    partial: str = ""

    def __init__(self, message: str, **numbers: Any) -> None:
        super().__init__(message)
        self.__dict__.update(numbers)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle and copy with class and numbers, also for subclasses that adapters make."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[CapExceeded], args: tuple[Any, ...], numbers: dict[str, Any]) -> CapExceeded:
    return cls(*args, **numbers)


class PriceNotFound(MaestroError, LookupError):
    """No price is known for what was asked.

    Attributes:
        closest: Names in the price book that come nearest, best first.
    """

    def __init__(self, message: str, closest: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.closest = tuple(closest)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle with the near names."""
        return type(self), (self.args[0], self.closest)


class NoEndpoint(MaestroError):
    """No endpoint may serve a routed call; nothing was sent.

    Attributes:
        rejected: Why, for each endpoint by its name: `{"mini": "needs:images", "big": "breaker:open 12s"}`.
    """

    def __init__(self, message: str, rejected: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.rejected = dict(rejected or {})

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle with the reasons."""
        return type(self), (self.args[0], self.rejected)


class EndpointsExhausted(MaestroError):
    """Every endpoint that might have served a routed call failed; raised from an `ExceptionGroup` of their errors.

    Attributes:
        attempts: The name of the endpoint and its error, for each attempt in their order.
    """

    def __init__(self, message: str, attempts: Sequence[tuple[str, BaseException]] = ()) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle with the attempts."""
        return type(self), (self.args[0], self.attempts)


class SettingsError(MaestroError, ValueError):
    """A setting is unknown or malformed; the message names the key and the fix."""


class LedgerError(MaestroError):
    """The ledger cannot do what was asked."""


class LedgerUnavailable(LedgerError):
    """The ledger's store cannot be reached, read or written."""


class ReservationClosed(LedgerError):
    """The reservation was already closed in another way, or the ledger never saw it."""


class MaestroWarning(UserWarning):
    """Something is counted less exactly than it could be; the message says what to set."""
