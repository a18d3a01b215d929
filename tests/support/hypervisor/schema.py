# SPDX-License-Identifier: MIT
"""The ``vm.create`` document: which fields it has, what stands for those left out, what is refused.

After cloud-hypervisor v53's serde structs (vmm/src/vm_config.rs): unknown fields are ignored, absent
optional ones are not shown, and nothing is validated beyond types.
"""

from __future__ import annotations

import enum
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Json = dict[str, Any]


class SchemaError(ValueError):
    """A document that serde refuses; it becomes the answer 400. Like serde, it quotes the value."""


class Scalar(enum.Enum):
    """A value without parts, by serde's name for what it expects."""

    BOOL = "a boolean"
    NUMBER = "u64"
    TEXT = "a string"
    PATH = "path string"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of an enumeration's names; the first is the default."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """A list."""

    item: Kind


@dataclass(frozen=True, slots=True)
class Struct:
    """A record. ``closed`` ones refuse unknown fields; ``nulls`` shows absent fields as null."""

    fields: Mapping[str, Field]
    closed: bool = False
    nulls: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its kind, and the value that stands for it when it is absent (`None`: not shown)."""

    kind: Kind
    default: Callable[[], Any] = lambda: None
    required: bool = False
    alias: str | None = None
    hidden_if_false: bool = False


Kind = Scalar | Choice | Many | Struct


def fill(kind: Kind, value: Any) -> Any:  # noqa: ANN401 (any JSON in, any JSON out)
    """The value with its defaults in place and unknown fields gone. Raises `SchemaError`."""
    match kind:
        case Struct():
            return _fill_struct(kind, value)
        case Many(item):
            if not isinstance(value, list):
                raise _mismatch(value, "a sequence")
            return [fill(item, each) for each in value]
        case Choice(names):
            if value not in names:
                raise SchemaError(f"unknown variant `{value}`, expected one of {_quoted(names)}")
            return value
        case Scalar.BOOL:
            return _of_type(value, bool, kind)
        case Scalar.NUMBER:
            if type(value) is int and value < 0:
                raise SchemaError(f"invalid value: integer `{value}`, expected u64")
            return _of_type(value, int, kind)
        case Scalar.TEXT | Scalar.PATH:
            return _of_type(value, str, kind)


def _fill_struct(struct: Struct, value: Any) -> Json:  # noqa: ANN401 (any JSON)
    if not isinstance(value, dict):
        raise _mismatch(value, "a map")
    if struct.closed and (unknown := value.keys() - struct.fields.keys()):
        known = _quoted(tuple(struct.fields))
        raise SchemaError(f"unknown field `{min(unknown)}`, expected one of {known}")
    filled: Json = {}
    for name, field in struct.fields.items():
        given = value.get(name)
        if field.alias is not None and field.alias in value:
            if name in value:
                raise SchemaError(f"duplicate field `{name}`")
            given = value[field.alias]
        if given is None and name in value and field.default() is not None:
            raise _mismatch(None, "a value")
        if given is None and field.required:
            raise SchemaError(f"missing field `{name}`")
        shown = field.default() if given is None else fill(field.kind, given)
        if (shown is None and not struct.nulls) or (shown is False and field.hidden_if_false):
            continue
        filled[name] = shown
    return filled


def _of_type(value: Any, expected: type, kind: Scalar) -> Any:  # noqa: ANN401 (any JSON)
    if type(value) is not expected:
        raise _mismatch(value, kind.value)
    return value


def _mismatch(value: object, expected: str) -> SchemaError:
    match value:
        case None:
            shown = "null"
        case bool():
            shown = f"boolean `{str(value).lower()}`"
        case int():
            shown = f"integer `{value}`"
        case str():
            shown = f'string "{value}"'
        case list():
            shown = "sequence"
        case _:
            shown = "map"
    return SchemaError(f"invalid type: {shown}, expected {expected}")


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def random_mac() -> str:
    """A locally administered unicast address."""
    octets = bytearray(secrets.token_bytes(6))
    octets[0] = octets[0] & 0xFE | 0x02
    return octets.hex(":")
