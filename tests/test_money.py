"""Money is exact: nano-dollars inside, `Decimal` at the edge, never a float."""

from datetime import UTC, datetime
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_core.money import NANOS_PER_USD, format_usd, parse_usd, to_nanos, to_usd
from maestro_core.types import Cost, CostLine, Report, ReportRow

MOST = 10**18
amounts = st.integers(0, MOST)


@pytest.mark.parametrize(
    ("value", "nanos"),
    [
        ("0", 0),
        ("20", 20 * NANOS_PER_USD),
        ("0.50", 500_000_000),
        (" $12.34 ", 12_340_000_000),
        ("1e-9", 1),
        ("0.5" + "0" * 50, 500_000_000),
        ("0.000000001", 1),
        ("1_000", 1_000 * NANOS_PER_USD),
        (3, 3 * NANOS_PER_USD),
        (Decimal("0.1"), 100_000_000),
        ("1000000000", MOST),
    ],
)
def test_dollars_become_nanos_exactly(value, nanos):
    parsed = parse_usd(value)
    assert parsed == nanos
    assert type(parsed) is int


@pytest.mark.parametrize("value", [0.5, 1.0, True, None, b"1", ["1"]])
def test_only_text_decimals_and_ints_are_dollars(value):
    with pytest.raises(TypeError, match=f"limit must be a str, Decimal or int.*not {type(value).__name__}"):
        parse_usd(value, name="limit")


def test_the_error_for_a_float_shows_what_to_write():
    with pytest.raises(TypeError, match=r'write "0\.1" in quotes'):
        parse_usd(0.1)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("abc", 'not an amount of US dollars; write for example "20"'),
        ("", "not an amount"),
        ("1,5", "not an amount"),
        ("$", "not an amount"),
        ("-0.01", "negative"),
        (-1, "negative"),
        (Decimal(-5), "negative"),
        ("nan", "not a finite"),
        (Decimal("sNaN"), "not a finite"),
        ("inf", "not a finite"),
        (Decimal("-Infinity"), "not a finite"),
        ("0.0000000001", "more than nine decimal places"),
        ("1000000000.000000001", "more than Maestro counts"),
        (10**30, "more than Maestro counts"),
        ("1e999999999", "more than Maestro counts"),
        ("1e-999999999", "more than nine decimal places"),
        ("1." + "0" * 50 + "1", "more than nine decimal places"),
    ],
)
def test_what_is_no_amount_says_why_and_names_the_value(value, why):
    with pytest.raises(ValueError, match=why) as caught:
        parse_usd(value, name="Cap limit")
    assert str(caught.value).startswith(f"Cap limit {value!r}")


@given(amounts)
def test_there_and_back_again(nanos):
    usd = to_usd(nanos)
    assert Fraction(usd) == Fraction(nanos, NANOS_PER_USD)
    assert parse_usd(usd) == parse_usd(f"{usd:f}") == nanos
    assert not f"{usd:f}".endswith(".0")


@given(st.integers(-MOST, MOST))
def test_money_of_either_sign_comes_back(nanos):
    assert to_nanos(to_usd(nanos)) == nanos


@given(amounts)
def test_a_narrow_decimal_context_of_the_application_changes_nothing(nanos):
    text = format_usd(nanos)
    with localcontext() as context:
        context.prec = 4
        assert parse_usd(f"{nanos // NANOS_PER_USD}.{nanos % NANOS_PER_USD:09}") == nanos
        assert Fraction(to_usd(nanos)) == Fraction(nanos, NANOS_PER_USD)
        assert to_nanos(to_usd(nanos)) == nanos
        assert format_usd(nanos) == text


def test_a_report_adds_up_in_a_narrow_decimal_context():
    row = ReportRow(
        key={"team": "growth"}, cost=Decimal("1234.567891"), calls=1, input_tokens=1, output_tokens=1,
        estimated=Decimal("1234.567891"), unpriced_calls=0,
    )  # fmt: skip
    now = datetime(2026, 11, 23, tzinfo=UTC)
    report = Report(by=("team",), since=None, until=now, total=Decimal("2469.135782"), rows=(row, row))
    with localcontext() as context:
        context.prec = 4
        assert str(report).splitlines()[-1].split() == ["total", "$2,469.14", "2", "2", "2", "$2,469.14"]


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "$0.00"),
        (12_340_000_000, "$12.34"),
        (1_234_567_890_000_000, "$1,234,567.89"),
        (500_000_000, "$0.50"),
        (42_100_000, "$0.0421"),
        (123_456_789, "$0.1235"),
        (1, "$0.000000001"),
        (-42_100_000, "-$0.0421"),
        (-3_000_000_000, "-$3.00"),
        (999_999_999, "$1.00"),
    ],
)
def test_dollars_as_people_read_them(nanos, text):
    assert format_usd(nanos) == text


@given(st.integers(1, MOST))
def test_what_is_not_free_never_reads_as_free(nanos):
    assert any(digit in format_usd(nanos) for digit in "123456789")


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.integers(1, 1000))
def test_a_cost_line_is_exact_and_rounds_half_even(count, rate, divisor):
    line = CostLine("input", count, Fraction(rate, divisor))
    exact = Fraction(count * rate, divisor)
    assert line.picos == exact
    assert abs(Fraction(line.usd) * NANOS_PER_USD - exact / 1000) <= Fraction(1, 2)


@pytest.mark.parametrize(("picos", "nanos"), [(499, 0), (500, 0), (501, 1), (1_500, 2), (2_500, 2)])
def test_half_a_nano_dollar_goes_to_the_even_one(picos, nanos):
    assert CostLine("input", 1, picos).usd == to_usd(nanos)


def test_a_cost_is_dollars_at_the_edge():
    assert Cost(1_250_000_000).usd == Decimal("1.25")
