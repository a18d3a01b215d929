# SPDX-License-Identifier: MIT
"""The records: frozen, slotted, compared by value, and silent about what is not to be shown."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher.record import FrozenRecord, asdict, field

if TYPE_CHECKING:
    from collections.abc import Callable


class Part(FrozenRecord):
    """A record within another."""

    name: str


class Whole(FrozenRecord):
    """One with a default of each kind."""

    first: int
    hidden: str = field(repr=False)
    parts: tuple[Part, ...] = ()
    silent: str = field(default="quiet", repr=False)

    @property
    def double(self) -> int:
        """What a method computes from a field."""
        return 2 * self.first


class Other(FrozenRecord):
    """Another class with the fields of `Part`."""

    name: str


WHOLE = Whole(1, "secret", (Part("a"), Part("b")))


def test_fields_are_given_in_order_or_by_name_and_have_defaults() -> None:
    """As with a dataclass: positions first, then names, then what the class says."""
    assert Whole(1, hidden="secret", parts=(Part("a"), Part(name="b"))) == WHOLE
    assert (WHOLE.first, WHOLE.hidden, WHOLE.silent, WHOLE.double) == (1, "secret", "quiet", 2)
    match WHOLE:
        case Whole(first, hidden, (Part(name), *_)):
            assert (first, hidden, name) == (1, "secret", "a")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Whole, id="none"),
        pytest.param(lambda: Whole(1), id="too few"),  # type: ignore[call-arg]  # the error is the test
        pytest.param(lambda: Part("a", "b"), id="too many"),  # type: ignore[call-arg]  # likewise
        pytest.param(lambda: Part("a", name="a"), id="twice"),  # type: ignore[misc]  # likewise
        pytest.param(lambda: Part("a", size=1), id="unknown"),  # type: ignore[call-arg]  # likewise
        pytest.param(lambda: WHOLE.but(size=1), id="unknown change"),
    ],
)
def test_each_field_is_given_once(make: Callable[[], object]) -> None:
    """Anything else is a TypeError that names the fields, and no value."""
    with pytest.raises(TypeError, match=r"takes each of its fields once: (first|name)") as error:
        make()
    assert "secret" not in str(error.value)


def test_a_record_does_not_change() -> None:
    """No field is set or deleted, and there is no room for others."""
    for name in ("first", "other"):
        with pytest.raises(AttributeError, match="frozen"):
            setattr(WHOLE, name, 2)
        with pytest.raises(AttributeError, match="frozen"):
            delattr(WHOLE, name)
    assert not hasattr(WHOLE, "__dict__")
    assert WHOLE.but(first=2) == Whole(2, "secret", WHOLE.parts)
    assert WHOLE.first == 1


def test_equal_are_those_of_one_class_with_equal_values() -> None:
    """So they are keys of dictionaries, too; copies are equal."""
    assert Part("a") == Part("a")
    assert Part("a") != Part("b")
    assert Part("a") != Other("a")
    assert Part("a") != "a"
    assert len({WHOLE, Whole(1, "secret", (Part("a"), Part("b"))), Part("a")}) == 2
    assert copy.deepcopy(WHOLE) == pickle.loads(pickle.dumps(WHOLE)) == WHOLE  # noqa: S301 (of this test's own)


def test_a_repr_shows_what_it_may() -> None:
    """Fields that say so are not in it."""
    assert repr(WHOLE) == "Whole(first=1, parts=(Part(name='a'), Part(name='b')))"


def test_a_record_becomes_a_table() -> None:
    """Records within it do, too."""
    wanted: dict[str, Any] = {
        "first": 1,
        "hidden": "secret",
        "parts": [{"name": "a"}, {"name": "b"}],
        "silent": "quiet",
    }
    assert asdict(WHOLE) == wanted
