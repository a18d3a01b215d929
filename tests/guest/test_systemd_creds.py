# SPDX-License-Identifier: MIT
"""Real systemd-creds 252 and 257 open what we seal, and we open what they seal; refusals agree as well."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from credferry.agent.errors import SealError
from credferry.agent.sealing.credential import seal, unseal
from credferry.agent.sealing.keys import CredentialKey, create_key, read_key
from tests.support.guest import STABLE, Variant, chroot_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MACHINE_ID = "0123456789abcdef0123456789abcdef"
VALUES = {
    "api-key": b"hunter2\n",
    "db.password": b"",
    "with space": bytes(range(256)),
    "n": b"x" * 4096,
    "x" * 255: b"a long name",
    # systemd-creds 252 takes its limit of the decoded size for the Base64's, and cannot open its own 1 MiB.
    "large": b"y" * 850_000,
}


@pytest.fixture
def key(tmp_path: Path) -> CredentialKey:
    """A key file of ours, for the machine id that the chroot is given."""
    create_key(tmp_path / "credential.secret", machine_id=MACHINE_ID)
    return read_key(tmp_path / "credential.secret", machine_id=MACHINE_ID)


def systemd_creds(
    variant: Variant, share: Path, arguments: Sequence[str], stdin: bytes = b""
) -> tuple[int, bytes, bytes]:
    """Run a variant's systemd-creds on our key file; its status, output and messages."""
    done = chroot_run(
        variant,
        ["systemd-creds", *arguments],
        share=share,
        machine_id=MACHINE_ID,
        stdin=stdin,
        environment={"SYSTEMD_CREDENTIAL_SECRET": "/share/credential.secret"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("variant", STABLE)
@pytest.mark.parametrize("name", list(VALUES), ids=lambda name: name[:12])
def test_both_ways(tmp_path: Path, key: CredentialKey, variant: Variant, name: str) -> None:
    """Each opens what the other sealed, to the last byte; the key file of ours is left as it was."""
    (tmp_path / "ours").write_bytes(seal(VALUES[name], name=name, key=key))
    decrypt = ["decrypt", f"--name={name}", "/share/ours", "-"]
    assert systemd_creds(variant, tmp_path, decrypt)[:2] == (0, VALUES[name])
    encrypt = ["encrypt", "--with-key=host", f"--name={name}", "-", "-"]
    status, theirs, _ = systemd_creds(variant, tmp_path, encrypt, VALUES[name])
    assert status == 0
    assert unseal(theirs, name=name, key=key) == VALUES[name]
    assert read_key(tmp_path / "credential.secret", machine_id=MACHINE_ID).aes_key == key.aes_key


@pytest.mark.parametrize("variant", STABLE)
def test_the_same_bytes_but_for_what_is_random(tmp_path: Path, key: CredentialKey, variant: Variant) -> None:
    """Lines, padding and length are systemd's own; only IV, ciphertext and tag differ."""
    encrypt = ["encrypt", "--with-key=host", "--name=n", "-", "-"]
    theirs = systemd_creds(variant, tmp_path, encrypt, b"value")[1]
    ours = seal(b"value", name="n", key=key)
    assert [len(line) for line in ours.splitlines()] == [len(line) for line in theirs.splitlines()]
    assert ours[:42] == theirs[:42]


@pytest.mark.parametrize("variant", STABLE)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("another", {}),
        ("n", {"timestamp": 1_000_000, "not_after": 2_000_000}),
        ("n", {"cut": 5}),
        ("n", {"flip": 60}),
    ],
    ids=["another name", "expired", "cut", "altered"],
)
def test_refusals_agree(
    tmp_path: Path, key: CredentialKey, variant: Variant, name: str, options: dict[str, int]
) -> None:
    """What systemd refuses we refuse, and the other way round."""
    times = {each: options[each] for each in ("timestamp", "not_after") if each in options}
    blob = bytearray(seal(b"value", name="n", key=key, **times))
    if "cut" in options:
        del blob[-options["cut"] :]
    if "flip" in options:
        at = options["flip"]
        blob[at] = ord("A") if blob[at] != ord("A") else ord("B")
    (tmp_path / "blob").write_bytes(blob)
    decrypt = ["decrypt", f"--name={name}", "/share/blob", "-"]
    status, plaintext, _ = systemd_creds(variant, tmp_path, decrypt)
    assert (status != 0, plaintext) == (True, b"")
    with pytest.raises(SealError):
        unseal(bytes(blob), name=name, key=key)


@pytest.mark.parametrize("variant", STABLE)
def test_a_later_expiry_is_honoured_by_both(tmp_path: Path, key: CredentialKey, variant: Variant) -> None:
    """A credential that expires in an hour opens now."""
    expiry = time.time_ns() // 1000 + 3_600_000_000
    (tmp_path / "blob").write_bytes(seal(b"value", name="n", key=key, not_after=expiry))
    assert systemd_creds(variant, tmp_path, ["decrypt", "--name=n", "/share/blob", "-"])[:2] == (0, b"value")
