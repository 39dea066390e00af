"""Caps, budgets and the data around them: what is refused, how it reads, and that it travels."""

import copy
import pickle
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_core import Budget, Cap, CapExceeded, PriceNotFound
from maestro_core.types import UNATTRIBUTED, Attribution, Bucket, Call, Meter, Tree, check_dimension, new_key

BOTH = pytest.mark.parametrize("kind", [Cap, Budget])


@BOTH
@pytest.mark.parametrize("limit", ["abc", "-1", "nan", "inf", "-inf", "", "0.00000000001", "1e30"])
def test_a_limit_is_an_amount(kind, limit):
    with pytest.raises(ValueError, match=f"^{kind.__name__} limit "):
        kind(limit)


@BOTH
@pytest.mark.parametrize("limit", [0.5, 20.0, float("nan"), None, True])
def test_a_limit_is_no_float(kind, limit):
    with pytest.raises(TypeError, match=f"^{kind.__name__} limit must be a str, Decimal or int"):
        kind(limit)


@BOTH
@pytest.mark.parametrize(
    ("every", "hint"),
    [
        ("daily", 'did you mean "day"'),
        ("Month", 'did you mean "month"'),
        ("weeks", 'did you mean "week"'),
        ("", "None"),
    ],
)
def test_a_window_has_four_names(kind, every, hint):
    with pytest.raises(ValueError, match=f"every='{every}' is not a window.*{hint}"):
        kind(1, every=every)


@BOTH
@pytest.mark.parametrize(
    ("per", "why"),
    [
        (("team", "team"), "names a dimension twice"),
        ("", "1 to 128 characters"),
        ("a" * 129, "1 to 128 characters"),
        ("cost center", "may not contain spaces"),
        (("team", "a=b"), "may not contain"),
        (("team", 3), "1 to 128 characters"),
        ("te\x00am", "may not contain"),
    ],
)
def test_per_names_dimensions(kind, per, why):
    with pytest.raises(ValueError, match=why):
        kind(1, per=per)


@BOTH
@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("team=growth", "is not a mapping"),
        ([("team", "growth")], "is not a mapping"),
        ({"team": ""}, "where team='': a value is text"),
        ({"team": 3}, "where team=3: a value is text"),
        ({"team": "x" * 129}, "a value is text of 1 to 128"),
        ({"": "growth"}, "a dimension is a name"),
        ({3: "growth"}, "a dimension is a name"),
    ],
)
def test_where_maps_dimensions_to_values(kind, where, why):
    with pytest.raises(ValueError, match=why):
        kind(1, where=where)


@BOTH
@pytest.mark.parametrize("alert_at", [0, -0.5, 101, True, float("nan"), float("inf"), (0.5, "0.8"), "0.8"])
def test_alert_at_is_a_fraction_of_the_limit(kind, alert_at):
    with pytest.raises(ValueError, match="each is a fraction of the limit"):
        kind(1, alert_at=alert_at)


def test_alerts_are_sorted_and_said_once():
    assert Cap(1, alert_at=(1, 0.5, 0.5)).alert_at == (0.5, 1.0)
    assert Cap(1, alert_at=0.8).alert_at == (0.8,)
    assert Cap(1).alert_at == ()
    assert Budget(1).alert_at == (0.5, 0.8, 1.0)


@pytest.mark.parametrize(
    ("cap", "text"),
    [
        (Cap(20), "$20.00"),
        (Cap("0.50", per="run"), "$0.50 per run"),
        (Cap("0.0421", per=("model", "customer"), every="day"), "$0.0421 per customer,model every day"),
        (Cap(3000, where={"team": "growth", "feature": "x"}, every="month"), "$3,000.00 where feature=x,team=growth every month"),
    ],
)  # fmt: skip
def test_a_cap_reads_as_a_sentence(cap, text):
    assert str(cap) == text


@pytest.mark.parametrize(
    ("cap", "values", "label", "meter_id"),
    [
        (Cap(1), (), "everything", "all"),
        (Cap(1, every="day"), (), "every day", "all every day Europe/Berlin"),
        (Cap(1, per="customer"), ("acme",), "customer=acme", "customer"),
        (Cap(1, where={"team": "growth"}), (), "team=growth", "all where team=growth"),
        (
            Cap(1, per=("model", "customer"), where={"team": "growth"}, every="hour"), ("acme", "gpt-5"),
            "customer=acme,model=gpt-5 where team=growth every hour",
            "customer,model where team=growth every hour Europe/Berlin",
        ),
    ],
)  # fmt: skip
def test_a_bucket_and_its_meter_have_readable_names(cap, values, label, meter_id):
    meter = cap.meter("Europe/Berlin")
    assert Bucket(meter, values, None).label == label
    assert meter.id == meter_id


names = st.sampled_from(["team", "feature", "customer", "model", "run", "agent"])
limits = st.builds(
    dict,
    per=st.lists(names, unique=True, max_size=3),
    where=st.dictionaries(
        names, st.sampled_from(["a", "b", "a,team=b", '"a"', "a every day UTC"]), max_size=3
    ),
    every=st.sampled_from([None, "hour", "day", "week", "month"]),
)


@given(limits, st.data())
def test_a_meter_is_about_which_calls_never_about_how_much_or_in_which_order(declared, data):
    shuffled = {
        "per": data.draw(st.permutations(declared["per"])),
        "where": dict(data.draw(st.permutations(list(declared["where"].items())))),
        "every": declared["every"],
    }
    one = Cap(1, **declared).meter("UTC")
    other = Budget("99.50", **shuffled, alert_at=0.3).meter("UTC")
    assert one == other
    assert hash(one) == hash(other)
    assert one.id == other.id


@given(limits, limits)
def test_different_meters_have_different_ids(one, other):
    first, second = Cap(1, **one).meter("UTC"), Cap(1, **other).meter("UTC")
    assert (first == second) == (first.id == second.id)


def test_a_value_cannot_pass_for_another_condition():
    one = Cap(1, where={"team": "a,user=b"}).meter("UTC")
    other = Cap(1, where={"team": "a", "user": "b"}).meter("UTC")
    assert one.id == 'all where team="a,user=b"'
    assert other.id == "all where team=a,user=b"


def test_the_time_zone_tells_windows_apart_and_nothing_else():
    assert Cap(1, every="day").meter("UTC") != Cap(1, every="day").meter("Asia/Tokyo")
    assert Cap(1).meter("UTC") == Cap(1).meter("Asia/Tokyo")


@pytest.mark.parametrize(
    "thing",
    [
        Cap("0.50", per=("run", "team"), where={"feature": "x"}, every="day", alert_at=0.8),
        Budget(500, per="feature"),
        Meter(("team",), (("feature", "x"),), "day", "Asia/Tokyo"),
        Attribution({"team": "growth"}, (("agent", "boss"),)),
        Call(provider="openai", model="gpt-5", input=[{"role": "user"}], attribution=Attribution({"team": "a"})),
    ],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
@pytest.mark.parametrize("travel", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_data_travels_between_processes(thing, travel):
    arrived = travel(thing)
    assert arrived == thing
    assert type(arrived) is type(thing)


def test_a_meter_travels_with_its_id_computed():
    meter = Meter(("team",))
    assert meter.id == pickle.loads(pickle.dumps(meter)).id == "team"


@pytest.mark.parametrize("field", ["limit_nanos", "per", "every"])
def test_a_cap_is_frozen(field):
    with pytest.raises(AttributeError):
        setattr(Cap(1), field, None)


def test_a_cap_is_not_a_budget():
    assert Cap(1) == Cap("1.00")
    assert Cap(1) != Cap(2)
    assert Cap(1, alert_at=(0.5, 0.8, 1.0)) != Budget(1)
    assert len({Cap(1), Cap("1"), Cap(Decimal(1))}) == 1


def test_errors_travel_with_their_numbers():
    cap = Cap(20, per="customer", every="day")
    error = CapExceeded("cap exceeded (spent): ...", reason="spent", cap=cap, needed=Decimal("0.35"))
    arrived = pickle.loads(pickle.dumps(error))
    assert str(arrived) == str(error)
    assert (arrived.reason, arrived.cap, arrived.needed) == ("spent", cap, Decimal("0.35"))
    missing = pickle.loads(pickle.dumps(PriceNotFound("no price", ["gpt-5"])))
    assert (str(missing), missing.closest) == ("no price", ("gpt-5",))


def test_a_call_is_charged_to_everyone_on_its_way_and_reported_at_the_innermost():
    path = (("agent", "boss"), ("tool", "delegate"), ("agent", "researcher"), ("agent", "boss"))
    whom = Attribution({"team": "growth", "agent": "ignored where there is a path"}, path)
    assert whom.value("agent") == "boss"
    assert whom.values("agent") == ("boss", "researcher")
    assert whom.value("tool") == "delegate"
    assert whom.value("team") == "growth"
    assert whom.values("customer") == (UNATTRIBUTED,)
    assert Attribution().value("agent") == UNATTRIBUTED


@pytest.mark.parametrize("name", ["team", "cost_center", "Kostenträger", "a-b.c/d", "x" * 128])
def test_a_dimension_is_any_word(name):
    assert check_dimension(name) == name


def test_keys_are_unique_and_sorted_by_time():
    keys = [new_key() for _ in range(1_000)]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {26}
    assert [key[:10] for key in keys] == sorted(key[:10] for key in keys)


def test_a_tree_reads_from_the_top():
    model = Tree("model", "gpt-5 @openai", Decimal("0.02"), Decimal("0.02"), 2, (), ())
    agent = Tree("agent", "boss", Decimal("0.02"), Decimal("0.02"), 2, ("cap exceeded",), (model,))
    run = Tree("run", "r1", Decimal(0), Decimal("0.02"), 2, (), (agent,))
    assert str(run).splitlines() == [
        "run r1  $0.02  (2 calls)",
        "  agent boss  $0.02  (2 calls)",
        "    refused: cap exceeded",
        "    model gpt-5 @openai  $0.02  (2 calls)",
    ]
