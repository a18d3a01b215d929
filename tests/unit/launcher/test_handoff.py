# SPDX-License-Identifier: MIT
"""The contract between agent and launcher: known answers for every form, and nothing else is read."""

from __future__ import annotations

import json
import os
import pickle
import stat
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher import handoff
from credferry.launcher.handoff import (
    GENERATION_MAX,
    NAME_MAX,
    OEM_TOTAL_BEFORE_257,
    OEM_TOTAL_MAX,
    Channel,
    Delivery,
    EarlierFormError,
    HandoffError,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    Stamp,
)

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES = (
    ManifestEntry("API_KEY", Kind.PLAIN, "0123456789abcdef", "a" * 64),
    ManifestEntry("TOKEN", Kind.SEALED, "fedcba9876543210", "b" * 64),
)
MANIFEST = Manifest(
    "web",
    7,
    "c" * 64,
    "d" * 32,
    Delivery(Channel.COMMAND, 257, True, ("ssh.listen",), True),
    ENTRIES,
    "e" * 64,
)
STAMP = Stamp("web", 7, "c" * 64, "d" * 32, "f" * 32, Channel.API, 12, 34)
MANIFEST_BYTES = (
    b'{"credentials":[{"digest":"%b","fingerprint":"0123456789abcdef","kind":"plain","name":"API_KEY"},'
    b'{"digest":"%b","fingerprint":"fedcba9876543210","kind":"sealed","name":"TOKEN"}],'
    b'"delivery":{"allowed_names":["ssh.listen"],"channel":"command","guest_systemd":257,"initrd":true,'
    b'"plaintext_in_argv":true},"digest":"%b","generation":7,"key":"%b","run":"%b","version":2,"vm":"web"}'
) % (b"a" * 64, b"b" * 64, b"c" * 64, b"e" * 64, b"d" * 32)
STAMP_BYTES = (
    b'{"channel":"api","digest":"%b","generation":7,"invocation_id":"%b","other_oem_bytes":12,"room":34,'
    b'"run":"%b","version":1,"vm":"web"}'
) % (b"c" * 64, b"f" * 32, b"d" * 32)


def test_a_manifest_s_bytes() -> None:
    """A known answer: agents and launchers of one format version read each other's."""
    assert MANIFEST.to_bytes() == MANIFEST_BYTES
    assert Manifest.from_bytes(MANIFEST_BYTES) == MANIFEST


def test_a_stamp_s_bytes() -> None:
    """The same of what the launcher reports."""
    assert STAMP.to_bytes() == STAMP_BYTES
    assert Stamp.from_bytes(STAMP_BYTES) == STAMP


def changed(data: bytes, *path: str | int, **fields: Any) -> bytes:  # noqa: ANN401 (any wrong value)
    """JSON with some fields of an inner object set, or dropped where None is given."""
    document = json.loads(data)
    inner = document
    for step in path:
        inner = inner[step]
    for key, value in fields.items():
        if value is None:
            del inner[key]
        else:
            inner[key] = value
    return json.dumps(document).encode()


WRONG_MANIFESTS = {
    "no JSON": b"{",
    "no object": b"[]",
    "no text": b"\xff",
    "too deep": b"[" * 100_000,
    "a field too many": changed(MANIFEST_BYTES, more=1),
    "no VM": changed(MANIFEST_BYTES, vm=None),
    "a VM that is none": changed(MANIFEST_BYTES, vm="../db"),
    "a VM that is no text": changed(MANIFEST_BYTES, vm=["web"]),
    "a generation too large": changed(MANIFEST_BYTES, generation=GENERATION_MAX + 1),
    "a generation below 0": changed(MANIFEST_BYTES, generation=-1),
    "a generation that is true": changed(MANIFEST_BYTES, generation=True),
    "a generation that is a text": changed(MANIFEST_BYTES, generation="7"),
    "a short digest": changed(MANIFEST_BYTES, digest="c" * 63),
    "capitals in a digest": changed(MANIFEST_BYTES, digest="C" * 64),
    "a short run": changed(MANIFEST_BYTES, run="d" * 31),
    "a short key": changed(MANIFEST_BYTES, key="e" * 63),
    "no key": changed(MANIFEST_BYTES, key=None),
    "credentials that are none": changed(MANIFEST_BYTES, credentials={}),
    "a credential that is none": changed(MANIFEST_BYTES, credentials=[1]),
    "a credential's field too many": changed(MANIFEST_BYTES, "credentials", 0, more=1),
    "no name": changed(MANIFEST_BYTES, "credentials", 0, name=None),
    "a name that is none": changed(MANIFEST_BYTES, "credentials", 0, name="a/b"),
    "a name that is no text": changed(MANIFEST_BYTES, "credentials", 0, name=1),
    "a name twice": changed(MANIFEST_BYTES, "credentials", 0, name="TOKEN"),
    "a kind that is none": changed(MANIFEST_BYTES, "credentials", 0, kind="open"),
    "a long fingerprint": changed(MANIFEST_BYTES, "credentials", 0, fingerprint="0" * 17),
    "a short value's digest": changed(MANIFEST_BYTES, "credentials", 0, digest="0" * 63),
    "a delivery that is none": changed(MANIFEST_BYTES, delivery=[]),
    "a delivery's field too many": changed(MANIFEST_BYTES, "delivery", more=1),
    "a channel that is none": changed(MANIFEST_BYTES, "delivery", channel="pigeon"),
    "a systemd that is none": changed(MANIFEST_BYTES, "delivery", guest_systemd="257"),
    "a flag that is a number": changed(MANIFEST_BYTES, "delivery", plaintext_in_argv=1),
    "an initrd that is a number": changed(MANIFEST_BYTES, "delivery", initrd=0),
    "allowed names that are a text": changed(MANIFEST_BYTES, "delivery", allowed_names="ssh.listen"),
    "an allowed name that is none": changed(MANIFEST_BYTES, "delivery", allowed_names=["a b"]),
    "a later version": changed(MANIFEST_BYTES, version=3),
    "no version": changed(MANIFEST_BYTES, version=None),
    "a version that is a text": changed(MANIFEST_BYTES, version="2"),
}


@pytest.mark.parametrize("data", WRONG_MANIFESTS.values(), ids=WRONG_MANIFESTS.keys())
def test_nothing_else_is_a_manifest(data: bytes) -> None:
    """Anything that does not keep the contract is the one error, which names what was read."""
    with pytest.raises(HandoffError, match=r"^manifest: ") as caught:
        Manifest.from_bytes(data)
    assert not isinstance(caught.value, EarlierFormError)


def test_an_earlier_form_is_told_from_rubbish() -> None:
    """It is what the agent renews; the error has both versions."""
    with pytest.raises(EarlierFormError, match="has format version 1, not 2"):
        Manifest.from_bytes(changed(MANIFEST_BYTES, version=1))


def test_a_manifest_without_an_initrd_says_no() -> None:
    """The setting is the youngest of the delivery's."""
    read = Manifest.from_bytes(changed(MANIFEST_BYTES, "delivery", initrd=None))
    assert read.delivery.initrd is False


WRONG_STAMPS = {
    "a field too many": changed(STAMP_BYTES, more=1),
    "a field too few": changed(STAMP_BYTES, channel=None),
    "OEM bytes beyond the table": changed(STAMP_BYTES, other_oem_bytes=OEM_TOTAL_MAX + 1),
    "OEM bytes below 0": changed(STAMP_BYTES, other_oem_bytes=-1),
    "a generation too large": changed(STAMP_BYTES, generation=GENERATION_MAX + 1),
    "an invocation that is none": changed(STAMP_BYTES, invocation_id="f" * 31),
    "another version": changed(STAMP_BYTES, version=2),
    "room below 0": changed(STAMP_BYTES, room=-1),
}


@pytest.mark.parametrize("data", WRONG_STAMPS.values(), ids=WRONG_STAMPS.keys())
def test_nothing_else_is_a_stamp(data: bytes) -> None:
    """A VM's user writes stamps: every number is bounded to what makes sense."""
    with pytest.raises(HandoffError, match=r"^stamp: "):
        Stamp.from_bytes(data)
    most = changed(STAMP_BYTES, other_oem_bytes=OEM_TOTAL_MAX, generation=GENERATION_MAX)
    assert Stamp.from_bytes(most).generation == GENERATION_MAX


def test_a_stamp_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone can read it. Where writing fails, the one before stays, and nothing else is left."""
    before = os.umask(0o022)
    try:
        handoff.write_stamp(tmp_path, STAMP)
    finally:
        os.umask(before)
    path = handoff.stamp_path("web", tmp_path.parent)
    assert path == tmp_path.parent / "credferry-vms" / "web" / "stamp.json"
    (written,) = tmp_path.iterdir()
    assert (written.name, written.read_bytes()) == ("stamp.json", STAMP_BYTES)
    assert stat.S_IMODE(written.stat().st_mode) == 0o644

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("credferry.launcher.handoff.os.rename", full)
    with pytest.raises(OSError, match="No space"):
        handoff.write_stamp(str(tmp_path), STAMP.but(generation=8))
    assert [each.name for each in tmp_path.iterdir()] == ["stamp.json"]
    assert written.read_bytes() == STAMP_BYTES
    # What lies there already is not written into: it may be somebody else's file.
    (tmp_path / f".stamp.json.{os.getpid()}").symlink_to(written)
    with pytest.raises(FileExistsError):
        handoff.write_stamp(tmp_path, STAMP.but(generation=9))
    assert written.read_bytes() == STAMP_BYTES


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("A", True), ("a.b-c_9", True), ("x" * NAME_MAX, True), ("..a", True),
        ("", False), (".", False), ("..", False), ("x" * (NAME_MAX + 1), False), ("a b", False),
        ("a,b", False), ("a/b", False), ("ä", False), ("a\n", False),
    ],
)  # fmt: skip
def test_names_of_credentials(name: str, good: bool) -> None:
    """What systemd takes and every version of cloud-hypervisor's grammar leaves alone."""
    assert handoff.is_credential_name(name) is good


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("w", True), ("X", True), ("web-1.example_2", True), ("_", True), ("x" * 64, True),
        ("", False), ("x" * 65, False), (".web", False), ("-web", False), ("a/b", False), ("a b", False),
        ("a@b", False), ("ü", False),
    ],
)  # fmt: skip
def test_names_of_vms(name: str, good: bool) -> None:
    """What can be a unit's instance, a directory and a journal field's value without escaping."""
    assert handoff.is_vm_name(name) is good


@pytest.mark.parametrize(("name", "power"), [("API_KEY", False), ("api.key", False), ("ssh.listen", True)])
def test_powerful_names(name: str, power: bool) -> None:
    """A name without a dot is never powerful; the others are looked up."""
    assert handoff.is_powerful_name(name) is power


def test_names_of_files() -> None:
    """A generation's files, and what the unit's credentials are called."""
    assert handoff.value_file("API_KEY") == "value.API_KEY"
    assert handoff.unit_credential("value.API_KEY") == "credferry_value.API_KEY"
    assert handoff.evidence_name("web", "f" * 32) == "web@" + "f" * 32
    assert len(handoff.unit_credential(handoff.value_file("x" * NAME_MAX))) == 255


def test_oem_strings() -> None:
    """Plain values and texts travel in Base64, sealed ones as they are; a string takes its NUL as well."""
    string = handoff.oem_string
    assert string("K", Kind.PLAIN, Secret(b"v\n")).reveal() == b"io.systemd.credential.binary:K=dgo="
    assert string("K", Kind.TEXT, Secret(b"v\n")).reveal() == b"io.systemd.credential.binary:K=dgo="
    assert string("K", Kind.SEALED, Secret(b"Whxq")).reveal() == b"io.systemd.credential:K=Whxq"
    assert handoff.oem_size([]) == 0
    assert handoff.oem_size([b"", b"abc"]) == 5


def test_deliveries() -> None:
    """With an initrd, sealed values alone do not become OEM strings; the guest's age sets the budget."""
    for initrd in (False, True):
        delivery = Delivery(initrd=initrd)
        assert delivery.is_oem(Kind.PLAIN)
        assert delivery.is_oem(Kind.TEXT)
        assert delivery.is_oem(Kind.SEALED) is not initrd
    assert Delivery(guest_systemd=256).oem_total_max == OEM_TOTAL_BEFORE_257
    assert Delivery(guest_systemd=257).oem_total_max == OEM_TOTAL_MAX


def test_a_value_s_digest() -> None:
    """A known answer; every part counts, and a part's bytes cannot pass for the next part's."""
    digest = handoff.value_digest("0" * 64, MANIFEST, ENTRIES[0], Secret(b"v"))
    assert digest == KNOWN_DIGEST
    others = [
        handoff.value_digest("1" * 64, MANIFEST, ENTRIES[0], Secret(b"v")),
        handoff.value_digest("0" * 64, MANIFEST.but(vm="db"), ENTRIES[0], Secret(b"v")),
        handoff.value_digest("0" * 64, MANIFEST.but(generation=8), ENTRIES[0], Secret(b"v")),
        handoff.value_digest("0" * 64, MANIFEST, ENTRIES[0].but(name="API_KEX"), Secret(b"v")),
        handoff.value_digest("0" * 64, MANIFEST, ENTRIES[0].but(kind=Kind.TEXT), Secret(b"v")),
        handoff.value_digest("0" * 64, MANIFEST, ENTRIES[0], Secret(b"w")),
        handoff.value_digest("0" * 64, MANIFEST.but(vm="web1"), ENTRIES[0], Secret(b"v")),
    ]
    assert len({digest, *others}) == len(others) + 1
    bound = MANIFEST.bound({"API_KEY": Secret(b"v"), "TOKEN": Secret(b"t")}, "0" * 64)
    assert bound.key == "0" * 64
    assert all(
        bound.holds(entry, Secret(value))
        for entry, value in zip(bound.credentials, (b"v", b"t"), strict=True)
    )
    assert not bound.holds(bound.credentials[0], Secret(b"t"))


def test_a_secret_shows_nothing() -> None:
    """Neither its text nor its length shows in any form; it is compared by value, and never pickled."""
    secret = Secret(b"hunter2")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret:>40}"):
        assert shown == "Secret(…)"
    assert secret == Secret(b"hunter2")
    assert secret != Secret(b"hunter3")
    assert secret != b"hunter2"
    for act in (lambda: pickle.dumps(secret), lambda: hash(secret), lambda: {secret}):
        with pytest.raises(TypeError):
            act()


KNOWN_DIGEST = "1f92b53360aee3a803db639e8f82cd294bfd22c4d57a0246688d0cc78644545c"


def test_nothing_is_a_number_of_a_stamp_too() -> None:
    """The first generation's number is 1, and a VM may have no other strings: zero is read as zero."""
    assert Stamp.from_bytes(changed(STAMP_BYTES, other_oem_bytes=0)).other_oem_bytes == 0


def test_a_stamp_that_vanishes_while_it_is_written_is_the_error_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tidying up does not hide why the stamp could not be written."""

    def vanish(temporary: str, _: str) -> None:
        os.unlink(temporary)  # noqa: PTH108 (as the launcher does)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("credferry.launcher.handoff.os.rename", vanish)
    with pytest.raises(OSError, match="Input/output error"):
        handoff.write_stamp(tmp_path, STAMP)


def test_a_stamp_of_an_earlier_release_has_no_room() -> None:
    """A VM that was started before an upgrade is still known to be launched."""
    assert Stamp.from_bytes(changed(STAMP_BYTES, room=None)) == STAMP.but(room=0)


def test_what_strings_take_on_their_way() -> None:
    """Over the API two bytes more for each than in the guest."""
    assert Channel.API.room_taken(100, 3) == 106
    assert Channel.COMMAND.room_taken(100, 3) == 100
