# SPDX-License-Identifier: MIT
"""Every limit: at it and one over it, and what the refusal says."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher import oem
from credferry.launcher.credentials import Credential
from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.handoff import Channel, Delivery, Kind, Secret

from .conftest import CANARY, CANARY_BASE64, ROOT, sealed

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = len("io.systemd.credential:K=") + 1  # and its NUL
SEALED = sealed(120)
SEALED_BYTES = base64.b64decode(SEALED)
VECTORS = json.loads((ROOT / "tests/data/sealed-credential-vectors.json").read_text())["sets"]


def plain(name: str = "K", value: bytes = CANARY.encode()) -> Credential:
    """A secret."""
    return Credential(name, Kind.PLAIN, Secret(value))


def sealed_of(size: int, name: str = "K") -> Credential:
    """A sealed credential whose OEM string takes exactly this many bytes, filled up by its name."""
    blob = (size - PREFIX + 1 - len(name)) // 4 * 4
    padded = name + "x" * (size - PREFIX + 1 - len(name) - blob)
    return Credential(padded, Kind.SEALED, Secret(SEALED[:160].ljust(blob, b"A")))


def check(*credentials: Credential, existing: tuple[str, ...] = (), **delivery: object) -> None:
    """The check, with a delivery of these settings."""
    oem.check(credentials, existing, Delivery(**delivery))  # type: ignore[arg-type]  # a table's settings


def spoilt(at: int) -> bytes:
    """A sealed credential, not in Base64, with another byte at one place."""
    return SEALED_BYTES[:at] + b"\xff" + SEALED_BYTES[at + 1 :]


def many(count: int) -> tuple[str, ...]:
    """Strings that are there already."""
    return tuple(f"s{index}" for index in range(count))


OWN = len(plain().string.reveal()) + 3
"""Bytes of a string in a request: its quotes and a comma are with it."""
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
    ("others alone", lambda: check(existing=("x" * 4090,))),
    (
        "what is in the initrd",
        lambda: check(sealed_of(5000), channel=Channel.COMMAND, initrd=True),
    ),
    ("the body with the second", lambda: oem.check_body(51_200, [plain(), plain("B")], 53)),
    ("no credential's string", lambda: check(plain(), existing=("io.systemd.credential:K",))),
    ("x86_64", lambda: oem.check_machine("x86_64")),
    ("sealed", lambda: check(Credential("K", Kind.SEALED, Secret(SEALED)))),
    ("sealed, and empty", lambda: check(Credential("K", Kind.SEALED, Secret(sealed(40))))),
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
    ("an argument first", lambda: oem.check_arguments(["x" * 131_072]), ("an argument", "131072")),
    (
        "an option in one word",
        lambda: oem.check_arguments(["--platform=" + CANARY + "x" * 131_072]),
        ("--platform does not fit",),
    ),
    (
        "256 strings, with the second",
        lambda: check(plain(), plain("B"), existing=many(254), guest_systemd=257),
        ("credential B",),
    ),
    (
        "there with a sign of its own",
        lambda: check(plain(), existing=("io.systemd.credential:K=a=b",)),
        ("credential K", "twice"),
    ),
    ("a full body without ours", lambda: oem.check_body(51_200 + OWN, [plain()], 53), ("credential K",)),
    ("a body over without ours", lambda: oem.check_body(51_201 + OWN, [plain()], 53), ("configuration",)),
    (
        "a body full with the first",
        lambda: oem.check_body(51_200 + OWN, [plain("A"), plain("B")], 53),
        ("credential B",),
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
            "no padding": sealed(120).rstrip(b"=")[:-1],
            "Base64 of something": base64.b64encode(CANARY.encode() * 20),
            "a key in Base64": base64.b64encode(bytes(range(256))),
            "the header alone": sealed(0),
            "short by one": sealed(39),
            **{
                f"sealed with {what}": base64.b64encode(bytes.fromhex(kind) + SEALED_BYTES[16:])
                for what, kind in {
                    "the null key": "058469daf6f54324800549da0f8ea2fb",
                    "a TPM": "0c7cc07b117645919c4b0bea08bc20fe",
                    "a TPM and a public key": "faf7eb9341e3412ca1a436f95a29362f",
                    "a key and a TPM": "93a894094874449090caf2fc93cab553",
                    "a user's key": "55b9ed1d38594d43a8319d2ebb332ac6",
                    "no type that is known": "00" * 16,
                }.items()
            },
            **{
                f"other bytes at {at}": base64.b64encode(
                    SEALED_BYTES[:at] + b"\xff" + SEALED_BYTES[at + 1 :]
                )
                for at in (0, 15, 16, 20, 24, 28, 31, 44, 47)
            },
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
    assert caught.value.hint


@pytest.mark.parametrize(("guest", "is_offered"), [(252, True), (256, True), (257, False), (258, False)])
def test_a_guest_is_declared_new_only_where_it_is_not(guest: int, is_offered: bool) -> None:
    """Since systemd 257 a guest reads all of its strings: the operator is not asked to say so again."""
    with pytest.raises(LaunchError) as caught:
        check(sealed_of(65_400), guest_systemd=guest)
    assert ("guest_systemd" in caught.value.hint) is is_offered


@pytest.mark.parametrize(("length", "least"), [(1, 88), (4, 88), (5, 96), (12, 96), (13, 104), (240, 328)])
def test_the_smallest_sealed_credential_is_known_by_its_name(length: int, least: int) -> None:
    """Header, the name in steps of eight bytes, and tag."""
    assert oem.sealed_least("n" * length) == least


def test_nothing_shows_a_credential() -> None:
    """Neither repr nor the redacted string."""
    credential = plain()
    assert CANARY not in repr(credential)
    assert credential.redacted == "io.systemd.credential.binary:K=<redacted>"
    assert Credential("K", Kind.SEALED, Secret(SEALED)).redacted == "io.systemd.credential:K=<redacted>"


@pytest.mark.parametrize("vectors", VECTORS, ids=lambda value: value["systemd"])
def test_what_systemd_creds_sealed_with_a_host_s_key_counts_as_sealed(vectors: dict[str, Any]) -> None:
    """What real systemd-creds wrote passes, but for what the null key sealed."""
    whole = [each for each in (*vectors["open"], *vectors["refuse"]) if each.get("why") != "truncated"]
    assert len(whole) > 6
    for vector in whole:
        line = b"".join(vector["sealed"].encode().split())
        credential = Credential("K", Kind.SEALED, Secret(line))
        if vector.get("why") == "null key":
            with pytest.raises(LaunchError, match="not sealed for the guest"):
                check(credential)
        elif len(line) < 4000:
            check(credential)
