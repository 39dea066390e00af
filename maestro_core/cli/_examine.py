"""What `maestro doctor` finds out. No ledger is created, and what living processes hold is not touched."""

from __future__ import annotations

import os
import platform
import re
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING, Any

from maestro_core._version import __version__
from maestro_core.clock import from_micros
from maestro_core.errors import MaestroError
from maestro_core.money import to_usd

from ._shared import is_there, sqlite_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pluggy import PluginManager

    from maestro_core.settings import Settings
    from maestro_core.types import Ledger, Meter

__all__ = ["examine"]

_REQUIRED = ("genai-prices", "opentelemetry-sdk", "pydantic-settings")
_OLD_DAYS = 60
_MOST_NAMED = 5
_AHEAD_S = 60
# What an extra is good for, and the distribution that shows whether it is there.
_EXTRAS = {
    "langchain": "langchain",
    "langchain_core": "langchain-core",
    "llama_index": "llama-index-core",
    "redis": "redis",
    "psycopg": "psycopg",
}


def examine(*, reconcile: bool = False, correct_clock: bool = False) -> dict[str, Any]:
    """Return everything that `maestro doctor --json` prints; `problems` has one line for each thing to fix.

    Args:
        reconcile: Put right first what differs from the ledger's journal; `reconciled` has a line for each difference.
        correct_clock: Set the ledger's time back first, if it is ahead of the machine's; `reconciled` says so.
    """
    from maestro_core import plugins

    problems: list[str] = []
    settings = _settings(problems)
    manager = plugins.load(strict=False)
    extras = {name: _version(distribution) for name, distribution in _EXTRAS.items()}
    facts: dict[str, Any] = {
        "versions": _versions(),
        "extras": extras,
        "settings": _effective(settings),
        "attribution": _attribution(problems),
        "ledger": _ledger(settings, manager, problems, reconcile=reconcile, correct_clock=correct_clock),
        "price_book": _price_book(problems),
        "newest_price": _newest_price(),
        "plugins": _plugins(manager, problems),
        "otlp_endpoint": _otlp_endpoint(),
    }
    notes = _notes(extras) + _price_notes(facts["newest_price"], facts["ledger"]["unpriced"])
    notes += _presumed_notes(facts["ledger"]["holds"])
    notes += [
        f"processes enforce different limits on {each['meter']}: {', '.join(each['limits'])} dollars; each its own"
        for each in facts["ledger"]["limits"]
        if len(each["limits"]) > 1
    ]
    if facts["ledger"]["differences"]:
        notes.append("maestro doctor --reconcile puts counters right that differ from the journal")
    return {"ok": not problems, "problems": problems, "notes": notes, **facts}


def _price_notes(newest: str | None, unpriced: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    if newest and (days := (datetime.now(UTC).date() - date.fromisoformat(newest)).days) > _OLD_DAYS:
        notes.append(
            f"the newest price in the price book is {days} days old; pip install -U genai-prices, then maestro reprice"
        )
    if unpriced:
        models = ", ".join(f"{each['provider']}:{each['model']}" for each in unpriced[:_MOST_NAMED])
        more = f" and {len(unpriced) - _MOST_NAMED} more" if len(unpriced) > _MOST_NAMED else ""
        notes.append(f"calls without a whole price: {models}{more}; say what they cost in [[prices]]")
    return notes


def _presumed_notes(holds: Sequence[Mapping[str, Any]]) -> list[str]:
    presumed = [Decimal(hold["amount"]) for hold in holds if hold["state"] == "presumed"]
    if not presumed:
        return []
    count, dollars = len(presumed), sum(presumed)
    return [
        f"calls presumed spent, since nobody saw them end: {count}, ${dollars:f}; maestro doctor --correct KEY --cost DOLLARS"
    ]


def _notes(extras: Mapping[str, str | None]) -> list[str]:
    """Return what is no fault, but may be a surprise."""
    if extras["langchain_core"] is None:
        return [
            'LangChain is not installed, and with it no door to it: pip install "maestro-finops[langchain]"'
        ]
    if extras["langchain"] is None:
        return ['langchain is not installed: MaestroMiddleware needs pip install "maestro-finops[langchain]"']
    return []


def _settings(problems: list[str]) -> Settings | None:
    from maestro_core.settings import Settings

    try:
        return Settings()
    except MaestroError as error:
        problems.append(str(error))
        return None


def _effective(settings: Settings | None) -> dict[str, dict[str, Any]]:
    if settings is None:
        return {}
    return {
        name: {"value": _plain(getattr(settings, name)), "origin": origin}
        for name, origin in settings.origins.items()
    }


def _plain(value: Any) -> Any:
    """Return a setting as a JSON value, without the passwords that URLs may carry."""
    if isinstance(value, tuple | list):
        return [str(_plain(each)) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if value is None or isinstance(value, bool | int | float):
        return value
    return _without_password(str(value))


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def _attribution(problems: list[str]) -> dict[str, str]:
    from maestro_core.attribution import environment_defaults

    try:
        return environment_defaults()
    except MaestroError as error:
        problems.append(str(error))
        return {}


def _ledger(
    settings: Settings | None,
    manager: PluginManager,
    problems: list[str],
    *,
    reconcile: bool,
    correct_clock: bool,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "url": None,
        "state": "not known",
        "differences": [],
        "reconciled": [],
        "limits": [],
        "meters": [],
        "holds": [],
        "unpriced": [],
        "clock_ahead_s": 0,
    }
    if settings is None:
        return found
    found["url"] = _without_password(settings.ledger)
    try:
        # A plugin's ledger comes first, as it does in the core.
        ledger = manager.hook.maestro_ledger(url=settings.ledger) or _embedded(
            settings.ledger, found, problems
        )
        if ledger is not None:
            with closing(ledger):
                ledger.presume()  # what ended processes held; whoever comes next would find it, too
                if correct_clock:
                    found["reconciled"] += _clock_corrected(ledger)
                if reconcile:
                    found["reconciled"] += _reconciled(ledger)
                found["clock_ahead_s"] = _clock_ahead_s(ledger, problems)
                found |= _contents(ledger)
                found["limits"] = _limits(ledger, settings)
    except (MaestroError, OSError) as error:
        problems.append(_without_password(str(error)))
        found["state"] = "not reachable"
    problems += [f"the ledger's counters differ from its journal: {line}" for line in found["differences"]]
    return found


def _embedded(url: str, found: dict[str, Any], problems: list[str]) -> Ledger | None:
    """Open a ledger that Maestro itself knows, or return None where opening would create its file."""
    from maestro_core.ledger import open_ledger

    path = sqlite_path(url)
    if path is None or is_there(path):
        return open_ledger(url, repair=False)  # to see what is wrong, and change nothing unasked
    found["state"] = f"none yet: the first call creates {path.absolute()}"
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK):
        problems.append(f"the ledger {path.absolute()} cannot be created: {folder} is not a writable folder")
    return None


def _reconciled(ledger: Ledger) -> list[str]:
    if ledger.url == "memory:":
        raise MaestroError(
            'the ledger "memory:" lives and ends with its process, so there is nothing to reconcile from outside;'
            " set MAESTRO_LEDGER=sqlite:///maestro.db, there and here"
        )
    reconcile = getattr(ledger, "reconcile", None)  # a plugin's ledger need not know it
    if reconcile is None:
        raise MaestroError(f"the ledger {ledger.url.partition(':')[0]}: cannot reconcile its counters")
    lines: list[str] = reconcile()
    return lines


def _clock_corrected(ledger: Ledger) -> list[str]:
    correct = getattr(ledger, "correct_clock", None)  # only a file outlives a clock that was wrong
    if correct is None:
        raise MaestroError("only a sqlite:/// ledger has a clock to correct; restart the process instead")
    ahead_us: int = correct()
    when = f"{from_micros(ledger.now_us()):%Y-%m-%d %H:%M} UTC"
    return (
        [f"the ledger's time was {timedelta(microseconds=ahead_us)} ahead; it is {when} now"]
        if ahead_us
        else []
    )


def _clock_ahead_s(ledger: Ledger, problems: list[str]) -> int:
    """Return how far the ledger's time is ahead of this machine's, which is worth a line from a minute on."""
    then, now = from_micros(ledger.now_us()), datetime.now(UTC)
    ahead_s = max(0, int((then - now).total_seconds()))
    if ahead_s < _AHEAD_S:
        return 0
    problems.append(
        f"the ledger's time, {then:%Y-%m-%d %H:%M} UTC, is {timedelta(seconds=ahead_s)} ahead of this machine's, which was"
        " set back or ran ahead once; calls count in the windows of that time until the machine has caught up; if"
        " this machine's is right, maestro doctor --correct-clock"
    )
    return ahead_s


def _contents(ledger: Ledger) -> dict[str, Any]:
    differences = ledger.check()
    return {
        "state": "damaged" if differences else "in order: counters and journal agree",
        "differences": differences,
        "meters": [meter.id for meter in ledger.meters()],
        "unpriced": [
            {"provider": each.values[0], "model": each.values[1], "calls": each.unpriced_calls}
            for each in ledger.sums(("provider", "model"))
            if each.unpriced_calls
        ],
        "holds": [
            {
                "key": hold.key,
                "state": hold.state,
                "amount": f"{to_usd(hold.amount_nanos):f}",
                "at": f"{from_micros(hold.at_us):%Y-%m-%dT%H:%M:%SZ}",
                "provider": hold.provider,
                "model": hold.model,
                "run": hold.attribution.dimensions.get("run"),
                "owner": hold.owner,
            }
            for hold in ledger.holds()
        ],
    }


def _limits(ledger: Ledger, settings: Settings) -> list[dict[str, Any]]:
    """Return the limits that living processes enforce, and what the settings say of the same meters."""
    limits: dict[Meter, set[int]] = getattr(ledger, "limits", dict)()  # a plugin's ledger need not know them
    for cap in settings.caps:
        if (meter := cap.meter(settings.time_zone)) in limits:
            limits[meter].add(cap.limit_nanos)
    return [
        {"meter": meter.id, "limits": [f"{to_usd(limit):f}" for limit in sorted(each)]}
        for meter, each in limits.items()
    ]


def _price_book(problems: list[str]) -> str | None:
    try:
        from maestro_core.prices import price_book

        return price_book()
    except (ImportError, MaestroError) as error:
        problems.append(f"the price book cannot be read: {error}")
        return None


def _newest_price() -> str | None:
    from maestro_core.prices import newest_price

    try:
        newest = newest_price(datetime.now(UTC).date())
    except ImportError:  # said already
        return None
    return f"{newest}" if newest else None


def _plugins(manager: PluginManager, problems: list[str]) -> list[str]:
    names = [name for name, plugin in manager.list_name_plugin() if plugin is not None]
    broken = sorted({point.name for point in entry_points(group="maestro")} - set(names))
    problems += [f"plugin {name} was not loaded; the line above says why" for name in broken]
    return names


def _versions() -> dict[str, str]:
    import sqlite3

    own = {"maestro": __version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    return own | {name: _version(name) or "not installed" for name in _REQUIRED}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _otlp_endpoint() -> str | None:
    for part in ("TRACES_", ""):
        if endpoint := os.environ.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT"):
            return _without_password(endpoint)
    return None
