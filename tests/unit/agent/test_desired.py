# SPDX-License-Identifier: MIT
"""What a VM should get: digests that only the key's owner can compute, and limits at their exact size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.config.model import VmConfig
from credferry.agent.config.secrets import CredentialConfig
from credferry.agent.reconcile.desired import (
    Desired,
    Fingerprints,
    Refused,
    desired,
    guest_id,
)
from credferry.agent.reconcile.limits import (
    API_STRINGS_MAX,
    UNIT_TOTAL_MAX,
    Excess,
    Room,
    over_limit,
    room_of,
)
from credferry.agent.reconcile.live import push_manifest_at_most
from credferry.agent.sealing.credential import sealed_size
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.source.published import Publication
from credferry.agent.source.reading import Problem
from credferry.agent.source.snapshot import Snapshot, SourceGeneration
from credferry.launcher.credentials import Credential, Delivered
from credferry.launcher.errors import LaunchError
from credferry.launcher.handoff import (
    INITRD_TOTAL_MAX,
    LAUNCHED,
    PUSH_MANIFEST,
    Channel,
    Kind,
    Manifest,
    Secret,
    Stamp,
    oem_string,
)
from credferry.launcher.plan import Plan, Request, make
from tests.support.dictionary import LIKELY, guesses, matches

KEY, OTHER_KEY = CredentialKey(bytes(4096)), CredentialKey(b"\1" * 4096)
GUEST = CredentialKey(b"\2" * 4096)
LABELS = ("web", "A", "B", "a", "b", "secret/a", "secret/b", "text/web/A", "text/web/T")


def vm(name: str = "web", **settings: Any) -> VmConfig:  # noqa: ANN401 (any of the settings)
    """A VM with two secrets and a text."""
    credentials = {
        "A": CredentialConfig(secret="a"),
        "B": CredentialConfig(secret="b"),
        "T": CredentialConfig(text="hunter2"),
    }
    return VmConfig(
        **{"name": name, "unit": f"microvm@{name}.service", "credentials": credentials, **settings}
    )


def snapshot_of(values: dict[str, Secret | Problem], source: str = "") -> Publication:
    """What one source holds."""
    return Publication({source: Snapshot(SourceGeneration(1, 1, committed=True), values)})


def wanted(
    config: VmConfig,
    values: dict[str, Secret | Problem],
    key: CredentialKey = KEY,
    guest: CredentialKey | None = None,
    fingerprints: Fingerprints | None = None,
) -> Desired:
    """What the VM should get, where it is not refused."""
    found = desired(config, snapshot_of(values), fingerprints or Fingerprints(key), guest)
    assert isinstance(found, Desired)
    return found


def published(a: bytes = LIKELY[0], b: bytes = b"other") -> dict[str, Secret | Problem]:
    """Two values."""
    return {"a": Secret(a), "b": Secret(b)}


def shown(what: Desired) -> str:
    """All that others may see of it."""
    return json.dumps([what.digest, *([each.name, each.fingerprint] for each in what.entries)])


def test_no_guess_is_confirmed() -> None:
    """Nobody without the host's key can tell a likely value by its fingerprint or by the VM's digest."""
    guessed = guesses(LABELS)
    assert matches(shown(wanted(vm(), published())), guessed) == []
    # The same guesses find what was made without a key.
    import hashlib  # noqa: PLC0415 (only here)

    assert matches(hashlib.sha256(b"secret/a\0" + LIKELY[0]).hexdigest()[:16], guessed)


def test_another_key_tells_another_story() -> None:
    """Fingerprints and digest of the same values have nothing in common under two host keys."""
    one, other = wanted(vm(), published(), KEY), wanted(vm(), published(), OTHER_KEY)
    assert one.digest != other.digest
    assert {each.fingerprint for each in one.entries}.isdisjoint(each.fingerprint for each in other.entries)


def test_digests_are_what_they_were() -> None:
    """Known answers: a release that computed them otherwise would restart every VM of every host."""
    what = wanted(vm(), published())
    assert what.digest == KNOWN["digest"]
    assert {each.name: each.fingerprint for each in what.entries} == KNOWN["fingerprints"]
    sealed = wanted(vm(guest_key=True), published(), guest=GUEST)
    assert sealed.digest == KNOWN["sealed"]
    assert guest_id(GUEST) == KNOWN["guest"]
    assert guest_id(None) == ""


def test_a_secret_has_one_fingerprint_in_every_vm_and_a_text_has_its_own() -> None:
    """A secret goes by its name in the source, a text by its VM and name; equal values do not show."""
    same = published(b"v", b"v")
    config = vm(credentials={
        "A": CredentialConfig(secret="a"), "B": CredentialConfig(secret="b"),
        "S": CredentialConfig(text="v"), "T": CredentialConfig(text="v"),
    })  # fmt: skip
    prints = {each.name: each.fingerprint for each in wanted(config, same).entries}
    assert len(set(prints.values())) == 4
    elsewhere = {each.name: each.fingerprint for each in wanted(vm("db"), same).entries}
    assert elsewhere["A"] == prints["A"]
    assert elsewhere["T"] != {each.name: each.fingerprint for each in wanted(vm(), same).entries}["T"]


def test_a_changed_value_is_seen_though_the_last_look_is_remembered() -> None:
    """What is remembered of a VM's last look is used for the same values alone, and for that VM alone."""
    before = Fingerprints(KEY)
    first = wanted(vm(), published(), fingerprints=before)
    again = Fingerprints(KEY, before.last)
    assert wanted(vm(), published(), fingerprints=again) == first
    for values in (published(b=b"new"), published(a=b"new"), published(LIKELY[0] + b"other", b"")):
        changed = Fingerprints(KEY, dict(before.last))
        assert wanted(vm(), values, fingerprints=changed).digest != first.digest
    other = Fingerprints(KEY, before.last)
    assert wanted(vm("db"), published(), fingerprints=other).entries != first.entries


def test_what_is_remembered_is_not_made_out_again() -> None:
    """The second look at the same values takes the identity of the first."""
    fingerprints = Fingerprints(KEY)
    wanted(vm(), published(), fingerprints=fingerprints)
    again = Fingerprints(KEY, fingerprints.last)
    wanted(vm(), published(), fingerprints=again)
    assert again._known == {}


def test_the_guest_key_counts_for_sealed_values_alone() -> None:
    """Another guest key changes what is sealed for the guest, and not the plain rest."""
    mixed = {"A": CredentialConfig(secret="a", seal=True), "B": CredentialConfig(secret="b")}
    plain = vm(credentials={"B": CredentialConfig(secret="b")}, guest_key=False)
    config = vm(credentials=mixed)
    assert wanted(config, published(), guest=GUEST).digest != wanted(config, published(), guest=KEY).digest
    assert wanted(plain, published(), guest=GUEST).digest == wanted(plain, published()).digest


@pytest.mark.parametrize(
    ("a", "b", "passing", "named"),
    [
        (Problem.BEING_WRITTEN, Problem.ABSENT, True, ["A", "B"]),
        (Problem.ABSENT, Problem.BEING_WRITTEN, True, ["A", "B"]),
        (Problem.ABSENT, Problem.EMPTY, False, ["A", "B"]),
        (Secret(b"v"), Problem.ABSENT, False, ["B"]),
    ],
)
def test_refusals_name_every_credential(
    a: Secret | Problem, b: Secret | Problem, passing: bool, named: list[str]
) -> None:
    """All that lacks is named, with the remedy; it may pass by itself where a value is being written."""
    found = desired(vm(), snapshot_of({"a": a, "b": b}), Fingerprints(KEY), None)
    assert isinstance(found, Refused)
    assert found.passing is passing
    assert [reason[0] for reason in found.reasons] == named


def test_credentials_without_a_secret_are_passed_over() -> None:
    """Later credentials are still delivered."""
    config = vm(credentials={"A": CredentialConfig(), "B": CredentialConfig(secret="b")})
    assert set(wanted(config, published()).values) == {"B"}


def plain_of(size: int, **settings: Any) -> tuple[VmConfig, Desired]:  # noqa: ANN401 (any of the settings)
    """A VM whose one plain credential takes this many bytes of OEM strings, its NUL included."""
    head = len("io.systemd.credential.binary:A=") + 1
    config = vm(credentials={"A": CredentialConfig(secret="a")}, **settings)
    value = b"v" * ((size - head) // 4 * 3)
    what = wanted(config, {"a": Secret(value)})
    left = (size - head) % 4
    name = "A" + "x" * left
    config = vm(credentials={name: CredentialConfig(secret="a")}, **settings)
    what = wanted(config, {"a": Secret(value)})
    return config, what


def test_the_guest_key_is_named_that_a_digest_is_of() -> None:
    """Also where nothing has changed since the last look, and what a refusal asks for is that key."""
    config, remembered = vm(guest_key=True), Fingerprints(KEY)
    for _ in range(2):
        assert wanted(config, published(), guest=GUEST, fingerprints=remembered).guest == guest_id(GUEST)
    found = desired(config, snapshot_of(published()), remembered, None)
    assert isinstance(found, Refused)
    assert "guest-key create web" in found.reasons[0]
    assert found.passing is False
    config = vm(guest_key=True, guest_machine_id="a" * 32)
    found = desired(config, snapshot_of(published()), remembered, None)
    assert isinstance(found, Refused)
    assert "the agent makes one" in found.reasons[0]


@pytest.mark.parametrize("other", [0, 91])
def test_the_limit_of_an_old_guest_is_exact(other: int) -> None:
    """4,091 bytes with all strings and their NULs pass; one more is refused, with both remedies."""
    assert over_limit(*plain_of(4091 - other), Room(other)) is None
    said = over_limit(*plain_of(4092 - other), Room(other))
    assert said is not None
    assert "exceed 4091 bytes" in said.message
    assert "guest_systemd = 257" in said.hint


def test_the_limit_without_a_launcher_is_that_of_a_unit() -> None:
    """No limit of OEM strings holds; systemd's limit of all credentials of a unit does."""
    config = vm(credentials={"a": CredentialConfig(secret="a")}, channel=Channel.DIRECTORY)
    most = UNIT_TOTAL_MAX - len("a")
    assert over_limit(config, wanted(config, {"a": Secret(b"v" * most)}), Room()) is None
    said = over_limit(config, wanted(config, {"a": Secret(b"v" * (most + 1))}), Room())
    assert said is not None
    assert "the most that systemd loads for one unit" in said.message


def test_a_new_guest_is_not_told_to_be_new() -> None:
    """Where the configuration says 257, the larger limit holds, and that remedy is not offered."""
    command = {"guest_systemd": 257, "channel": Channel.COMMAND, "plaintext_in_argv": True}
    assert over_limit(*plain_of(65_398, **command), Room()) is None
    said = over_limit(*plain_of(65_399, **command), Room())
    assert said is not None
    assert "exceed 65398 bytes" in said.message
    assert "guest_systemd" not in said.hint


UNREPORTED = room_of(None, Channel.API, may_run=True)
REPORT = Stamp("web", 1, "a" * 64, "b" * 32, "c" * 32, Channel.API, 60, 20_000)


def test_the_limit_of_the_api_is_exact() -> None:
    """48 KiB of strings pass over the API, one byte more does not; the largest credential is named."""
    assert over_limit(*plain_of(API_STRINGS_MAX, guest_systemd=257), UNREPORTED) is None
    said = over_limit(*plain_of(API_STRINGS_MAX + 1, guest_systemd=257), UNREPORTED)
    assert said is not None
    assert f"exceed {API_STRINGS_MAX} bytes" in said.message
    assert said.message.startswith("Ax:")
    assert "later than 53" in said.hint


@pytest.mark.parametrize(
    ("report", "channel", "may_run", "room"),
    [
        (REPORT, Channel.API, True, Room(60, 20_000, 2)),
        (REPORT, Channel.API, False, Room(60, 20_000, 2)),
        (REPORT.but(channel=Channel.COMMAND), Channel.COMMAND, True, Room(60, 20_000)),
        (REPORT.but(channel=Channel.COMMAND), Channel.API, True, Room(60, API_STRINGS_MAX)),
        (REPORT, Channel.COMMAND, True, Room(60)),
        (REPORT.but(room=0), Channel.API, False, Room(60, API_STRINGS_MAX)),
        (None, Channel.API, True, Room(0, API_STRINGS_MAX)),
        (None, Channel.API, False, Room()),
        (None, Channel.COMMAND, True, Room()),
        (None, Channel.DIRECTORY, True, Room()),
    ],
)
def test_the_room_is_what_the_launcher_has_reported(
    report: Stamp | None, channel: Channel, may_run: bool, room: Room
) -> None:
    """Of the same channel; else what fits in any case, unless the VM has never run."""
    assert room_of(report, channel, may_run=may_run) == room


@pytest.mark.parametrize("major", [53, 54])
@pytest.mark.parametrize("channel", LAUNCHED)
@pytest.mark.parametrize("cmdline", [0, 9_000, 51_000])
@pytest.mark.parametrize("platform", ["", "--platform uuid=u", "--platform oem_strings=[x]"])
def test_agent_and_launcher_agree_on_what_fits(
    major: int, channel: Channel, cmdline: int, platform: str
) -> None:
    """After a start with one value, or with none, the agent accepts just what the launcher would start."""
    argv = ("--kernel", "/k", "--cmdline", "c" * cmdline, *platform.split())

    def start(what: Desired) -> Plan:
        credentials = tuple(Credential(e.name, e.kind, what.values[e.name]) for e in what.entries)
        manifest = Manifest("web", 3, "a" * 64, "b" * 32, what.delivery, what.entries)
        return make(Request("/bin/ch", argv, major, "x86_64"), Delivered(manifest, credentials))

    settings: dict[str, Any] = {"guest_systemd": 257, "channel": channel, "plaintext_in_argv": True}
    try:
        before = start(plain_of(64, **settings)[1])
    except LaunchError:
        assert (major, channel, cmdline) == (53, Channel.API, 51_000)
        return
    report = REPORT.but(channel=channel, other_oem_bytes=before.other_oem_bytes, room=before.start.room)
    room = room_of(report, channel, may_run=True)
    most = min(65_398 - before.other_oem_bytes, before.start.room - room.per_string)
    for size in (64, most - 1, most, most + 1, 51_000, 60_000):
        config, what = plain_of(size, **settings)
        try:
            start(what)
        except LaunchError:
            assert over_limit(config, what, room) is not None
        else:
            assert over_limit(config, what, room) is None


def test_more_strings_than_a_guest_can_count_are_refused() -> None:
    """255 pass, as in the launcher."""
    passing = []
    for count in (254, 255, 256):
        texts = {f"T{at}": CredentialConfig(text="t") for at in range(count)}
        config = vm(credentials=texts, guest_systemd=257)
        said = over_limit(config, wanted(config, {}), Room())
        passing += [count] if said is None else []
    assert passing == [254, 255]
    assert said == Excess("256 OEM strings, but SMBIOS takes at most 255", "pass fewer")


@pytest.mark.parametrize(
    ("channel", "way", "remedy"),
    [
        (Channel.API, "cloud-hypervisor's API", ", or use a cloud-hypervisor later than 53"),
        (Channel.COMMAND, "an argument", ""),
    ],
)
def test_the_way_that_is_too_narrow_is_named(channel: Channel, way: str, remedy: str) -> None:
    """A newer hypervisor helps where the API is the limit, and only there."""
    config, what = plain_of(64, channel=channel, plaintext_in_argv=True)
    assert over_limit(config, what, Room(strings=64)) is None
    said = over_limit(config, what, Room(strings=63))
    assert said is not None
    assert f"exceed 63 bytes, the most that {way} takes" in said.message
    assert said.hint == f"pass fewer or smaller ones{remedy}"


def test_what_each_string_takes_on_the_way_counts() -> None:
    """Each of three strings takes two bytes more than in the guest."""
    config = vm(credentials={f"T{at}": CredentialConfig(text="t") for at in range(3)})
    taken = 3 * (len(oem_string("T0", Kind.PLAIN, Secret(b"t")).reveal()) + 1 + 2)
    assert over_limit(config, wanted(config, {}), Room(strings=taken, per_string=2)) is None
    assert over_limit(config, wanted(config, {}), Room(strings=taken - 1, per_string=2)) is not None


def test_only_an_old_guest_is_advised_to_be_new() -> None:
    """The remedy ends there for a guest that is new already."""
    command = {"guest_systemd": 257, "channel": Channel.COMMAND, "plaintext_in_argv": True}
    said = over_limit(*plain_of(65_399, **command), Room())
    assert said is not None
    assert said.hint == "pass fewer or smaller ones"


def test_a_vm_without_strings_is_over_no_limit_of_them() -> None:
    """Its other strings are not the agent's to judge."""
    config = vm(credentials={"A": CredentialConfig(secret="a")}, guest_key=True, initrd=True)
    assert over_limit(config, wanted(config, published(), guest=GUEST), Room(5000, 1, 1)) is None


@pytest.mark.parametrize("is_sealed", [False, True])
def test_the_manifest_of_a_push_takes_room(is_sealed: bool) -> None:
    """A VM that takes pushes gets one more credential at each start. It counts at its largest size."""
    config = vm(credentials={"A": CredentialConfig(secret="a")}, live=True, guest_key=is_sealed)
    what = wanted(config, {"a": Secret(b"v")}, guest=GUEST if is_sealed else None)
    kinds = {"A": config.kind("A")}
    kind, manifest = push_manifest_at_most("web", kinds, is_sealed=is_sealed)
    value = Secret(b"=" * sealed_size("A", b"v")) if is_sealed else Secret(b"v")
    own = [oem_string("A", kinds["A"], value), oem_string(PUSH_MANIFEST, kind, manifest)]
    most = 4091 - sum(len(each.reveal()) + 1 for each in own)
    assert over_limit(config, what, Room(most)) is None
    assert over_limit(config, what, Room(most + 1)) is not None


def test_the_largest_credential_is_named() -> None:
    """It is the one to make smaller, whatever its name."""
    config = vm()
    said = over_limit(config, wanted(config, {"a": Secret(b"v" * 4000), "b": Secret(b"v")}), Room())
    assert said is not None
    assert said.message.startswith("A:")


@given(st.binary(min_size=1, max_size=2000))
def test_the_size_in_an_initrd_is_exact(value: bytes) -> None:
    """Sealed values in the initrd count by what they take there, and not as OEM strings."""
    config = vm(credentials={"A": CredentialConfig(secret="a")}, guest_key=True, initrd=True)
    assert over_limit(config, wanted(config, {"a": Secret(value)}, guest=GUEST), Room(4091)) is None


def test_the_limit_of_an_initrd_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is used, and one byte more is refused."""
    config = vm(credentials={"A": CredentialConfig(secret="a")}, guest_key=True, initrd=True)
    what = wanted(config, {"a": Secret(b"v")}, guest=GUEST)
    passing = []
    for size in range(300):
        monkeypatch.setattr("credferry.agent.reconcile.limits.INITRD_TOTAL_MAX", size)
        passing += [size] if over_limit(config, what, Room()) is None else []
    assert passing == list(range(sealed_size("A", b"v"), 300))


def test_the_limit_of_an_initrd() -> None:
    """A guest takes 1 MiB of credentials from its initrd, and no more."""
    config = vm(
        credentials={name: CredentialConfig(secret=name.lower()) for name in "AB"},
        guest_key=True,
        initrd=True,
    )
    assert config.kind("A") is Kind.SEALED
    half = b"v" * (INITRD_TOTAL_MAX * 3 // 8 - 200)
    what = wanted(config, {"a": Secret(half), "b": Secret(half)}, guest=GUEST)
    assert over_limit(config, what, Room()) is None
    what = wanted(config, {"a": Secret(half + b"v" * 600), "b": Secret(half)}, guest=GUEST)
    said = over_limit(config, what, Room())
    assert said is not None
    assert f"exceed {INITRD_TOTAL_MAX} bytes" in said.message


KNOWN: dict[str, Any] = {
    "digest": "1bcf35240d734f184f972d49f8c6e88c03419fcecc17c42531c9059cce795a4a",
    "fingerprints": {"A": "0a3bfa3d6cadfd07", "B": "81f2ec0d5a8c270b", "T": "2123cefebebd2b5a"},
    "guest": "2ffb088398bb8aaf7c2930885ca244bd5681482f8e563d72bc88593845d9a08c",
    "sealed": "8ea154f9cf8974899987fcdb83e3553e9d5058780ff887bfe789ee82ce795a4a",
}
