# SPDX-License-Identifier: MIT
"""Systemd 257's own program, and a software TPM: every kind of key, and what it says where nothing opens."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import pytest

from credferry.agent.errors import SealError, TpmError
from credferry.agent.sealing import systemd_creds
from credferry.agent.sealing.credential import seal, unseal
from credferry.agent.sealing.keys import CredentialKey, create_key, read_key
from credferry.agent.sealing.kinds import HOST, NULL, kind_of
from credferry.agent.sealing.policy import policy_of
from credferry.agent.sealing.systemd_creds import Options, SystemdCreds
from tests.support.guest import Variant, chroot_command

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.tpm import SoftwareTpm

MACHINE_ID = "0123456789abcdef0123456789abcdef"
VALUE = b"hunter2\n"


@pytest.fixture
def key(tmp_path: Path) -> CredentialKey:
    """The host's key, in a directory that the program sees."""
    path = tmp_path / "share/credential.secret"
    path.parent.mkdir()
    create_key(path, machine_id=MACHINE_ID)
    return read_key(path, machine_id=MACHINE_ID)


@pytest.fixture
def creds(
    tmp_path: Path, key: CredentialKey, tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> SystemdCreds:
    """The agent's use of systemd's program, where that is 257's."""
    assert key.aes_key
    assert tpm.device
    program, share = tmp_path / "systemd-creds", tmp_path / "share"
    command = chroot_command(Variant.TRIXIE, ["systemd-creds"], share=share, machine_id=MACHINE_ID)
    program.write_text(f'#!/bin/sh\nPATH=$PATH:/usr/sbin:/sbin\nexec {shlex.join(command)} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(systemd_creds, "_PATH", f"{tmp_path}:{os.defpath}")
    return SystemdCreds("/share/credential.secret")


@pytest.mark.parametrize("with_key", ["host", "tpm2", "host+tpm2", "null"])
def test_each_kind_is_known_and_opens(creds: SystemdCreds, key: CredentialKey, with_key: str) -> None:
    """What systemd seals is of the kind that it was asked for, and opens. Another name does not."""
    blob = creds.seal(VALUE, name="n", options=Options(with_key))
    kind = kind_of(blob)
    assert kind is not None
    assert (kind.host, kind.tpm) == ("host" in with_key, "tpm2" in with_key)
    assert (kind is HOST, kind is NULL) == (with_key == "host", with_key == "null")
    if kind is NULL:  # systemd 257 opens it, unless Secure Boot is on; the agent never does
        with pytest.raises(SealError, match="the null key"):
            unseal(blob, name="n", key=key)
        return
    assert creds.unseal(blob, name="n") == VALUE
    with pytest.raises(SealError, match="it was sealed under another name"):
        creds.unseal(blob, name="m")
    if kind is HOST:
        assert unseal(blob, name="n", key=key) == VALUE
        assert creds.unseal(seal(VALUE, name="n", key=key), name="n") == VALUE
    else:
        policy = policy_of(blob)
        assert policy is not None
        assert policy.pcrs == (7,)


def test_refusals(creds: SystemdCreds, tpm: SoftwareTpm) -> None:
    """Each error says which it is: other PCRs, a TPM that is locked, was cleared, or is off."""
    options = Options("host+tpm2")
    blob = creds.seal(VALUE, name="n", options=options)
    tpm.lock()
    with pytest.raises(TpmError, match="is locked"):
        creds.unseal(blob, name="n")
    with pytest.raises(TpmError, match="is locked"):
        creds.seal(VALUE, name="n", options=options)
    tpm.unlock()
    assert creds.unseal(blob, name="n") == VALUE
    tpm.extend(7)
    with pytest.raises(SealError, match="have other values"):
        creds.unseal(blob, name="n")
    blob = creds.seal(VALUE, name="n", options=options)
    tpm.clear()
    with pytest.raises(SealError, match="was cleared"):
        creds.unseal(blob, name="n")
    tpm.stop()
    with pytest.raises(TpmError, match="does not answer"):
        creds.unseal(blob, name="n")
    with pytest.raises(TpmError, match="does not answer"):
        creds.seal(VALUE, name="n", options=options)
