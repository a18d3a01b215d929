# SPDX-License-Identifier: MIT
"""Converts values of cloud-hypervisor's options to the values that its JSON interface takes.

Source of each conversion: cloud-hypervisor option_parser/src/lib.rs and the `FromStr` of each type in
vmm/src/config.rs. A converter raises `ValueError` (`OptionError` is one) if the parser would refuse the
value. The error's text never holds the value.
"""

from __future__ import annotations

from credferry.launcher.hypervisor.options import (
    WHITESPACE,
    Fault,
    Grammar,
    OptionError,
    plain,
    split_commas,
    string_list,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    Json = str | int | bool | list["Json"] | dict[str, "Json"]
    Converter = Callable[[str, Grammar], Json]

_DIGITS_MAX: Final = 20
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_PORT_DIGITS_MAX: Final = 4
_SHIFTS: Final = {"K": 10, "M": 20, "G": 30}
_SWITCH: Final = {"": False, "on": True, "off": False, "true": True, "false": False}
_U64: Final = 1 << 64
_RANGE_ENDS: Final = 2
_TOPOLOGY: Final = ("threads_per_core", "cores_per_die", "dies_per_package", "packages")
_VIRTIO_TYPES: Final = {
    "net": 1,
    "block": 2,
    "console": 3,
    "rng": 4,
    "balloon": 5,
    "iomem": 6,
    "rpmsg": 7,
    "scsi": 8,
    "9p": 9,
    "mac80211_wlan": 10,
    "rproc_serial": 11,
    "caif": 12,
    "memory_balloon": 13,
    "gpu": 16,
    "clock": 17,
    "input": 18,
    "vsock": 19,
    "crypto": 20,
    "signal_dist": 21,
    "pstore": 22,
    "iommu": 23,
    "mem": 24,
    "sound": 25,
    "fs": 26,
    "pmem": 27,
    "rpmb": 28,
    "mac80211_hwsim": 29,
    "video_encoder": 30,
    "video_decoder": 31,
    "scmi": 32,
    "nitro_sec_mod": 33,
    "i2c": 34,
    "watchdog": 35,
    "can": 36,
    "dmabuf": 37,
    "param_serv": 38,
    "audio_policy": 39,
    "bt": 40,
    "gpio": 41,
    "rdma": 42,
    "camera": 43,
    "ism": 44,
    "spi": 45,
    "tee": 46,
    "cpu_balloon": 47,
    "media": 48,
    "usb": 49,
}
"""Names of virtio device types (`GenericVhostUserConfig::parse`), numbered as in linux/virtio_ids.h."""
_VIRTIO_UNSUPPORTED: Final = frozenset({_VIRTIO_TYPES["watchdog"], _VIRTIO_TYPES["iommu"]})
_LIST_MAX: Final = 65_536
"""The most elements of all integer lists of a value: ``0-99999999999`` must not use up the memory."""


def _refused() -> OptionError:
    return OptionError(Fault.CONVERSION)


def text(value: str, grammar: Grammar) -> Json:
    """A string, without its quotes."""
    return plain(value, grammar)


def toggle(value: str, _grammar: Grammar) -> Json:
    """``on``, ``off``, ``true`` or ``false``, in any case. From v48 on, the parser refuses quotes here."""
    try:
        return _SWITCH[value.lower()]
    except KeyError:
        raise _refused() from None


def uint(value: str, grammar: Grammar) -> Json:
    """A number without sign."""
    return _number(plain(value, grammar))


def size(value: str, grammar: Grammar) -> Json:
    """Bytes, from a number with an optional ``K``, ``M`` or ``G`` (binary)."""
    trimmed = plain(value, grammar).strip(WHITESPACE)
    shift = _SHIFTS.get(trimmed[-1:], 0)
    result = _number(trimmed.rstrip("KMG")) << shift
    if result >= _U64:
        raise _refused()
    return result


def integers(value: str, _grammar: Grammar) -> Json:
    """A list like ``[0,2-4]``."""
    return list(_integers(value))


def strings(value: str, grammar: Grammar) -> Json:
    """A list of strings."""
    return list(string_list(value, grammar))


def choice(**names: str) -> Converter:
    """A converter from one of these words (``_`` stands for ``-``), in any case, to its name in JSON."""
    exact = exact_choice(**names)

    def convert(value: str, grammar: Grammar) -> Json:
        return exact(value.lower(), grammar)

    return convert


def exact_choice(**names: str) -> Converter:
    """As `choice`, for the types whose words cloud-hypervisor takes in small letters only."""
    table = {word.replace("_", "-"): name for word, name in names.items()}

    def convert(value: str, grammar: Grammar) -> Json:
        try:
            return table[plain(value, grammar)]
        except KeyError:
            raise _refused() from None

    return convert


def pairs(first: str, second: str, *, many: bool) -> Converter:
    """A converter for a list like ``[0@[1-2],1@[3]]``: each pair becomes an object with these two keys."""

    def convert(value: str, grammar: Grammar) -> Json:
        trimmed = value.strip(WHITESPACE)
        if not (trimmed.startswith("[") and trimmed.endswith("]")) or trimmed == "[":
            raise _refused()
        out: list[Json] = []
        room = _LIST_MAX
        for pair in split_commas(trimmed[1:-1], grammar):
            takes_blanks = grammar is Grammar.FROM_54
            left, at, right = (pair.strip(WHITESPACE) if takes_blanks else pair).partition("@")
            if not at:
                raise _refused()
            numbers = _integers(right, room) if many else []
            room -= len(numbers)
            held: Json = list(numbers) if many else _number(right)
            out.append({first: _number(plain(left, grammar)), second: held})
        return out

    return convert


def topology(value: str, grammar: Grammar) -> Json:
    """``threads:cores:dies:packages``."""
    parts = plain(value, grammar).split(":")
    if len(parts) != len(_TOPOLOGY):
        raise _refused()
    return {key: _number(part) for key, part in zip(_TOPOLOGY, parts, strict=True)}


def cpu_features(value: str, grammar: Grammar) -> Json:
    """A list of CPU features. Only ``amx`` exists."""
    if set(string_list(value, grammar)) != {"amx"}:
        raise _refused()
    return {"amx": True}


def virtio_type(value: str, grammar: Grammar) -> Json:
    """A virtio device's type, by number or by name. cloud-hypervisor does not support two of them."""
    word = plain(value, grammar)
    number = _VIRTIO_TYPES.get(word) or (_number(word) if word[:1] in set("123456789") else 0)
    if not number or number in _VIRTIO_UNSUPPORTED:
        raise _refused()
    return number


def io_port(value: str, grammar: Grammar) -> Json:
    """A port like ``0xe9``, with any number of leading zeros."""
    zero, x, digits = plain(value, grammar).partition("x")
    digits = digits.removeprefix("+")
    if (zero, x) != ("0", "x") or not digits or not _HEX.issuperset(digits):
        raise _refused()
    digits = digits.lstrip("0")
    if len(digits) > _PORT_DIGITS_MAX:
        raise _refused()
    return int(digits or "0", 16)


def _number(text: str) -> int:
    digits = text.removeprefix("+")
    if len(digits) > _DIGITS_MAX or not digits.isascii() or not digits.isdigit() or int(digits) >= _U64:
        raise _refused()
    return int(digits)


def _integers(value: str, room: int = _LIST_MAX) -> list[int]:
    out: list[int] = []
    for part in value.strip(WHITESPACE).strip("[]").split(","):
        ends = [_number(end) for end in part.split("-")]
        if len(ends) > _RANGE_ENDS or (len(ends) == _RANGE_ENDS and ends[0] >= ends[1]):
            raise _refused()
        if ends[-1] - ends[0] + len(out) >= room:
            raise _refused()
        out.extend(range(ends[0], ends[-1] + 1))
    return out
