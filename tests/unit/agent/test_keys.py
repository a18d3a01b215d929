# SPDX-License-Identifier: MIT
"""Key files: systemd's conditions for them, and what is derived from a key."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from credferry.agent.errors import KeyFileError
from credferry.agent.sealing import keys
from credferry.agent.sealing.keys import (
    CredentialKey,
    create_key,
    hashed_machine_id,
    host_key,
    read_host_key,
    read_key,
    read_machine_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MACHINE, OTHER = "0123456789abcdef0123456789abcdef", "5ea1ed00c0ffee00c0ffee00c0ffee00"


def test_derived_keys_are_what_they_were() -> None:
    """Known answers: another derivation would make every VM look changed after an upgrade."""
    key = CredentialKey(bytes(range(256)) * 16)
    assert key.derive("fingerprint").hex() == DERIVED["fingerprint"]
    assert key.derive("digest").hex() == DERIVED["digest"]
    assert key.derive("digest").hex() == DERIVED["digest"]  # asked for again
    assert key.derive("fingerprint") != CredentialKey(b"another").derive("fingerprint")


def test_a_machine_id_may_be_written_as_a_uuid() -> None:
    """With dashes, in capitals and with a line's end, it is the same machine's."""
    plain = hashed_machine_id(MACHINE)
    assert hashed_machine_id(f" {MACHINE[:8]}-{MACHINE[8:12]}-{MACHINE[12:]}\n") == plain
    assert hashed_machine_id(MACHINE.upper()) == plain


@pytest.mark.parametrize("wrong", ["", "0" * 32, "12", "x" * 32, MACHINE + "00"])
def test_what_is_no_machine_id_is_refused(wrong: str) -> None:
    """Nothing but 32 hexadecimal digits that are not all zero."""
    with pytest.raises(KeyFileError, match="is not a machine id"):
        hashed_machine_id(wrong)


def a_fifo(path: Path) -> None:
    """Nobody ever writes to it."""
    os.mkfifo(path, 0o400)


def a_link(path: Path) -> None:
    """To a good key."""
    create_key(path.with_name("real"), machine_id=MACHINE)
    path.symlink_to("real")


def a_second_name(path: Path) -> None:
    """Two links to one file."""
    create_key(path, machine_id=MACHINE)
    path.with_name("second").hardlink_to(path)


def too_much(path: Path) -> None:
    """One byte more than systemd takes."""
    path.write_bytes(hashed_machine_id(MACHINE) + bytes(4097))
    path.chmod(0o400)


def nothing(path: Path) -> None:
    """A header without data."""
    path.write_bytes(hashed_machine_id(MACHINE))
    path.chmod(0o400)


def below_a_file(path: Path) -> None:
    """A file where the directory should be: nothing can be opened there."""
    path.parent.rmdir()
    path.parent.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (a_fifo, "not a regular file with one link"),
        (a_link, "cannot be read: is a symbolic link"),
        (a_second_name, "not a regular file with one link"),
        (too_much, "holds 17 to 4112 bytes"),
        (nothing, "holds 17 to 4112 bytes"),
        (below_a_file, "cannot be read: Not a directory"),
    ],
)
def test_what_systemd_would_not_take_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    """At once, and with the reason; the path stands first."""
    path = tmp_path / "keys" / "key"
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(KeyFileError) as caught:
        read_key(path, machine_id=MACHINE)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_the_largest_key_is_taken(tmp_path: Path) -> None:
    """4,096 bytes of data, as systemd writes them."""
    path = tmp_path / "key"
    path.write_bytes(hashed_machine_id(MACHINE) + bytes(4096))
    path.chmod(0o400)
    assert read_key(path, machine_id=MACHINE) == CredentialKey(bytes(4096))


@pytest.mark.parametrize("mode", [0o600, 0o440, 0o404, 0o000, 0o4400])
def test_any_other_mode_is_refused(tmp_path: Path, mode: int) -> None:
    """Systemd takes exactly 0400."""
    path = tmp_path / "key"
    create_key(path, machine_id=MACHINE)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode is {mode:04o}"):
        read_key(path, machine_id=MACHINE)


def test_keys_are_equal_by_their_data_alone() -> None:
    """Another key is another, and nothing else is a key."""
    assert CredentialKey(b"a" * 16) == CredentialKey(b"a" * 16)
    assert CredentialKey(b"a" * 16) != CredentialKey(b"b" * 16)
    assert CredentialKey(b"a" * 16) != b"a" * 16


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("user", [1, 1234])
def test_a_host_key_of_another_user_is_refused(tmp_path: Path, user: int) -> None:
    """Whoever owns it could read and replace it."""
    path = tmp_path / "key"
    create_key(path, machine_id=MACHINE)
    os.chown(path, user, 0)
    with pytest.raises(KeyFileError, match=f"belongs to uid {user}"):
        read_host_key(path, machine_id=MACHINE)


def machine_id_file(directory: Path, content: bytes) -> Path:
    """A file such as /etc/machine-id."""
    path = directory / "machine-id"
    path.write_bytes(content)
    return path


def test_the_host_key_is_this_machine_s(tmp_path: Path) -> None:
    """A key of another machine is refused and left as it is; systemd would delete it."""
    path = tmp_path / "key"
    create_key(path, machine_id=OTHER)
    content = path.read_bytes()
    with pytest.raises(KeyFileError, match="made for another machine id"):
        host_key(path, machine_id_file=machine_id_file(tmp_path, MACHINE.encode()))
    assert path.read_bytes() == content


def test_a_key_that_somebody_else_made_meanwhile_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where systemd makes the key first, that one is used, and must be this machine's as well."""
    ours = machine_id_file(tmp_path, MACHINE.encode())

    def made_first(machine_id: str) -> Callable[..., None]:
        def create(path: Path, **_: str) -> None:
            create_key(path, machine_id=machine_id)
            raise FileExistsError

        return create

    monkeypatch.setattr(keys, "create_key", made_first(MACHINE))
    assert host_key(tmp_path / "one", machine_id_file=ours) == read_key(tmp_path / "one", machine_id=MACHINE)
    monkeypatch.setattr(keys, "create_key", made_first(OTHER))
    with pytest.raises(KeyFileError, match="made for another machine id"):
        host_key(tmp_path / "two", machine_id_file=ours)


def test_a_key_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    """The path, the reason and the command that makes it."""
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "key"
    with pytest.raises(KeyFileError) as caught:
        create_key(path, machine_id=MACHINE)
    assert str(caught.value) == f"{path}: cannot make this key: Not a directory"
    missing = tmp_path / "none" / "key"
    with pytest.raises(KeyFileError) as caught:
        host_key(missing, machine_id_file=machine_id_file(tmp_path, MACHINE.encode()))
    assert str(caught.value) == f"{missing}: cannot make this key: No such file or directory"
    assert "systemd-creds setup" in caught.value.hint


def test_a_full_disk_while_a_key_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half-made is left, and the reason is told."""

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("credferry.agent.sealing.keys.os.fsync", full)
    with pytest.raises(KeyFileError) as caught:
        create_key(tmp_path / "key", machine_id=MACHINE)
    assert str(caught.value) == f"{tmp_path / 'key'}: cannot make this key: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_made_is_as_systemd_wants_it(tmp_path: Path) -> None:
    """Mode 0400, one link, this machine's header, 4,096 random bytes; one that is there is left alone."""
    path = tmp_path / "key"
    create_key(path, machine_id=MACHINE)
    status, content = path.stat(), path.read_bytes()
    assert (stat.S_IMODE(status.st_mode), status.st_nlink, status.st_size) == (0o400, 1, 16 + 4096)
    assert content[:16] == hashed_machine_id(MACHINE)
    assert len(set(content[16:])) > 200
    with pytest.raises(FileExistsError):
        create_key(path, machine_id=MACHINE)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"\xff\xfe", "ümlaut".encode()])
def test_a_machine_id_file_of_rubbish(tmp_path: Path, content: bytes) -> None:
    """What is not ASCII is the one error, in any locale."""
    with pytest.raises(KeyFileError, match="cannot read a machine id"):
        read_machine_id(machine_id_file(tmp_path, content))


DERIVED = {
    "fingerprint": "85c66fb0d93d7a255343176bd575142932e9543e56b3eaf5e503c70cf9037318",
    "digest": "8f63c44545c302101a6279ad4dc147118214c62570dd761cd5374ce8b83278ad",
}
