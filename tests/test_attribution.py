"""Who pays: how `attribution(...)` nests, where it reaches, and what it refuses."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool

from maestro_core import attribution
from maestro_core.attribution import clip, current, environment_defaults
from maestro_core.errors import SettingsError


def test_there_is_none_outside():
    assert current() == {}


def test_blocks_nest_and_merge_and_the_inner_one_wins():
    with attribution(team="growth", customer="acme"):
        with attribution(customer="globex", feature="search"):
            assert current() == {"team": "growth", "customer": "globex", "feature": "search"}
        assert current() == {"team": "growth", "customer": "acme"}
    assert current() == {}


def test_none_leaves_a_dimension_as_it_is():
    with attribution(team="growth"), attribution(team=None, user=None):
        assert current() == {"team": "growth"}


def test_a_block_ends_with_an_exception_too():
    with pytest.raises(KeyError), attribution(team="growth"):
        raise KeyError
    assert current() == {}


def test_an_int_is_text():
    with attribution(customer=42):
        assert current() == {"customer": "42"}


def test_one_object_may_be_entered_again_and_within_itself():
    growth = attribution(team="growth")
    with growth:
        with growth, attribution(team="search"), growth:
            assert current() == {"team": "growth"}
        assert current() == {"team": "growth"}
    assert current() == {}
    with growth:
        assert current() == {"team": "growth"}


async def test_tasks_inherit_and_do_not_disturb_each_other():
    async def work(customer):
        async with attribution(customer=customer):
            await asyncio.sleep(0)
            return dict(current())

    async with attribution(team="growth"):
        found = await asyncio.gather(*(work(f"c{i}") for i in range(20)))
    assert found == [{"team": "growth", "customer": f"c{i}"} for i in range(20)]
    assert current() == {}


async def test_tasks_may_share_one_object():
    growth = attribution(team="growth")
    both_in = asyncio.Barrier(2)

    async def work():
        with growth:
            await both_in.wait()
        return dict(current())

    assert await asyncio.gather(work(), work()) == [{}, {}]


async def test_it_reaches_asyncio_to_thread():
    with attribution(team="growth"):
        assert await asyncio.to_thread(lambda: dict(current())) == {"team": "growth"}
    assert await asyncio.to_thread(lambda: dict(current())) == {}


def test_it_does_not_reach_raw_threads_unless_the_context_is_taken_along():
    seen = []
    with attribution(team="growth"), ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: seen.append(dict(current()))).result()
        pool.submit(contextvars.copy_context().run, lambda: seen.append(dict(current()))).result()
    assert seen == [{}, {"team": "growth"}]


def test_it_reaches_the_threads_of_a_langchain_batch():
    def where(_):
        return threading.get_ident(), dict(current())

    with attribution(team="growth"):
        found = RunnableLambda(where).batch(list(range(4)))
    assert [dimensions for _, dimensions in found] == [{"team": "growth"}] * 4
    assert threading.get_ident() not in {thread for thread, _ in found}


def scripted_agent(seen):
    @tool
    def look(what: str) -> str:
        """Look something up."""
        seen.append((threading.get_ident(), dict(current())))
        with attribution(feature=what):  # what a tool says ends with the tool
            return what

    class Model(GenericFakeChatModel):
        def bind_tools(self, tools, **kwargs):
            return self

    calls = [{"name": "look", "args": {"what": w}, "id": w, "type": "tool_call"} for w in ("a", "b", "c")]
    turns = iter([AIMessage("", tool_calls=calls), AIMessage("done")])
    return create_agent(Model(messages=turns), [look])


def test_it_reaches_the_tool_threads_of_an_agent():
    seen = []
    with attribution(team="growth", customer="acme"):
        scripted_agent(seen).invoke({"messages": [("user", "go")]})
        assert current() == {"team": "growth", "customer": "acme"}
    assert [dimensions for _, dimensions in seen] == [{"team": "growth", "customer": "acme"}] * 3
    assert threading.get_ident() not in {thread for thread, _ in seen}


async def test_it_reaches_the_tools_of_an_asynchronous_agent():
    seen = []
    with attribution(team="growth"):
        await scripted_agent(seen).ainvoke({"messages": [("user", "go")]})
    assert [dimensions for _, dimensions in seen] == [{"team": "growth"}] * 3


def test_leaving_in_another_context_takes_nothing_away_from_it():
    block = attribution(team="growth")
    contextvars.copy_context().run(block.__enter__)
    with attribution(team="search"):
        block.__exit__(None, None, None)
        assert current() == {"team": "search"}


async def test_a_generator_closed_by_another_task_does_no_harm():
    async def answers():
        with attribution(team="growth"):
            yield dict(current())
            yield dict(current())

    generator = answers()
    assert await asyncio.create_task(anext(generator)) == {"team": "growth"}
    with attribution(team="search"):
        await generator.aclose()
        assert current() == {"team": "search"}


def test_sixteen_dimensions_and_no_more():
    with attribution(**{f"d{i}": "x" for i in range(16)}):
        with attribution(d0="y"):
            assert len(current()) == 16
        with (
            pytest.raises(ValueError, match=r"17 dimensions \(d0, .*, extra\); at most 16 are kept"),
            attribution(extra="x"),
        ):
            pytest.fail("entered")
        assert len(current()) == 16


@pytest.mark.parametrize("name", ["provider", "model"])
def test_facts_of_the_call_cannot_be_set(name):
    with pytest.raises(ValueError, match=f"'{name}' is a fact of the call"):
        attribution(**{name: "x"})


@pytest.mark.parametrize("value", ["", "x" * 129, 1.5, True, ["a"], b"x"])
def test_a_value_is_short_text_or_an_int(value):
    with pytest.raises(ValueError, match=r"team=.*: a value is text of 1 to 128 characters, or an int"):
        attribution(team=value)


@pytest.mark.parametrize("name", ["cost center", "a=b", "a,b", "(x)", "n" * 129])
def test_a_name_is_a_dimension(name):
    with pytest.raises(ValueError, match="dimension"):
        attribution(**{name: "x"})


def test_long_values_of_frameworks_are_clipped_and_stay_apart():
    first, second = clip("x" * 200 + "1"), clip("x" * 200 + "2")
    assert len(first) == len(second) == 128
    assert first != second
    assert first == clip("x" * 200 + "1")
    assert clip("x" * 128) == "x" * 128
    assert clip(42) == "42"


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, {}),
        ({"MAESTRO_ATTRIBUTION": "team=growth, environment=prod,"}, {"team": "growth", "environment": "prod"}),
        ({"MAESTRO_ATTRIBUTION": "team=a=b"}, {"team": "a=b"}),
        ({"OTEL_SERVICE_NAME": "shop"}, {"service": "shop"}),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a%20b,deployment.environment.name=prod,host.name=h,junk"},
            {"service": "a b", "environment": "prod"},
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a", "OTEL_SERVICE_NAME": "b"}, {"service": "b"}),
        (
            {"MAESTRO_ATTRIBUTION": "service=c", "OTEL_SERVICE_NAME": "b", "OTEL_RESOURCE_ATTRIBUTES": "service.name=a"},
            {"service": "c"},
        ),
        ({"OTEL_SERVICE_NAME": "s" * 300}, {"service": clip("s" * 300)}),
    ],
)  # fmt: skip
def test_the_environment_declares_defaults(environ, found):
    assert environment_defaults(environ) == found


@pytest.mark.parametrize("text", ["team", "team=", "=x", "model=gpt-5", "cost center=x"])
def test_a_malformed_maestro_attribution_shows_how_to_write_it(text):
    with pytest.raises(SettingsError, match=r'MAESTRO_ATTRIBUTION=.*write "team=growth,environment=prod"'):
        environment_defaults({"MAESTRO_ATTRIBUTION": text})
