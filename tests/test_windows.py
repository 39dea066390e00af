"""Calendar windows where days are not 24 hours, and what ledgers and waiting calls do when one ends."""

import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_core import Cap, CapExceeded, Maestro
from maestro_core.caps import window
from maestro_core.clock import from_micros, to_micros
from maestro_core.ledger import open_ledger
from maestro_core.testing import FakeClock
from maestro_core.types import Attribution, Call, Held, Hold, Meter, Refused, Settlement, new_key

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
ZONES = sorted(available_timezones() - {"localtime"})
moments = st.datetimes(datetime(1975, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def local(at_us, zone):
    return from_micros(at_us).astimezone(ZoneInfo(zone))


def first_of(every, day):
    return {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}[every]


def around_a_change(zone, moment):
    """Return the instant at which the zone's clocks change next, or the moment itself: where bugs would be."""
    low = moment
    for _ in range(400):
        high = low + timedelta(days=1)
        if low.astimezone(zone).utcoffset() != high.astimezone(zone).utcoffset():
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                changed = low.astimezone(zone).utcoffset() != middle.astimezone(zone).utcoffset()
                low, high = (low, middle) if changed else (middle, high)
            return high
        low = high
    return moment


@given(
    every=st.sampled_from(["hour", "day", "week", "month"]),
    zone=st.sampled_from(ZONES),
    moment=moments,
    offset_us=st.integers(-26 * HOUR_US, 26 * HOUR_US),
)
def test_windows_tile_time_in_every_zone_also_where_clocks_change(every, zone, moment, offset_us):
    at_us = to_micros(around_a_change(ZoneInfo(zone), moment)) + offset_us
    found = window(every, zone, at_us)
    assert found.start_us <= at_us < found.end_us
    assert window(every, zone, found.start_us) == window(every, zone, found.end_us - 1) == found
    assert window(every, zone, found.end_us).start_us == found.end_us
    assert window(every, zone, found.start_us - 1).end_us == found.start_us


@given(every=st.sampled_from(["day", "week", "month"]), zone=st.sampled_from(ZONES), moment=moments)
def test_a_window_begins_with_its_first_local_date(every, zone, moment):
    at_us = to_micros(around_a_change(ZoneInfo(zone), moment))
    found = window(every, zone, at_us)
    begin, before = local(found.start_us, zone), local(found.start_us - 1, zone)
    assert first_of(every, begin.date()) == begin.date() or before.date() < first_of(every, begin.date())
    assert first_of(every, before.date()) < first_of(every, begin.date())
    assert first_of(every, local(found.end_us, zone).date()) > first_of(every, begin.date())


@pytest.mark.parametrize(
    ("zone", "noon", "start", "hours"),
    [
        # Of years past only: for those to come, rules change from one edition of the time zones to the next.
        ("America/New_York", "2025-03-09", "00:00-0500", 23),
        ("America/New_York", "2025-11-02", "00:00-0400", 25),
        ("Australia/Lord_Howe", "2024-10-06", "00:00+1030", 23.5),  # clocks change by half an hour
        ("Australia/Lord_Howe", "2024-04-07", "00:00+1100", 24.5),
        ("America/Sao_Paulo", "2018-11-04", "01:00-0200", 23),  # midnight was skipped
        ("America/Sao_Paulo", "2018-02-17", "00:00-0200", 25),  # 23:00 to 24:00 came twice
        ("Asia/Beirut", "2022-03-27", "01:00+0300", 23),
        ("Asia/Beirut", "2022-10-29", "00:00+0300", 25),
        (
            "America/Havana",
            "2024-11-03",
            "00:00-0400",
            25,
        ),  # midnight came twice: the day begins at the first (fold=0)
        ("Asia/Kathmandu", "2024-11-01", "00:00+0545", 24),
        ("Pacific/Apia", "2011-12-31", "00:00+1400", 24),  # the day after the one that never was
        (
            "America/St_Johns",
            "2010-11-07",
            "00:00-0230",
            25,
        ),  # at one minute past midnight it was yesterday again
    ],
)
def test_days_are_as_long_as_they_are(zone, noon, start, hours):
    at = datetime.fromisoformat(f"{noon}T12:00").replace(tzinfo=ZoneInfo(zone))
    found = window("day", zone, to_micros(at))
    assert f"{local(found.start_us, zone):%Y-%m-%d %H:%M%z}" == f"{noon} {start}"
    assert (found.end_us - found.start_us) / HOUR_US == hours


def test_the_day_that_never_was_belongs_to_nobody():
    found = window("day", "Pacific/Apia", to_micros(datetime(2011, 12, 30, 9, tzinfo=UTC)))
    assert local(found.start_us, "Pacific/Apia").day == 29
    assert local(found.end_us, "Pacific/Apia").day == 31


def test_the_last_hour_of_a_day_that_is_half_an_hour_longer_is_half_an_hour():
    day = window("day", "Australia/Lord_Howe", to_micros(datetime(2026, 4, 5, tzinfo=UTC)))
    last = window("hour", "Australia/Lord_Howe", day.end_us - 1)
    assert (last.end_us, last.end_us - last.start_us) == (day.end_us, HOUR_US // 2)


# --- in a ledger

DAILY = Meter((), (), "day", "Europe/Berlin")
EVE = datetime(
    2026, 3, 28, 22, 59, 59, tzinfo=UTC
)  # one second to midnight in Berlin; the day after has 23 hours


@pytest.fixture(params=["memory:", "sqlite:///{}/ledger.db"])
def url(request, tmp_path):
    return request.param.format(tmp_path)


def hold(amount, limit=None):
    limits = ((DAILY, limit),) if limit else ()
    return Hold(new_key(), amount, "openai", "gpt-5", Attribution(), limits)


def test_a_call_reserved_before_midnight_and_settled_after_belongs_to_the_old_day(url):
    clock = FakeClock(EVE)
    with closing(open_ledger(url, clock=clock)) as ledger:
        old = ledger.reserve(hold(100, 100))
        assert isinstance(ledger.reserve(hold(1, 100)), Refused)
        clock.advance(1)
        new = ledger.reserve(hold(100, 100))
        assert isinstance(new, Held)
        assert ledger.settle(old.key, Settlement(cost_nanos=150)).overrun
        [bucket] = ledger.buckets(DAILY)
        assert (bucket.spent, bucket.held) == (0, 100)
        assert bucket.window.end_us - bucket.window.start_us == 23 * HOUR_US
        ledger.settle(new.key, Settlement(cost_nanos=90))
        assert isinstance(ledger.reserve(hold(11, 100)), Refused)
        assert isinstance(ledger.reserve(hold(10, 100)), Held)
        since = to_micros(EVE) + 1_000_000
        assert ledger.sums((), until_us=since)[0].cost_nanos == 150
        assert ledger.sums((), since_us=since)[0].cost_nanos == 90
        assert ledger.check() == []


def test_a_late_truth_and_a_presumed_call_belong_to_the_old_day_too(url):
    clock = FakeClock(EVE)
    with closing(open_ledger(url, clock=clock)) as ledger:
        lost = ledger.reserve(hold(100, 100))
        clock.advance(days=1)
        ledger.presume(keys=[lost.key])
        assert ledger.buckets(DAILY) == []
        ledger.settle(lost.key, Settlement(cost_nanos=40))
        assert ledger.buckets(DAILY) == []
        assert isinstance(ledger.reserve(hold(100, 100)), Held)
        assert ledger.check() == []


class Settable:
    """A machine's clock, which people set."""

    def __init__(self, at):
        self.at_us = to_micros(at)

    def now_us(self):
        return self.at_us


def test_a_clock_set_back_reopens_no_window_for_any_process(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    right, slow = Settable(EVE + timedelta(hours=1)), Settable(EVE - timedelta(days=1))
    with closing(open_ledger(url, clock=right)) as ledger:
        spent = ledger.reserve(hold(100, 100))
        right.at_us -= DAY_US
        assert isinstance(ledger.reserve(hold(1, 100)), Refused)
        with closing(open_ledger(url, clock=slow)) as other:  # also one that never saw the right time
            refused = other.reserve(hold(1, 100))
            assert refused.at_us == spent.at_us
            assert refused.bucket.held == 100
        right.at_us += 2 * DAY_US
        assert isinstance(ledger.reserve(hold(1, 100)), Held)
        assert ledger.check() == []


def test_a_clock_that_was_a_year_ahead_counts_in_that_day_until_it_is_reached(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    clock = Settable(EVE + timedelta(days=365))
    with closing(open_ledger(url, clock=clock)) as ledger:
        ahead = ledger.reserve(hold(60, 100))
        clock.at_us = to_micros(EVE)
        with closing(open_ledger(url, clock=clock)) as other:
            assert isinstance(other.reserve(hold(41, 100)), Refused)
            assert other.reserve(hold(40, 100)).at_us == ahead.at_us
            assert other.check() == []


# --- waiting


@pytest.fixture
def clock(monkeypatch):
    found = FakeClock(EVE)
    for module in ("memory", "sqlite"):
        monkeypatch.setattr(f"maestro_core.ledger.{module}.SystemClock", lambda: found)
    return found


def call():
    return Call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=4000)


def test_a_waiter_that_crosses_midnight_is_admitted_into_the_new_day_and_charged_there(url, clock):
    caps = [Cap("0.009", every="day")]  # worth one call
    with closing(Maestro(ledger=url, caps=caps, time_zone="Europe/Berlin", wait_s=60)) as maestro:
        first = maestro.reserve(call())
        midnight = EVE + timedelta(seconds=1)
        with pytest.raises(CapExceeded, match="held") as caught:
            maestro.reserve(call())
        assert caught.value.resets_at == midnight
        [status] = maestro.status()
        assert status.resets_at == midnight
        found = []
        waiter = threading.Thread(target=lambda: found.append(maestro.doors.reserve(call(), fits=False)))
        waiter.start()
        waiter.join(0.5)
        assert found == []
        clock.advance(1)
        waiter.join(20)
        [second] = found
        assert second.at == midnight
        cost = maestro.settle(first, None).cost
        [status] = maestro.status()
        assert (status.spent, status.held > 0) == (0, True)
        assert status.resets_at == midnight + timedelta(hours=23)
        maestro.settle(second, None)
        [status] = maestro.status()
        assert (status.spent, status.held) == (cost, 0)
        assert maestro.ledger.check() == []
