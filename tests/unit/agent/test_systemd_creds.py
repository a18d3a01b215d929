# SPDX-License-Identifier: MIT
"""systemd's own program seals and opens with a real software TPM2; what it says is told apart."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from credferry.agent.errors import SealError, TpmError, describe
from credferry.agent.sealing import systemd_creds
from credferry.agent.sealing.credential import PLAINTEXT_MAX
from credferry.agent.sealing.keys import create_key
from credferry.agent.sealing.kinds import HOST_TPM2, TPM2, kind_of
from credferry.agent.sealing.policy import policy_of
from credferry.agent.sealing.systemd_creds import Options, SystemdCreds

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.tpm import SoftwareTpm

CANARY = b"canary\x00\xff\n"
OPTIONS = Options("tpm2")


@pytest.fixture
def creds(tmp_path: Path) -> SystemdCreds:
    """Systemd's program, with a host key of its own."""
    path = tmp_path / "credential.secret"
    create_key(path, machine_id=Path("/etc/machine-id").read_text())
    return SystemdCreds(str(path))


@pytest.mark.usefixtures("tpm")
def test_both_kinds(creds: SystemdCreds) -> None:
    """What is sealed with the TPM2, with or without the host's key, opens to the same bytes."""
    for with_key, kind in (("tpm2", TPM2), ("host+tpm2", HOST_TPM2)):
        blob = creds.seal(CANARY, name="n", options=Options(with_key, "0+7"))
        assert kind_of(blob) is kind
        policy = policy_of(blob)
        assert policy is not None
        assert policy.pcrs == (0, 7)
        assert creds.unseal(blob, name="n") == CANARY
        with pytest.raises(SealError, match="it was sealed under another name"):
            creds.unseal(blob, name="m")


def extended(tpm: SoftwareTpm) -> None:
    """Another boot, with other firmware."""
    tpm.extend(7)


def other(tpm: SoftwareTpm) -> None:
    """Another machine."""
    tpm.clear()


@pytest.mark.parametrize(("change", "said"), [(extended, "have other values"), (other, "was cleared")])
def test_a_tpm_that_no_longer_opens(
    tpm: SoftwareTpm, creds: SystemdCreds, change: Callable[[SoftwareTpm], None], said: str
) -> None:
    """Changed PCRs and a cleared TPM are told apart. Neither means that the TPM cannot be used."""
    blob = creds.seal(CANARY, name="n", options=OPTIONS)
    change(tpm)
    with pytest.raises(SealError, match=said) as caught:
        creds.unseal(blob, name="n")
    assert not isinstance(caught.value, TpmError)
    assert creds.unseal(creds.seal(CANARY, name="n", options=OPTIONS), name="n") == CANARY


def test_a_tpm_that_cannot_be_used(
    tpm: SoftwareTpm, creds: SystemdCreds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TPM that does not answer, and a host without one, open and seal nothing, and the error says why."""
    blob = creds.seal(CANARY, name="n", options=OPTIONS)
    tpm.stop()
    with pytest.raises(TpmError, match="does not answer"):
        creds.unseal(blob, name="n")
    with pytest.raises(TpmError, match="does not answer"):
        creds.seal(CANARY, name="n", options=OPTIONS)
    monkeypatch.setenv("SYSTEMD_TPM2_DEVICE", "device:/dev/there-is-none")
    with pytest.raises(TpmError, match="finds no TPM2") as caught:
        creds.unseal(blob, name="n")
    assert "credferry-tpm.conf" in caught.value.hint


def test_a_tpm_that_is_locked(tpm: SoftwareTpm, creds: SystemdCreds) -> None:
    """A TPM that is locked because of a dictionary attack neither seals nor opens, until it is unlocked."""
    blob = creds.seal(CANARY, name="n", options=OPTIONS)
    tpm.lock()
    with pytest.raises(TpmError, match="is locked") as caught:
        creds.unseal(blob, name="n")
    assert "--clear-lockout" in caught.value.hint
    with pytest.raises(TpmError, match="is locked"):
        creds.seal(CANARY, name="n", options=OPTIONS)
    tpm.unlock()
    assert creds.unseal(blob, name="n") == CANARY


@pytest.mark.usefixtures("tpm")
def test_a_public_key(creds: SystemdCreds, tmp_path: Path) -> None:
    """A public key is passed on. Without a signature of the PCRs nothing opens, and the error says so."""
    path = tmp_path / "public.pem"
    path.write_text(PUBLIC_KEY)
    blob = creds.seal(CANARY, name="n", options=Options("tpm2", "7", str(path)))
    policy = policy_of(blob)
    assert policy is not None
    assert policy.public_key
    with pytest.raises(SealError) as caught:
        creds.unseal(blob, name="n")
    assert not isinstance(caught.value, TpmError)


@pytest.mark.usefixtures("tpm")
def test_bad_input(creds: SystemdCreds) -> None:
    """Rubbish, a value over the limit and options that systemd refuses are errors of the one type."""
    blob = bytearray(creds.seal(CANARY, name="n", options=OPTIONS))
    blob[-8] ^= 1
    for each in (b"", b"rubbish", bytes(blob)):
        with pytest.raises(SealError):
            creds.unseal(each, name="n")
    with pytest.raises(SealError, match="larger than systemd's limit"):
        creds.seal(bytes(PLAINTEXT_MAX + 1), name="n", options=OPTIONS)
    with pytest.raises(SealError, match="cannot seal credential 'n'"):
        creds.seal(CANARY, name="n", options=Options("tpm2", "99"))


@pytest.mark.usefixtures("tpm")
def test_a_signed_policy(creds: SystemdCreds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a signature of the present value of PCR 11, what is sealed with the public key opens."""
    key = rsa.generate_private_key(65537, 2048)
    public = tmp_path / "public.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    signature = tmp_path / "signature.json"
    # Where systemd looks for it by itself, another program of this machine may have its own.
    program(
        tmp_path,
        f'[ "$1" != decrypt ] || set -- "$@" --tpm2-signature={signature}\nexec /usr/bin/systemd-creds "$@"',
    )
    monkeypatch.setattr(systemd_creds, "_PATH", f"{tmp_path}:{os.defpath}")
    blob = creds.seal(CANARY, name="n", options=Options("host+tpm2", "7", str(public)))
    signature.write_text(signed_policy(key, bytes(32)))
    assert creds.unseal(blob, name="n") == CANARY
    signature.write_text(signed_policy(key, b"\x01" * 32))
    with pytest.raises(SealError, match="no signature of the PCRs' present values") as caught:
        creds.unseal(blob, name="n")
    assert not isinstance(caught.value, TpmError)


def signed_policy(key: rsa.RSAPrivateKey, pcr_11: bytes) -> str:
    """A file tpm2-pcr-signature.json, as systemd-measure makes it, for one value of PCR 11."""
    selection = struct.pack(">IHB3s", 1, 0x000B, 3, b"\x00\x08\x00")
    values = hashlib.sha256(pcr_11).digest()
    policy = hashlib.sha256(bytes(32) + struct.pack(">I", 0x17F) + selection + values).digest()
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    entry = {
        "pcrs": [11],
        "pkfp": hashlib.sha256(der).hexdigest(),
        "pol": policy.hex(),
        "sig": base64.b64encode(key.sign(policy, PKCS1v15(), SHA256())).decode(),
    }
    return json.dumps({"sha256": [entry]})


def program(directory: Path, text: str) -> Path:
    """A program in the place of systemd's."""
    path = directory / "systemd-creds"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(stat.S_IRWXU)
    return path


def test_no_message_of_the_program_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the program prints, an error holds none of it. Arguments and environment hold no value."""
    program(
        tmp_path,
        f"cat >&2; tr '\\0' '\\n' </proc/$$/environ >{tmp_path}/seen; echo \"$@\" >>{tmp_path}/seen; exit 1",
    )
    monkeypatch.setattr(systemd_creds, "_PATH", f"{tmp_path}:{os.defpath}")
    monkeypatch.setenv("SECRET", "canary")
    with pytest.raises(SealError) as caught:
        SystemdCreds().seal(b"canary lockou", name="n", options=OPTIONS)
    assert "canary" not in describe(caught.value)
    assert "canary" not in (tmp_path / "seen").read_text()


@pytest.mark.parametrize(
    ("said", "kind", "meaning"),
    [
        ("Failed to unseal secret using TPM2: Operation not permitted", SealError, "PCRs of the TPM2"),
        ("Failed to unseal secret using TPM2: State not recoverable", SealError, "was cleared"),
        (
            "Failed to open specified TCTI device file /dev/tpmrm0: No such file",
            TpmError,
            "finds no TPM2",
        ),
        ("ERROR:esys:Esys_Startup_Finish() Received a non-TPM Error", TpmError, "does not answer"),
        ("Failed to connect to io.systemd.Credentials: No such file", TpmError, "only root may choose"),
        ("tpm:warn(2.0): the TPM is in DA lockout mode", TpmError, "is locked"),
        ("Failed to unseal secret using TPM2: No locks available", TpmError, "is locked"),
        (
            "Esys Finish ErrorCode (0x00000921)\nFailed to seal to TPM2: State not recoverable",
            TpmError,
            "is locked",
        ),
        ("Failed to seal to TPM2: State not recoverable", TpmError, "does not seal"),
        ("Failed to create TPM2 context: State not recoverable", TpmError, "does not answer"),
        (
            "Failed to open TCTI device file /dev/tpmrm0\nFailed to create TPM2 context: Not recoverable",
            TpmError,
            "finds no TPM2",
        ),
        ("Something else", SealError, "systemd-creds failed"),
    ],
)
def test_what_systemd_257_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[SealError], meaning: str
) -> None:
    """Messages of systemd 257 and of libtss2 are told apart."""
    program(tmp_path, f"cat >/dev/null; echo '{said}' >&2; exit 1")
    monkeypatch.setattr(systemd_creds, "_PATH", f"{tmp_path}:{os.defpath}")
    with pytest.raises(SealError, match=meaning) as caught:
        SystemdCreds().unseal(b"", name="n")
    assert type(caught.value) is kind


def test_a_program_that_is_missing_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that cannot be run, or does not end in time, means that the TPM cannot be used now."""
    monkeypatch.setattr(systemd_creds, "_PATH", str(tmp_path))
    with pytest.raises(TpmError, match="cannot run systemd-creds"):
        SystemdCreds().unseal(b"", name="n")
    program(tmp_path, "exec /bin/sleep 1000")
    monkeypatch.setattr(systemd_creds, "_SECONDS", 0.05)
    with pytest.raises(TpmError, match="did not end within"):
        SystemdCreds().unseal(b"", name="n")


PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA5Mi5E5vs80LVW+Ius7fJ
9FrigxEfOIxYxkVM7OlVqefZzPH+/M8to24RV6tbVpVUR0nCCuNsj+EgYh8ER50X
1zvySCyosRc57tN0ZOr+vam8NpAEJrZyuIDgLDwxUcM4JA3sytsJe47oan8Oawv4
jot3jH3Tg6CrugDo13k87IwgepE0C+4dHBrhfU9TY7AUycxfYSDSVcYfmOedQWYN
mckBAyjHpj+UmjlgwoeIMAAcIDu9Xumm9EY+awHkmmEhKcPXylsqSGrMxdieki66
UgOrr8s2StiL5rnBJ10JO/EGUzqHIme/ewJJm3P+imMiNKUqEciqsocATf43EvQG
qQIDAQAB
-----END PUBLIC KEY-----
"""
