# SPDX-License-Identifier: MIT
"""Every limit: at it and one over it, and what the refusal says."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from launcher import oem
from launcher.credentials import Credential
from launcher.errors import Exit, LaunchError
from launcher.handoff import Delivery, Kind, Secret

from .conftest import CANARY, CANARY_BASE64

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = len("io.systemd.credential:K=") + 1  # and its NUL
SEALED = base64.b64encode(bytes(range(200)))


def plain(name: str = "K", value: bytes = CANARY.encode()) -> Credential:
    """A secret."""
    return Credential(name, Kind.PLAIN, Secret(value))


def sealed_of(size: int, name: str = "K") -> Credential:
    """A sealed credential whose OEM string takes exactly this many bytes, filled up by its name."""
    blob = (size - PREFIX + 1 - len(name)) // 4 * 4
    padded = name + "x" * (size - PREFIX + 1 - len(name) - blob)
    return Credential(padded, Kind.SEALED, Secret(b"QUJD" * (blob // 4)))


def check(*credentials: Credential, existing: tuple[str, ...] = (), **delivery: object) -> None:
    """The check, with a delivery of these settings."""
    oem.check(credentials, existing, Delivery(**delivery))  # type: ignore[arg-type]  # a table's settings


def many(count: int) -> tuple[str, ...]:
    """Strings that are there already."""
    return tuple(f"s{index}" for index in range(count))


AT_THE_LIMIT: list[tuple[str, Callable[[], None]]] = [
    ("255 strings", lambda: check(plain(), existing=many(254), guest_systemd=257)),
    ("4091 bytes", lambda: check(sealed_of(4091))),
    ("4091 bytes with others", lambda: check(sealed_of(4080), existing=("0123456789",))),
    ("65398 bytes", lambda: check(sealed_of(65_398), guest_systemd=257)),
    ("a name of 240", lambda: check(plain("n" * 239))),
    ("an allowed power", lambda: check(plain("ssh.listen"), allowed_names=("ssh.listen",))),
    ("a body of 51200", lambda: oem.check_body(51_200, [plain()], 53)),
    ("a body after 53", lambda: oem.check_body(4 << 20, [plain()], 54)),
    ("an argument", lambda: oem.check_arguments(["--platform", "x" * 131_071])),
    ("x86_64", lambda: oem.check_machine("x86_64")),
    ("sealed", lambda: check(Credential("K", Kind.SEALED, Secret(SEALED)))),
]

OVER_THE_LIMIT: list[tuple[str, Callable[[], None], tuple[str, ...]]] = [
    ("256 strings", lambda: check(plain(), existing=many(255), guest_systemd=257), ("K", "255")),
    ("4092 bytes", lambda: check(sealed_of(4092)), ("credential K", "4091", "257", "initrd = true")),
    (
        "4092 bytes with others",
        lambda: check(sealed_of(4081), existing=("0123456789",)),
        ("credential K", "4091"),
    ),
    ("others alone", lambda: check(existing=("x" * 4091,)), ("--platform", "4091")),
    ("the second", lambda: check(sealed_of(4000), plain("B", b"x" * 90)), ("credential B", "4091")),
    ("65399 bytes", lambda: check(sealed_of(65_399), guest_systemd=257), ("credential K", "65398")),
    ("a name of 241", lambda: check(plain("n" * 300)), ("name", "valid")),
    ("a name with a comma", lambda: check(plain("a,b")), ("name", "valid")),
    ("no name", lambda: check(plain("")), ("name", "valid")),
    ("a power", lambda: check(plain("ssh.listen")), ("ssh.listen", "allowed names")),
    ("a unit", lambda: check(plain("systemd.extra-unit.x")), ("systemd.extra-unit.x",)),
    ("an empty string", lambda: check(plain(), existing=("a", "")), ("--platform", "empty")),
    ("twice", lambda: check(plain(), plain()), ("credential K", "twice")),
    ("there", lambda: check(plain(), existing=("io.systemd.credential:K=1",)), ("credential K", "twice")),
    (
        "there in Base64",
        lambda: check(plain(), existing=("io.systemd.credential.binary:K=",)),
        ("credential K",),
    ),
    ("a body of 51201", lambda: oem.check_body(51_201, [plain()], 53), ("credential K", "51200")),
    ("a body without ours", lambda: oem.check_body(60_000, [plain()], 53), ("51200",)),
    ("a body after 53", lambda: oem.check_body((4 << 20) + 1, [plain()], 54), ("4194304",)),
    (
        "an argument",
        lambda: oem.check_arguments(["--platform", CANARY + "x" * 131_072]),
        ("--platform", "131072", "api"),
    ),
    ("aarch64", lambda: oem.check_machine("aarch64"), ("aarch64", "x86_64")),
    *(
        (
            f"not sealed: {what}",
            lambda blob=blob: check(Credential("K", Kind.SEALED, Secret(blob))),
            ("credential K", "sealed"),
        )
        for what, blob in {
            "text": CANARY.encode(),
            "empty": b"",
            "two lines": SEALED[:80] + b"\n" + SEALED[80:],
            "a line's end": SEALED + b"\n",
            "no padding": base64.b64encode(bytes(200)).rstrip(b"="),
            "the null key": base64.b64encode(bytes.fromhex("058469daf6f54324800549da0f8ea2fb") + bytes(90)),
            "short": base64.b64encode(bytes(48)),
        }.items()
    ),
]


@pytest.mark.parametrize(("what", "act"), AT_THE_LIMIT, ids=[what for what, _ in AT_THE_LIMIT])
def test_what_is_at_a_limit_passes(what: str, act: Callable[[], None]) -> None:
    """The last that works, works."""
    assert what
    act()


@pytest.mark.parametrize(("what", "act", "said"), OVER_THE_LIMIT, ids=[what for what, *_ in OVER_THE_LIMIT])
def test_what_is_over_a_limit_is_refused(what: str, act: Callable[[], None], said: tuple[str, ...]) -> None:
    """The refusal names the credential and the limit, is one line, and shows neither value nor length."""
    assert what
    with pytest.raises(LaunchError) as caught:
        act()
    text = str(caught.value)
    assert all(part in text for part in said)
    assert "\n" not in text
    assert CANARY not in text
    assert CANARY_BASE64 not in text
    assert caught.value.status is Exit.CREDENTIALS


def test_nothing_shows_a_credential() -> None:
    """Neither repr nor the redacted string."""
    credential = plain()
    assert CANARY not in repr(credential)
    assert credential.redacted == "io.systemd.credential.binary:K=<redacted>"
    assert Credential("K", Kind.SEALED, Secret(SEALED)).redacted == "io.systemd.credential:K=<redacted>"
