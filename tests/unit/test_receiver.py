# SPDX-License-Identifier: MIT
"""The guest's receiver, run by each shell; `tests.support.receiver` says what is faked."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credferry.agent.sealing.credential import seal
from credferry.agent.sealing.keys import CredentialKey, create_key, read_key, read_machine_id
from tests.support.nightly import variants
from tests.support.receiver import (
    MANIFEST,
    RECEIPT,
    SCRIPT,
    SHELLS,
    Block,
    Guest,
    answer,
    frame,
    manifest,
    plain_push,
    push,
)

if TYPE_CHECKING:
    from collections.abc import Callable

OLD = {"K": b"old", "L": b"same"}
SAME = Block.plain(b"same")
NEW = {"K": Block.plain(b"new"), "L": SAME}
DONE = f"done {RECEIPT}"
BAD = 'grep -q bad "$SYSTEM/K" && echo failed >state\n'


@pytest.fixture(params=variants(*SHELLS), ids=lambda shell: shell.rpartition("/")[2].rpartition(" ")[2])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Guest:
    """A guest that was booted with generation 5, and two units that each load one of its credentials."""
    made = Guest(tmp_path / "guest", request.param)
    made.boot(5, OLD)
    made.unit("app.service", "[Service]\nLoadCredential=key:K\n", restart=BAD)
    made.unit("other.service", "[Service]\nLoadCredential=L\n")
    return made


def test_it_is_clean_by_shellcheck() -> None:
    """As a script of POSIX sh."""
    if shutil.which("shellcheck") is None:
        pytest.fail("no shellcheck (run tests/support/bootstrap unit)")
    done = subprocess.run(["shellcheck", "--shell=sh", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_only_what_changed_is_touched(guest: Guest) -> None:
    """The new value is there, the unit that loads it restarts, and nothing of the push is left over."""
    assert guest.receive(plain_push(6, NEW)) == ["unit app.service restarted", DONE]
    assert guest.values() == {"K": b"new", "L": b"same"}
    assert (guest.system / MANIFEST).read_bytes() == manifest(6, NEW)
    assert (guest.told("reset-failed"), guest.told("restart")) == (["app.service"], ["app.service"])
    assert guest.left() == []


def test_a_repeated_push_touches_nothing(guest: Guest) -> None:
    """The same generation again is done at once, with the same receipt."""
    guest.receive(plain_push(6, NEW))
    assert guest.receive(plain_push(6, NEW)) == [DONE]
    assert guest.told("restart") == ["app.service"]


def test_the_hello(guest: Guest) -> None:
    """It names the boot, the generation that the guest holds, and whether credentials can change."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    (guest.fake / "unwritable").touch()
    manifest_file = guest.system / MANIFEST
    manifest_file.rename(guest.root / "manifest")
    for generation, capabilities in ((0, "-"), (5, "system-directory")):
        process, connection = guest.start()
        assert answer(connection, b"commit\n")[0] == f"credferry 1 {boot} {generation} {capabilities}"
        process.wait(60)
        (guest.fake / "unwritable").unlink(missing_ok=True)
        if not manifest_file.exists():
            (guest.root / "manifest").rename(manifest_file)


def test_credentials_are_added_and_removed(guest: Guest) -> None:
    """What the new manifest does not name leaves @system, and its units restart; what is new arrives."""
    guest.unit("pattern.service", "[Service]\nImportCredential=N*\n")
    assert guest.receive(plain_push(6, {"K": Block.plain(b"old"), "NEW": Block.plain(b"")})) == [
        "unit other.service restarted",
        "unit pattern.service restarted",
        DONE,
    ]
    assert guest.values() == {"K": b"old", "NEW": b""}


@pytest.mark.parametrize(
    ("lines", "restarts"),
    [
        ("LoadCredential=K", True),
        ("LoadCredential=id:K", True),
        (" LoadCredential = K ", True),
        ("LoadCredentialEncrypted=K:/run/credentials/@system/K", True),
        ("LoadCredential=all:/run/credentials/@system/", True),
        ("LoadCredentialEncrypted=all:/run/credentials/@system", True),
        ("\tLoadCredential\t=\tK\t", True),
        ("ImportCredential=?", True),
        ("ImportCredential=[KM]:renamed.", True),
        ("LoadCredential=%p:K%i", True),
        ("LoadCredential=K:L", False),
        ("LoadCredential=K:/etc/K", False),
        ("LoadCredential=K:/K", False),
        ("LoadCredential=all:/etc/", False),
        ("LoadCredential=K\nLoadCredential=", False),
        ("ImportCredential=K\nImportCredential=\nImportCredential=L", False),
        ("LoadCredential=\nImportCredential=X*", False),
        ("# LoadCredential=K", False),
        ("SetCredential=K:x", False),
        ("ExecStart=/bin/echo LoadCredential=K", False),
    ],
)
def test_which_units_load_a_credential(guest: Guest, lines: str, restarts: bool) -> None:
    """What counts is where a unit's credential comes from, as systemd reads its files."""
    guest.unit("x.service", f"# /etc/systemd/system/x.service\n[Service]\n{lines}\n")
    told = guest.receive(plain_push(6, {"K": Block.plain(b"new"), "L": SAME}))
    assert ("unit x.service restarted" in told) == restarts
    assert told[-1] == DONE


def test_the_guest_says_otherwise_for_a_unit(guest: Guest) -> None:
    """Its configuration has a unit reloaded or left alone; since systemd 260 a unit can ask for a reload."""
    guest.unit("reload.service", "[Service]\nLoadCredential=K\n")
    guest.unit(
        "new.service",
        "[Service]\nLoadCredential=K\n",
        properties="Type=notify\nRefreshOnReload=credentials\n",
    )
    (guest.root / "etc/credferry-receive.d/a.conf").write_text("app.service ignore\nreload.service reload\n")
    assert sorted(guest.receive(plain_push(6, NEW))) == [
        DONE,
        "unit app.service ignored",
        "unit new.service reloaded",
        "unit reload.service reloaded",
    ]
    assert guest.told("restart") == []


@pytest.mark.parametrize(
    "restart",
    [
        'grep -q bad "$SYSTEM/K" && { echo failed >state; false; }; true\n',
        'grep -q bad "$SYSTEM/K" && echo activating >state\n',
        'grep -q bad "$SYSTEM/K" && echo inactive >state\n',
        'grep -q bad "$SYSTEM/K" && { echo 1 >id; false; }; true\n',
    ],
    ids=["fails", "is restarted again and again", "ends at once", "is masked"],
)
def test_a_unit_that_does_not_come_up_gets_the_old_values_back(guest: Guest, restart: str) -> None:
    """All of them, and the manifest; the unit runs again with its old value, and a better push works."""
    guest.unit("bad.service", "[Service]\nLoadCredential=K\n", restart=restart)
    (guest.fake / "units/bad.service/id").write_text("1\n")
    both = {"K": Block.plain(b"bad"), "L": Block.plain(b"changed"), "M": Block.plain(b"added")}
    told = guest.receive(plain_push(6, both))
    assert told in (["failed unit app.service"], ["failed unit bad.service"])
    assert guest.values() == OLD
    assert (guest.system / MANIFEST).read_bytes().startswith(b"credferry-push 1\nvm web\ngeneration 5\n")
    assert guest.receive(plain_push(7, NEW))[-1] == DONE
    assert (guest.values(), guest.left()) == ({"K": b"new", "L": b"same"}, [])


def test_a_unit_that_cannot_be_restarted_stays_as_it_is(guest: Guest) -> None:
    """A masked unit fails the push and goes on with its old value; it is not in the way of other values."""
    unit = guest.fake / "units/other.service"
    (unit / "restart").write_text("false\n")
    (unit / "unit").write_text("# /etc/systemd/system/other.service\n")
    (guest.root / "run/credentials/other.service/L").touch()
    assert guest.receive(plain_push(6, {"K": Block.plain(b"new"), "L": Block.plain(b"new")})) == [
        "failed unit other.service"
    ]
    assert (guest.values(), guest.left()) == (OLD, [])
    assert guest.told("restart") == ["app.service other.service", "app.service"]
    assert guest.receive(plain_push(7, NEW)) == ["unit app.service restarted", DONE]


def test_a_restart_that_hangs_gets_the_old_values_back(guest: Guest) -> None:
    """The receiver waits for it for a bounded time."""
    guest.environment["CREDFERRY_RECEIVE_UNIT_SECONDS"] = "1"
    os.mkfifo(guest.fake / "never")
    place = guest.fake / "units/app.service/restart"
    # First of all: whenever the second is over on a slow machine, the unit is not up with the new value.
    place.write_text(
        f'grep -q new "$SYSTEM/K" && echo activating >state && read x <"$FAKE/never"\n{place.read_text()}'
    )
    assert guest.receive(plain_push(6, NEW)) == ["failed unit app.service"]
    assert (guest.values(), guest.left()) == (OLD, [])


def test_a_oneshot_may_be_over(guest: Guest) -> None:
    """A unit of Type=oneshot that has run to its end has taken the new value."""
    guest.unit(
        "once.service",
        "[Service]\nLoadCredential=K\n",
        restart="echo inactive >state\n",
        properties="Type=oneshot\n",
    )
    assert guest.receive(plain_push(6, NEW))[-1] == DONE


def test_a_unit_that_stays_active_without_a_process_restarts(guest: Guest) -> None:
    """It has no credentials any more, but it has used one that changed: it may have written a file."""
    guest.unit("once.service", "[Service]\nLoadCredential=K\n", properties="Type=oneshot\n")
    guest.unit("else.service", "[Service]\nLoadCredential=L\n", properties="Type=oneshot\n")
    guest.exit_unit("once.service")
    guest.exit_unit("else.service")
    assert guest.receive(plain_push(6, NEW)) == [
        "unit app.service restarted",
        "unit once.service restarted",
        DONE,
    ]


def test_drop_ins_are_read_as_systemd_reads_them(guest: Guest) -> None:
    """The last assignment counts; a file may end without a newline, and have any name."""
    for unit, main, drop_in, name in (
        ("reset.service", "LoadCredential=K\n", "LoadCredential=", "a.conf"),
        ("adds.service", "", "LoadCredential=K", "a.conf"),
        ("odd.service", "", "LoadCredential=K", "a\\x20b.conf"),
    ):
        guest.unit(unit, f"[Service]\n{main}")
        directory = guest.fake / "units" / unit / "unit.d"
        directory.mkdir()
        (directory / name).write_text(f"[Service]\n{drop_in}")
    assert guest.receive(plain_push(6, NEW)) == [
        "unit adds.service restarted",
        "unit app.service restarted",
        "unit odd.service restarted",
        DONE,
    ]
    assert guest.told("cat") == ["odd.service"]


@pytest.mark.parametrize("length", [0, 6143, 6144, 6145, 300_000])
def test_a_value_of_any_length_arrives(guest: Guest, length: int) -> None:
    """The shell itself reads what is short; a program reads what is long."""
    value = os.urandom(length).replace(b"bad", b"new")  # with "bad" in it, the unit fails
    assert guest.receive(plain_push(6, {"K": Block.plain(value), "L": SAME}))[-1] == DONE
    assert guest.values() == {"K": value, "L": b"same"}


def test_a_unit_that_a_push_left_down_is_started_by_the_next(guest: Guest) -> None:
    """It has no credentials any more, so nothing but the receiver's own note leads to it."""
    guest.unit(
        "down.service", "[Service]\nLoadCredential=L\n", restart='[ -e "$FAKE/up" ] || echo failed >state\n'
    )
    assert guest.receive(plain_push(6, {"K": Block.plain(b"old"), "L": Block.plain(b"new")})) == [
        "failed unit down.service"
    ]
    assert guest.values() == OLD
    (guest.root / "run/credentials/down.service").rmdir()
    assert guest.receive(plain_push(6, NEW)) == ["failed unit down.service"]
    (guest.fake / "up").touch()
    told = guest.receive(plain_push(7, NEW))
    assert "unit down.service restarted" in told
    assert told[-1] == DONE


@pytest.mark.parametrize("moment", ["restart", "cp", "mv"])  # after the first of these
def test_a_receiver_that_is_killed_is_made_up_for(guest: Guest, moment: str) -> None:
    """The next push does all again. If it fails too, the receiver restores the values from before both."""
    once = '[ -e "$FAKE/again" ] || { : >"$FAKE/again";'
    if moment == "restart":
        place = guest.fake / "units/app.service/restart"
        place.write_text(f'{once} kill -9 $(cat "$FAKE/pid"); exit; }}\n{place.read_text()}')
    else:
        program = guest.root / "bin" / moment
        program.write_text(
            f'#!/bin/sh\ncase $* in *@system/.credferry*) {once} /usr/bin/{moment} "$@"; '
            "kill -9 $PPID; exit; } ;; esac\n"
            f'exec /usr/bin/{moment} "$@"\n'
        )
        program.chmod(0o755)
    receive = guest.root / "bin/receive"
    text = receive.read_text().replace(
        "set -u\n", 'set -u\n[ "${1-}" = stage ] || echo $$ >"$FAKE/pid"\n', 1
    )
    receive.write_text(text)
    assert guest.receive(plain_push(6, NEW)) == []
    assert (guest.fake / "again").exists()
    assert guest.receive(plain_push(6, {**NEW, "K": Block.plain(b"bad")}, receipt="f" * 32)) == [
        "failed unit app.service"
    ]
    assert guest.values() == OLD
    assert guest.receive(plain_push(6, NEW)) == ["unit app.service restarted", DONE]
    assert guest.values() == {"K": b"new", "L": b"same"}


def test_a_push_that_cannot_write_changes_nothing(guest: Guest) -> None:
    """It says so, and no unit is touched."""
    (guest.fake / "unwritable").touch()
    assert guest.receive(plain_push(6, NEW)) == ["failed not-writable"]
    assert (guest.values(), guest.told("restart")) == (OLD, [])


GOOD = manifest(6, NEW)


def _garbled(change: Callable[[bytes], bytes]) -> bytes:
    return push(Block.plain(change(GOOD)), NEW)


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (b"\n", "failed protocol"),
        (b"commit\n", "failed protocol"),
        (b"\x00\xff\xfe garbage\n", "failed protocol"),
        (b"generation plain 5 5\n", "failed protocol"),
        (b"generation odd 1\nx", "failed protocol"),
        (b"generation plain -1\n", "failed protocol"),
        (b"generation plain 010\n", "failed protocol"),
        (b"generation plain 0x10\n", "failed protocol"),
        (b"generation plain 99999999999999999999\n", "failed protocol"),
        (b"generation plain 1441793\n", "failed too-much"),
        (b"generation plain 4\n!!!!\n", "failed protocol credferry.manifest"),
        (b"generation plain $(id)\n", "failed protocol"),
        (b"credential K plain 4\nAAAA", "failed protocol"),
        (b"g" * 600 + b"\n", "failed protocol"),
        (frame("generation plain", base64.b64encode(GOOD)) * 2, "failed protocol"),
        (frame("generation plain", base64.b64encode(GOOD)) + b"commit\n", "failed manifest"),
        (frame("generation plain", base64.b64encode(GOOD)) + b"remove K\n", "failed protocol"),
        (
            frame("generation plain", base64.b64encode(GOOD)) + b"credential ../x plain 0\n",
            "failed protocol",
        ),
        (frame("generation plain", base64.b64encode(GOOD)) + b"credential a/b plain 0\n", "failed protocol"),
        (frame("generation plain", base64.b64encode(GOOD)) + b"credential .. plain 0\n", "failed protocol"),
        (frame("generation plain", base64.b64encode(GOOD)) + b"credential * plain 0\n", "failed protocol"),
        (frame("generation plain", base64.b64encode(GOOD)) + b"credential Z plain 0\n", "failed manifest Z"),
        (
            frame("generation plain", base64.b64encode(GOOD)) + b"credential K sealed 0\n",
            "failed manifest K",
        ),
        (
            frame("generation plain", base64.b64encode(GOOD)) + frame("credential K plain", b"bmV3") * 2,
            "failed protocol",
        ),
        (
            frame("generation plain", base64.b64encode(GOOD))
            + frame("credential K plain", b"b2xk")
            + b"commit\n",
            "failed digest K",
        ),
        (
            frame("generation plain", base64.b64encode(GOOD))
            + frame("credential K plain", b"bm")
            + b"commit\n",
            "failed protocol K",
        ),
        (push(Block.plain(GOOD), {"K": NEW["K"]}), "failed manifest"),
        (push(Block.plain(GOOD), {**NEW, "Z": NEW["K"]}), "failed manifest Z"),
        (_garbled(lambda text: text[:-1]), "failed manifest"),
        (_garbled(lambda text: text[:-40]), "failed manifest"),
        (_garbled(lambda text: text[:20]), "failed manifest"),
        (_garbled(lambda _: b""), "failed manifest"),
        (_garbled(lambda text: text.replace(b"push 1", b"push 2")), "failed manifest"),
        (_garbled(lambda text: text.replace(b"vm web", b"vm ../../web")), "failed manifest"),
        (_garbled(lambda text: text.replace(b"generation 6", b"generation 6x")), "failed manifest"),
        (_garbled(lambda text: text.replace(b"generation 6", b"generation 06")), "failed manifest"),
        (_garbled(lambda text: text.replace(b"credential K", b"credential ../K")), "failed manifest"),
        (
            _garbled(lambda text: text.replace(b"credential K", b"credential credferry.manifest")),
            "failed manifest",
        ),
        (_garbled(lambda text: text.replace(b"credential K", b"credential L")), "failed manifest"),
        (_garbled(lambda text: text.replace(b"K plain", b"K other")), "failed manifest"),
        (_garbled(lambda text: text + b"extra\n"), "failed manifest"),
        (_garbled(lambda text: text.replace(b"key none", b"key guest")), "failed manifest"),
        (plain_push(6, {**NEW, **{f"N{n}": SAME for n in range(63)}}), "failed too-much"),
        (
            plain_push(6, {"K": Block.plain(b"x" * 600_000), "L": Block.plain(b"y" * 600_000)}),
            "failed too-much",
        ),
        (push(Block.sealed(GOOD, b"AAAA" * 20), NEW), "failed key credferry.manifest"),
        (
            push(Block.sealed(GOOD, b"BYRp2vb1QySABUnaD46i+" + b"A" * 60), NEW),
            "failed null-key credferry.manifest",
        ),
    ],
)
def test_bad_input_changes_nothing(guest: Guest, sent: bytes, answers: str) -> None:
    """It is refused with its reason, and the next good push works."""
    assert guest.receive(sent) == [answers]
    assert (guest.values(), guest.told("restart"), guest.left()) == (OLD, [], [])
    assert guest.receive(plain_push(6, NEW))[-1] == DONE


def test_what_a_guest_compares(guest: Guest) -> None:
    """Another VM's generation, an older one, and another one of the same number are refused."""
    assert guest.receive(plain_push(6, NEW, vm="db")) == ["failed other-vm"]
    assert guest.receive(plain_push(4, NEW)) == ["failed older"]
    assert guest.receive(plain_push(5, NEW, receipt="f" * 32)) == ["failed other"]
    assert guest.values() == OLD


def test_a_push_cut_anywhere_changes_nothing(guest: Guest) -> None:
    """Whatever of it has arrived when the connection ends."""
    whole, held = plain_push(6, NEW), (guest.system / MANIFEST).read_bytes()
    for length in (*range(0, len(whole), max(1, len(whole) // 25)), len(whole) - 1):
        guest.break_off(whole[:length])
    assert (guest.system / MANIFEST).read_bytes() == held
    assert (guest.values(), guest.told("restart"), guest.left()) == (OLD, [], [])


@pytest.mark.parametrize("address", ["", "vsock:5", "vsock:1", "vsock:22", "vsock:20:2", "127.0.0.1"])
def test_only_the_host_may_push(guest: Guest, address: str) -> None:
    """A process of the guest's own learns nothing, not even what generation there is."""
    guest.environment["REMOTE_ADDR"] = address
    process, connection = guest.start()
    assert answer(connection, plain_push(6, NEW)) == ["failed peer"]
    process.wait(60)
    assert guest.values() == OLD


def test_of_two_pushes_at_once_one_is_busy(guest: Guest) -> None:
    """The second is refused at once, and the first goes on."""
    first, connection = guest.start()
    assert connection.recv(1000).startswith(b"credferry 1 ")
    assert guest.receive(plain_push(6, NEW)) == ["failed busy"]
    assert answer(connection, plain_push(6, NEW)) == ["unit app.service restarted", DONE]
    first.wait(60)


def test_an_endless_line_ends(guest: Guest) -> None:
    """So does a host that says nothing more: the receiver waits for a bounded time, and is free then."""
    receive = guest.root / "bin/receive"
    text = receive.read_text()
    receive.write_text(text.replace("sleep 30 ", "sleep 3 ").replace("timeout 5 ", "timeout 1 "))
    for sent in (b"x" * 100_000, b"generation plain 1000\nxxx"):
        assert guest.receive(sent) == ["failed slow"]
    receive.write_text(text)  # on a slow machine, a good push may take longer than the short times
    assert guest.receive(plain_push(6, NEW))[-1] == DONE


def test_a_guest_without_a_manifest_takes_nothing(guest: Guest) -> None:
    """Such a guest knows neither its VM's name nor whether it has a key."""
    (guest.system / MANIFEST).unlink()
    assert guest.receive(plain_push(6, NEW)) == ["failed no-manifest"]
    assert guest.values() == OLD


@pytest.fixture
def key(guest: Guest) -> CredentialKey:
    """The guest's key: this machine's, so that this machine's systemd-creds opens what is sealed with it."""
    machine_id = read_machine_id(Path("/etc/machine-id"))
    create_key(guest.root / "credential.secret", machine_id=machine_id)
    return read_key(guest.root / "credential.secret", machine_id=machine_id)


def _sealed(name: str, value: bytes, key: CredentialKey) -> Block:
    return Block.sealed(value, seal(value, name=name, key=key))


def _seal_all(
    generation: int, values: dict[str, bytes], key: CredentialKey
) -> tuple[Block, dict[str, Block]]:
    blocks = {name: _sealed(name, value, key) for name, value in values.items()}
    return _sealed(MANIFEST, manifest(generation, blocks, key="guest"), key), blocks


@pytest.fixture
def keyed(guest: Guest, key: CredentialKey) -> Guest:
    """The guest, booted with its generation sealed for it."""
    text, blocks = _seal_all(5, OLD, key)
    for name, block in {**blocks, MANIFEST: text}.items():
        (guest.system / name).write_bytes(block.content)
    return guest


def test_sealed_credentials_stay_sealed_in_system(keyed: Guest, key: CredentialKey) -> None:
    """They are opened to be checked only, and none of it is left."""
    text, blocks = _seal_all(6, {"K": b"new", "L": b"same"}, key)
    before = keyed.values()["L"]
    assert keyed.receive(push(text, blocks)) == ["unit app.service restarted", DONE]
    assert keyed.values() == {"K": blocks["K"].content, "L": before}
    assert keyed.left() == []


def test_no_program_is_given_a_value(keyed: Guest, key: CredentialKey) -> None:
    """Neither in its arguments nor in its environment, where other processes could see it."""
    values = {"K": b"a-value-of-a-canary", "L": b"same"}
    text, blocks = _seal_all(6, values, key)
    keyed.record()
    assert keyed.receive(push(text, blocks))[-1] == DONE
    seen = (keyed.fake / "seen").read_bytes()
    assert b"systemd-creds decrypt --name=K" in seen
    for form in (values["K"], base64.b64encode(values["K"]), blocks["K"].content[:60]):
        assert form not in seen


def test_a_push_starts_few_programs(keyed: Guest, key: CredentialKey) -> None:
    """Their number does not grow with the units of the guest; the first push needs some more."""
    for number in range(20):
        keyed.unit(f"more-{number}.service", "[Service]\nLoadCredential=L\n")
    keyed.record()
    counts = []
    for generation in (6, 7):
        text, blocks = _seal_all(generation, {"K": b"%d" % generation, "L": b"same"}, key)
        assert keyed.receive(push(text, blocks)) == ["unit app.service restarted", DONE]
        counts.append(len(keyed.started()))
    assert counts[0] <= 22, counts
    assert counts[1] <= 18, counts


def test_a_guest_with_a_key_refuses_what_is_not_sealed_for_it(
    keyed: Guest, key: CredentialKey, tmp_path: Path
) -> None:
    """A plain manifest, one of another guest, one under another name, and blobs of the null key or cut."""
    create_key(tmp_path / "other", machine_id="1" * 32)
    other = read_key(tmp_path / "other", machine_id="1" * 32)
    values = {"K": b"new", "L": b"same"}
    text, blocks = _seal_all(6, values, key)
    null = subprocess.run(
        ["systemd-creds", "encrypt", "--with-key=auto-initrd", f"--name={MANIFEST}", "-", "-"],
        input=manifest(6, blocks, key="guest"),
        capture_output=True,
        check=True,
    ).stdout
    cut = Block(text.kind, text.content[:-20], text.digest)
    table = [
        (push(Block.plain(manifest(6, NEW)), NEW), "failed not-sealed"),
        (push(Block.plain(manifest(6, NEW, key="guest")), NEW), "failed not-sealed"),
        (push(_seal_all(6, values, other)[0], blocks), f"failed key {MANIFEST}"),
        (push(_sealed("K", manifest(6, blocks, key="guest"), key), blocks), f"failed key {MANIFEST}"),
        (push(Block.sealed(b"", null), blocks), f"failed null-key {MANIFEST}"),
        (push(cut, blocks), f"failed key {MANIFEST}"),
        (push(_sealed(MANIFEST, manifest(6, blocks), key), blocks), "failed manifest"),
        (push(text, {**blocks, "K": _sealed("L", b"new", key)}), "failed key K"),
        (push(text, {**blocks, "K": _sealed("K", b"newer", key)}), "failed digest K"),
    ]
    before = keyed.values()
    for sent, answers in table:
        assert keyed.receive(sent) == [answers]
    assert (keyed.values(), keyed.told("restart")) == (before, [])
