"""Plugins: deciders decide, collectors add up, observers can do no harm."""

import logging
import textwrap
from decimal import Decimal

import pluggy
import pytest

from maestro_core import Cap, CapExceeded, PriceNotFound, Usage, attribution, hookimpl, price
from maestro_core.errors import MaestroError
from maestro_core.types import Attribution, Call, Cost, CostLine

USED = Usage(input_tokens=1_000, output_tokens=100)


def call(model="gpt-5-mini", **kwargs):
    return Call(provider="openai", model=model, **{"input": "hello", "max_output_tokens": 100, **kwargs})


@pytest.fixture
def maestro(make_maestro):
    return make_maestro(caps=[Cap(5)])


def plug(maestro, **hooks):
    """Register a plugin made of functions."""
    plugin = type("Plugin", (), {name: staticmethod(hookimpl(function)) for name, function in hooks.items()})
    maestro.plugins.register(plugin())


def test_attribution_is_collected_from_every_plugin(maestro):
    plug(maestro, maestro_attribution=lambda call: {"customer": "acme", "team": "from the plugin"})
    plug(maestro, maestro_attribution=lambda call: None)
    plug(maestro, maestro_attribution=lambda: {"feature": "search"})
    with attribution(team="growth"):
        found = maestro.reserve(call()).call.attribution
    assert found.dimensions == {"customer": "acme", "feature": "search", "team": "growth"}


def test_attribution_from_a_plugin_wins_over_the_environments(make_maestro, monkeypatch):
    monkeypatch.setenv("MAESTRO_ATTRIBUTION", "customer=nobody,team=growth")
    maestro = make_maestro()
    plug(maestro, maestro_attribution=lambda call: {"customer": "acme"})
    maestro.settle(maestro.reserve(call()), USED)
    assert maestro.report(by=("team", "customer")).rows[0].key == {"team": "growth", "customer": "acme"}


def test_what_a_plugin_says_is_made_text_that_every_ledger_can_keep(make_maestro):
    maestro = make_maestro(ledger="sqlite:///m.db", caps=[Cap(5, per="customer")])
    plug(
        maestro,
        maestro_attribution=lambda call: {"customer": 42, "user": None, "feature": "", "note": "x" * 500},
    )
    record = maestro.settle(maestro.reserve(call()), USED)
    assert record.attribution.dimensions.keys() == {"customer", "note"}
    assert len(record.attribution.dimensions["note"]) == 128
    assert [row.key for row in maestro.report(by="customer").rows] == [{"customer": "42"}]


@pytest.mark.parametrize("name", ["model", "cost center"])
def test_a_plugin_cannot_set_what_is_no_dimension(maestro, name):
    plug(maestro, maestro_attribution=lambda call: {name: "x"})
    with pytest.raises(ValueError, match=name):
        maestro.reserve(call())


def test_of_too_many_dimensions_those_that_caps_look_at_are_kept(make_maestro):
    maestro = make_maestro(
        caps=[Cap("0.000001", where={"customer": "acme"}), Cap(5, per="tenant")], require=["team"]
    )
    plug(maestro, maestro_attribution=lambda call: {f"p{i}": "x" for i in range(16)})
    late = {"run": "r1", "customer": "globex", "tenant": "t1", "team": "growth"}
    kept = maestro.reserve(call(attribution=Attribution(late))).call.attribution.dimensions
    assert len(kept) == 16
    assert late.items() <= kept.items()
    with pytest.raises(CapExceeded, match="customer=acme"):
        maestro.reserve(call(attribution=Attribution({**late, "customer": "acme"})))


@pytest.mark.parametrize(
    ("per", "bucket"), [("model", "model=gpt-5-mini"), (("provider", "team"), "provider=openai,team=growth")]
)
def test_a_refusal_names_its_bucket(make_maestro, per, bucket):
    maestro = make_maestro(caps=[Cap("0.000001", per=per)])
    with attribution(team="growth"), pytest.raises(CapExceeded) as caught:
        maestro.reserve(call())
    assert (caught.value.reason, caught.value.bucket) == ("ceiling", bucket)


def test_caps_come_from_a_plan_table(maestro):
    plans = {"free": Cap("0.01", per="customer"), "paid": Cap("1", per="customer")}
    plug(
        maestro,
        maestro_caps=lambda call: (
            [plans["free"]] if call.attribution.value("customer") == "acme" else [plans["paid"]]
        ),
    )
    dear = call(max_output_tokens=20_000)
    assert Decimal("0.01") < price("openai", "gpt-5-mini", Usage(output_tokens=20_000)).usd < 1
    with attribution(customer="globex"):
        assert maestro.reserve(dear).capped
    with attribution(customer="acme"), pytest.raises(CapExceeded) as caught:
        maestro.reserve(call(max_output_tokens=20_000))
    assert caught.value.cap == plans["free"]
    assert caught.value.bucket == "customer=acme"


def test_a_cap_from_a_plugin_counts_what_was_spent_before(make_maestro):
    maestro = make_maestro()
    maestro.settle(maestro.reserve(call()), Usage(output_tokens=20_000))
    plug(maestro, maestro_caps=lambda call: [Cap("0.0401")])
    with pytest.raises(CapExceeded, match="spent") as caught:
        maestro.reserve(call())
    assert caught.value.spent == Decimal("0.04")


def gpu_hours(call, usage):
    """A GPU of one's own: 2 micro-dollars for each output token."""
    if call.model == "our-llama":
        tokens = usage.output_tokens
        return Cost(2_000 * tokens, (CostLine("output", tokens, 2_000_000),), "our-rack")
    return None


def test_own_rates_price_the_bound_and_the_bill(maestro):
    with pytest.raises(PriceNotFound):
        maestro.reserve(call("our-llama"))
    plug(maestro, maestro_price=gpu_hours)
    reservation = maestro.reserve(call("our-llama"))
    assert reservation.held_nanos == 2_000 * 100
    record = maestro.settle(reservation, Usage(input_tokens=9, output_tokens=7))
    assert (record.cost_nanos, record.price_id, record.estimated_nanos) == (14_000, "our-rack", 0)


def test_own_rates_hold_for_every_attempt_that_may_be_billed(maestro):
    plug(maestro, maestro_price=gpu_hours)
    reservation = maestro.reserve(call("our-llama", attempts=3))
    assert reservation.held_nanos == 3 * 2_000 * 100
    assert [line.count for line in reservation.bound.lines] == [3 * 100]


def test_what_a_pricing_plugin_does_not_know_comes_from_the_price_book(maestro):
    plug(maestro, maestro_price=gpu_hours)
    record = maestro.settle(maestro.reserve(call()), USED)
    assert record.cost_nanos == price("openai", "gpt-5-mini", USED).nanos > 0


def test_own_tokenizer_sets_the_bound(maestro):
    without = maestro.reserve(call(input="x" * 10_000)).held_nanos
    plug(maestro, maestro_estimate=lambda call: Usage(input_tokens=10, output_tokens=call.max_output_tokens))
    held = maestro.reserve(call(input="x" * 10_000)).held_nanos
    assert price("openai", "gpt-5-mini", Usage(input_tokens=10, output_tokens=100)).nanos <= held < without


def test_the_first_decider_with_an_answer_decides(maestro):
    asked = []
    plug(maestro, maestro_price=lambda call: asked.append("last") or Cost(3))
    plug(maestro, maestro_price=lambda call: asked.append("second") or Cost(2))
    plug(maestro, maestro_price=lambda call: asked.append("first"))
    assert maestro.reserve(call()).held_nanos == 2
    assert asked == ["first", "second"], "the one registered last is asked first"


@pytest.mark.parametrize("hook", ["maestro_price", "maestro_estimate", "maestro_caps", "maestro_attribution"])
def test_a_decider_or_collector_may_refuse_by_raising_and_nothing_is_held(maestro, hook):
    def fail(call):
        raise RuntimeError("the plan table is gone")

    plug(maestro, **{hook: fail})
    with pytest.raises(RuntimeError, match="the plan table is gone"):
        maestro.reserve(call())
    assert maestro.ledger.holds() == []


def test_observers_see_every_record_and_cannot_break_a_call(maestro, caplog):
    seen = []

    def fail(record):
        raise RuntimeError("no disk")

    plug(maestro, maestro_settled=lambda record: seen.append(("first", record)))
    plug(maestro, maestro_settled=fail)
    plug(maestro, maestro_settled=lambda record: seen.append(("last", record)))
    with caplog.at_level(logging.ERROR, "maestro"):
        record = maestro.settle(maestro.reserve(call()), USED)
    assert seen == [("first", record), ("last", record)]
    assert "failed in maestro_settled; the record is safe" in caplog.text
    assert "no disk" in caplog.text
    assert maestro.report().total == record.cost


def test_observers_see_releases(maestro):
    kinds = []
    plug(maestro, maestro_settled=lambda record: kinds.append(record.kind))
    maestro.release(maestro.reserve(call()), "HTTP 429")
    assert kinds == ["released"]


def test_observers_hear_of_each_record_once_however_often_it_is_settled(make_maestro, caplog):
    maestro = make_maestro()
    kinds = []
    plug(maestro, maestro_settled=lambda record: kinds.append(record.kind))
    reservation = maestro.reserve(call())
    first = maestro.settle(reservation, Usage(input_tokens=1_000_000, output_tokens=100))
    assert first.overrun
    again = [maestro.settle(reservation, Usage(input_tokens=1_000_000, output_tokens=100)) for _ in range(60)]
    assert again == [first] * 60
    assert kinds == ["settled"]
    assert caplog.text.count("overrun") == 1
    assert maestro.admission.outputs.comfort(reservation.call, 1_000) == 500  # one answer is too few to go by

    released = maestro.reserve(call())
    for _ in range(3):
        maestro.release(released, "HTTP 429")
    late = maestro.reserve(call())
    maestro.presume([late.key])
    for _ in range(3):
        maestro.settle(late, USED)
    assert kinds == ["settled", "released", "presumed", "corrected"]


def test_observers_see_refusals_and_cannot_turn_them_into_something_else(make_maestro):
    maestro = make_maestro(caps=[Cap("0.000001")])
    seen = []

    def fail(error):
        raise RuntimeError("pager is down")

    plug(maestro, maestro_refused=fail)
    plug(maestro, maestro_refused=lambda call, error: seen.append((call.model, error)))
    with pytest.raises(CapExceeded) as caught:
        maestro.reserve(call())
    assert seen == [("gpt-5-mini", caught.value)]


def test_a_plugin_that_asks_for_what_no_hook_gives_is_refused(maestro):
    with pytest.raises(pluggy.PluginValidationError, match="prompt"):
        plug(maestro, maestro_settled=lambda prompt: None)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install distributions that have an entry point in the group `maestro`."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, source):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8"
        )
        (info / "entry_points.txt").write_text(f"[maestro]\n{name} = {name}\n", encoding="utf-8")

    return make


def test_an_installed_plugin_opens_its_own_ledger(install, make_maestro):
    install(
        "maestro_in_a_drawer",
        """
        from maestro_core import hookimpl
        from maestro_core.ledger import open_ledger

        @hookimpl
        def maestro_ledger(url):
            if url.startswith("drawer:"):
                ledger = open_ledger("memory:")
                ledger.url = url
                return ledger
        """,
    )
    maestro = make_maestro(ledger="drawer:top", caps=[Cap(5)])
    assert maestro.ledger.url == "drawer:top"
    record = maestro.settle(maestro.reserve(call()), USED)
    assert maestro.report().total == record.cost > 0
    assert make_maestro(ledger="memory:").ledger.url == "memory:"


BROKEN = {
    "maestro_does_not_import": "import a_module_that_nobody_has",
    "maestro_misspells": """
        from maestro_core import hookimpl

        @hookimpl
        def maestro_attribution(call):
            return {"team": "half of a broken plugin"}

        @hookimpl
        def maestro_setled(record):
            pass
        """,
    "maestro_misunderstands": """
        from maestro_core import hookimpl

        @hookimpl
        def maestro_attribution(call):
            return {"team": "half of a broken plugin"}

        @hookimpl
        def maestro_settled(prompt):
            pass
        """,
}


@pytest.mark.parametrize("name", BROKEN)
def test_nothing_goes_without_an_installed_plugin_that_may_decide(install, make_maestro, name):
    install(name, BROKEN[name])
    with pytest.raises(MaestroError, match=f"plugin {name} of {name} was not loaded.*uninstall {name}"):
        make_maestro(caps=[Cap(5)])


def test_a_broken_plugin_that_only_observes_is_logged_and_left_out(install, make_maestro, caplog):
    observer = """
        from maestro_core import hookimpl

        @hookimpl
        def maestro_settled(prompt):
            pass
        """
    install("maestro_observer", observer)
    install(
        "maestro_zebra",
        BROKEN["maestro_misunderstands"]
        .replace("prompt", "record")
        .replace("half of a broken plugin", "stripes"),
    )
    maestro = make_maestro()
    assert "plugin maestro_observer of maestro_observer was not loaded" in caplog.text
    assert maestro.reserve(call()).call.attribution.dimensions == {"team": "stripes"}
