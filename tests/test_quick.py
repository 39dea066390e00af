"""Quick dataclasses: nobody can tell them from the ones that dataclasses makes."""

import copy
import inspect
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from maestro_core.quick import quick
from maestro_core.types import Call


def shape(**how):
    """Return one class twice: quick, and as dataclasses makes it."""

    def make():
        @dataclass(frozen=True, slots=True, **how)
        class Parcel:
            to: str
            weight: int = 1
            marks: list = field(default_factory=list)
            _inside: str | None = field(default=None, kw_only=True)

        return Parcel

    return quick(make()), make()


BOTH = pytest.mark.parametrize("how", [{}, {"kw_only": True}], ids=["by place", "by name"])


@BOTH
def test_they_take_the_same_arguments(how):
    ours, plain = shape(**how)
    taken, expected = inspect.signature(ours).parameters, inspect.signature(plain).parameters
    assert [(name, each.kind) for name, each in taken.items()] == [
        (name, each.kind) for name, each in expected.items()
    ]
    for wrong in ({}, {"to": "a", "colour": "red"}):
        with pytest.raises(TypeError):
            ours(**wrong)
    with pytest.raises(TypeError):
        ours("a", 1, [], "inside")


@BOTH
def test_they_have_the_same_values(how):
    ours, plain = shape(**how)
    for given in ({"to": "a"}, {"to": "a", "weight": 0, "marks": [1], "_inside": "b"}):
        assert repr(ours(**given)) == repr(plain(**given))
        assert ours(**given) == ours(**given)
    one = ours(to="a")
    assert one.marks is not ours(to="a").marks  # made anew for each
    assert replace(one, weight=2) == ours(to="a", weight=2)
    assert copy.deepcopy(one) == one
    with pytest.raises(FrozenInstanceError):
        one.weight = 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: dataclass(frozen=True)(type("NoSlots", (), {"__annotations__": {"a": int}})),
        lambda: dataclass(slots=True)(
            type("After", (), {"__annotations__": {"a": int}, "__post_init__": lambda self: None})
        ),
        lambda: dataclass(slots=True)(
            type("Apart", (), {"__annotations__": {"a": int}, "a": field(init=False, default=1)})
        ),
    ],
    ids=["no slots", "a __post_init__", "a field that is no argument"],
)
def test_what_it_would_get_wrong_it_does_not_take(wrong):
    with pytest.raises(TypeError, match="dataclass"):
        quick(wrong())


def test_those_of_the_calling_path_travel():
    call = Call(provider="openai", model="gpt-5-mini", max_output_tokens=5)
    assert pickle.loads(pickle.dumps(call)) == call
