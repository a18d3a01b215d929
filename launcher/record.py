# SPDX-License-Identifier: MIT
"""Frozen records: they work like frozen, slotted dataclasses, but import much faster.

`dataclasses` imports `inspect`, `ast`, `dis` and `re`, and compiles each class's methods from text. That
takes 15 ms of a VM's start. Here, all records share their methods. Type checkers treat them as dataclasses.
"""

from __future__ import annotations

from operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_said: object) -> object:
        """Replaces `typing.dataclass_transform`, which only type checkers need."""
        return lambda kind: kind


_REQUIRED = object()
_set = object.__setattr__


class _Field:
    def __init__(self, default: object, *, shown: bool) -> None:
        self.default = default
        self.shown = shown


def field(*, default: Any = _REQUIRED, repr: bool = True) -> Any:  # noqa: A002, ANN401 (as dataclasses has it)
    """Properties of a field besides its type: a default, and whether the repr shows the field."""
    return _Field(default, shown=repr)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class _RecordType(type):
    """Makes a record's class: a slot for each annotated name."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> _RecordType:
        names = tuple(body.get("__annotations__", ())) if bases else ()
        said = [body.pop(each, _REQUIRED) for each in names]
        fields = [given if isinstance(given, _Field) else _Field(given, shown=True) for given in said]
        body["__slots__"] = body["__match_args__"] = names
        if names:
            body["_defaults"] = tuple(each.default for each in fields)
            body["_shown"] = tuple(each for each, given in zip(names, fields, strict=True) if given.shown)
            body["_values"] = attrgetter(*names)
        return super().__new__(cls, name, bases, body)


class FrozenRecord(metaclass=_RecordType):
    """Base of all records. Records are equal if their class and values are. A record has no subclasses."""

    if TYPE_CHECKING:
        __match_args__: ClassVar[tuple[str, ...]]
        _defaults: ClassVar[tuple[object, ...]]
        _shown: ClassVar[tuple[str, ...]]
        _values: ClassVar[attrgetter[object]]

    def __init__(self, *values: object, **named: object) -> None:
        names = self.__match_args__
        if named or len(values) != len(names):
            values = self._complete(values, named)
        for name, value in zip(names, values):  # noqa: B905 (they are as many)
            _set(self, name, value)

    def _complete(self, values: tuple[object, ...], named: dict[str, object]) -> tuple[object, ...]:
        """A value for each field. Raises `TypeError` for a missing, repeated or unknown field."""
        names = self.__match_args__
        given = dict(zip(names, values, strict=False))
        whole = {**dict(zip(names, self._defaults, strict=True)), **given, **named}
        if (
            len(values) > len(names)
            or len(whole) > len(names)
            or given.keys() & named.keys()
            or _REQUIRED in whole.values()
        ):
            raise TypeError(f"{type(self).__name__} takes each of its fields once: {', '.join(names)}")
        return tuple(whole.values())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values(self) == self._values(other)

    def __hash__(self) -> int:
        return hash(self._values(self))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown)
        return f"{type(self).__name__}({shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in self.__match_args__)

    def but(self, **changes: object) -> Self:
        """A copy of the record with some values changed. Raises `TypeError` for an unknown field."""
        make: Callable[..., Self] = type(self)
        names = self.__match_args__
        values = [changes.pop(name) if name in changes else getattr(self, name) for name in names]
        return make(*values, **changes)  # what is left in ``changes`` is no field


def asdict(record: FrozenRecord) -> dict[str, Any]:
    """The fields' values by name. Converts nested records likewise, and tuples to lists."""
    return {name: _plain(getattr(record, name)) for name in record.__match_args__}


def _plain(value: object) -> object:
    match value:
        case FrozenRecord():
            return asdict(value)
        case tuple():
            return [_plain(each) for each in value]
        case _:
            return value
