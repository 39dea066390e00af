"""Calendar windows and the buckets that a call charges."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_core.caps import charges, matches, window
from maestro_core.clock import from_micros, to_micros
from maestro_core.errors import SettingsError
from maestro_core.types import Attribution, Cap, Meter

HOUR_US = 3_600_000_000
# Half-hour and 45-minute offsets, half-hour DST, midnight DST, a skipped day, clocks set back across midnight.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
    "America/Sao_Paulo", "America/Havana", "Pacific/Apia", "America/St_Johns", "Africa/Cairo",
)  # fmt: skip


def at(text, zone="UTC"):
    return to_micros(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)))


def span(every, zone, text):
    found = window(every, zone, at(text, zone))
    local = [from_micros(us).astimezone(ZoneInfo(zone)).isoformat() for us in (found.start_us, found.end_us)]
    return [*local, (found.end_us - found.start_us) / HOUR_US]


def test_no_window_without_every():
    assert window(None, "UTC", 0) is None


@pytest.mark.parametrize(
    ("every", "zone", "moment", "expected"),
    [
        ("hour", "UTC", "2026-11-23T10:59:59.999999", ["2026-11-23T10:00:00+00:00", "2026-11-23T11:00:00+00:00", 1]),
        ("hour", "Asia/Kolkata", "2026-11-23T10:10", ["2026-11-23T10:00:00+05:30", "2026-11-23T11:00:00+05:30", 1]),
        ("day", "UTC", "2026-11-23T00:00", ["2026-11-23T00:00:00+00:00", "2026-11-24T00:00:00+00:00", 24]),
        ("day", "America/New_York", "2026-03-08T12:00", ["2026-03-08T00:00:00-05:00", "2026-03-09T00:00:00-04:00", 23]),
        ("day", "America/New_York", "2026-11-01T12:00", ["2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00", 25]),
        # In São Paulo clocks jumped from 00:00 to 01:00, so the day began at 01:00.
        ("day", "America/Sao_Paulo", "2018-11-04T12:00", ["2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00", 23]),
        ("week", "Europe/Berlin", "2026-03-29T12:00", ["2026-03-23T00:00:00+01:00", "2026-03-30T00:00:00+02:00", 167]),
        ("week", "UTC", "2026-11-23T00:00", ["2026-11-23T00:00:00+00:00", "2026-11-30T00:00:00+00:00", 168]),
        ("month", "UTC", "2028-02-29T23:59", ["2028-02-01T00:00:00+00:00", "2028-03-01T00:00:00+00:00", 29 * 24]),
        ("month", "UTC", "2026-12-31T23:59", ["2026-12-01T00:00:00+00:00", "2027-01-01T00:00:00+00:00", 31 * 24]),
        ("month", "UTC", "2026-01-31T12:00", ["2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00", 31 * 24]),
    ],
)  # fmt: skip
def test_windows_are_local_calendar_windows(every, zone, moment, expected):
    assert span(every, zone, moment) == expected


@given(
    every=st.sampled_from(["hour", "day", "week", "month"]),
    zone=st.sampled_from(ZONES),
    moment=st.datetimes(datetime(1980, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_windows_are_a_partition_of_time(every, zone, moment):
    at_us = to_micros(moment)
    found = window(every, zone, at_us)
    assert found.start_us <= at_us < found.end_us
    assert window(every, zone, found.start_us) == found
    assert window(every, zone, found.end_us - 1) == found
    assert window(every, zone, found.end_us).start_us == found.end_us
    assert window(every, zone, found.start_us - 1).end_us == found.start_us


@pytest.mark.parametrize(
    "zone", ["America/St_Johns", "America/Havana", "Pacific/Apia", "Australia/Lord_Howe"]
)
def test_windows_are_a_partition_through_every_quarter_hour_of_odd_years(zone):
    moment, end = datetime(2011, 1, 1, tzinfo=UTC), datetime(2012, 1, 2, tzinfo=UTC)
    day = window("day", zone, to_micros(moment))
    while moment < end:
        at_us = to_micros(moment)
        if at_us >= day.end_us:
            following = window("day", zone, at_us)
            assert following.start_us == day.end_us
            day = following
        assert window("day", zone, at_us) == day
        moment += timedelta(minutes=15)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd"])
def test_unknown_time_zone_is_one_clear_error(zone):
    with pytest.raises(SettingsError, match="unknown; use an IANA name"):
        window("day", zone, 0)


CALL = Attribution(
    {"team": "growth", "customer": "acme"},
    (("agent", "boss"), ("tool", "delegate"), ("agent", "researcher"), ("tool", "search"), ("agent", "boss")),
)


def buckets(cap, attribution=CALL):
    return [values for _, values in charges([cap.meter("UTC")], attribution, "openai", "gpt-5")]


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        (Cap(1), [()]),
        (Cap(1, per="team"), [("growth",)]),
        (Cap(1, per="feature"), [("(unattributed)",)]),
        (Cap(1, per="agent"), [("boss",), ("researcher",)]),
        (Cap(1, per="provider"), [("openai",)]),
        (Cap(1, per=("tool", "model")), [("gpt-5", "delegate"), ("gpt-5", "search")]),
        (
            Cap(1, per=("agent", "tool")),
            [("boss", "delegate"), ("boss", "search"), ("researcher", "delegate"), ("researcher", "search")],
        ),
        (Cap(1, per="customer", where={"team": "growth"}), [("acme",)]),
        (Cap(1, per="customer", where={"team": "other"}), []),
        (Cap(1, where={"agent": "boss"}), [()]),
        (Cap(1, where={"agent": "researcher", "model": "gpt-5"}), [()]),
        (Cap(1, where={"agent": "researcher", "model": "gpt-4"}), []),
        (Cap(1, where={"feature": "(unattributed)"}), [()]),
    ],
)
def test_charges(cap, expected):
    assert buckets(cap) == expected


def test_a_call_without_a_path_is_unattributed_to_agents():
    assert buckets(Cap(1, per="agent"), Attribution()) == [("(unattributed)",)]


def test_matches_looks_at_every_where():
    meter = Meter((), (("agent", "researcher"), ("team", "growth")))
    assert matches(meter, CALL)
    assert not matches(meter, Attribution({"team": "growth"}))
    assert not matches(Meter((), (("provider", "openai"),)), CALL, "anthropic", "claude")
