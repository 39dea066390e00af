"""Where alerts go: the `[alerts]` table of the settings."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from .money import parse_usd, to_usd
from .types import check_dimension

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .types import Alert

__all__ = ["AlertRoute", "AlertSettings"]


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(
            f'{value!r} is no address; a webhook is for example "https://hooks.slack.com/services/..."'
        )
    return value


def _where(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        check_dimension(name)
    return value


def _usd(value: Any) -> Any:
    try:
        return to_usd(parse_usd(value, name="min_usd"))
    except TypeError as error:  # pydantic passes on only ValueErrors
        raise ValueError(str(error)) from None


Webhook = Annotated[str, AfterValidator(_url)]


class AlertRoute(BaseModel):
    """Some alerts go elsewhere: those whose attribution matches all of `where`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: Annotated[dict[str, str], AfterValidator(_where)] = Field(min_length=1)
    webhook: Webhook


class AlertSettings(BaseModel):
    """The `[alerts]` table.

    Attributes:
        webhook: Where every alert is posted that no route matches: JSON with a `text` that Slack shows.
        routes: Where those go that match; an alert goes to every route that matches it.
        log: Whether alerts are logged as warnings of the logger `maestro`.
        min_usd: A spike or leak is told only if it has cost so many US dollars beyond the usual.
        detect: Whether this process looks for spikes and leaks; processes on one ledger share the work.
        cooldown_s: How long after an incident has ended a scope is not told of again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook: Webhook | None = None
    routes: tuple[AlertRoute, ...] = ()
    log: bool = True
    min_usd: Annotated[Decimal, BeforeValidator(_usd)] = Decimal(1)
    detect: bool = True
    cooldown_s: float = Field(3600, ge=0)

    def addresses(self) -> list[str]:
        """Return every address that some alert may go to, each once."""
        found = [self.webhook] if self.webhook else []
        return list(dict.fromkeys([*found, *(route.webhook for route in self.routes)]))

    def webhooks(self, alert: Alert) -> Iterator[str]:
        """Yield the addresses that an alert goes to, each once."""
        where = alert.attribution
        found = [
            route.webhook
            for route in self.routes
            if all(value in where.values(name) for name, value in route.where.items())
        ]
        yield from dict.fromkeys(found or ([self.webhook] if self.webhook else []))
