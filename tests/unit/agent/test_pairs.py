# SPDX-License-Identifier: MIT
"""Whether a certificate and a key belong together, with files as openssl writes them."""

from __future__ import annotations

import base64
import datetime as dt
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.audit.events import Event
from credferry.agent.config.loading import load
from credferry.agent.daemon.once import seal_once
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.expiry import expires
from credferry.agent.reconcile.pairs import Apart, Bond, Together, Uncheckable, belong
from credferry.launcher.handoff import Secret
from tests.support.loop import Loop
from tests.support.world.machine import Machine
from tests.support.world.second_source import pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ("CERT", "KEY")
KINDS = {
    "rsa": ("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "rsa-pss": ("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"),
    "ec": ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "ec384": ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "ed25519": ("genpkey", "-algorithm", "ED25519"),
    "ed448": ("genpkey", "-algorithm", "ED448"),
}
FORMS = {
    "traditional": ("pkey", "-traditional"),
    "pkcs8": ("pkcs8", "-topk8", "-nocrypt"),
    "der": ("pkey", "-outform", "DER"),
    "pkcs8 der": ("pkcs8", "-topk8", "-nocrypt", "-outform", "DER"),
}
PASSWORD = ("-passout", "pass:x")
ENCRYPTED = {
    "pkcs8": ("pkcs8", "-topk8", *PASSWORD),
    "traditional": ("rsa", "-aes256", "-traditional", *PASSWORD),
}


def openssl(*arguments: str, given: bytes = b"") -> bytes:
    """What openssl prints."""
    return subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    """A certificate and its key of each kind."""
    top: Path = tmp_path_factory.mktemp("pairs")
    found = {}
    for kind, arguments in KINDS.items():
        file = top / kind
        file.write_bytes(openssl(*arguments))
        certificate = openssl(
            "req", "-new", "-x509", "-key", str(file), "-subj", f"/CN={kind}", "-days", "9"
        )
        found[kind] = certificate, file.read_bytes()
    return found


def found(certificate: bytes | None, key: bytes | None) -> Bond:
    """Whether two values belong together."""
    return belong(
        NAMES, None if certificate is None else Secret(certificate), None if key is None else Secret(key)
    )


@pytest.mark.parametrize(
    ("kind", "form"),
    # openssl has traditional forms of some kinds alone.
    [(kind, form) for kind in KINDS for form in FORMS if form != "traditional" or kind in {"rsa", "ec"}],
)
def test_each_kind_and_form(made: dict[str, tuple[bytes, bytes]], kind: str, form: str) -> None:
    """A key fits its certificate in each form, and no other certificate; either may be in DER."""
    certificate, key = made[kind]
    key = openssl(*FORMS[form], given=key)
    der = openssl("x509", "-outform", "DER", given=certificate)
    assert found(certificate, key) == found(der, key) == Together()
    other = made["ec" if kind != "ec" else "rsa"][0]
    assert found(other, key) == Apart("CERT is of another key than KEY")


def test_of_a_chain_the_first_certificate_counts(made: dict[str, tuple[bytes, bytes]]) -> None:
    """As for servers. Text between the blocks, parameters before a key, and a key in its file do no harm."""
    leaf, key = made["ec"]
    issuer, _ = made["rsa"]
    text = openssl("x509", "-text", given=leaf)
    assert found(leaf + issuer, key) == found(text + b"\n" + issuer, key) == Together()
    assert found(key + leaf + issuer, key + leaf) == Together()
    assert found(issuer + leaf, key) == Apart("CERT is of another key than KEY")
    old = openssl("ecparam", "-name", "prime256v1", "-genkey")
    assert old.startswith(b"-----BEGIN EC PARAMETERS-----")
    assert found(leaf, old) == Apart("CERT is of another key than KEY")


@pytest.mark.parametrize("form", ENCRYPTED)
def test_an_encrypted_key_cannot_be_checked(made: dict[str, tuple[bytes, bytes]], form: str) -> None:
    """It is no reason to wait, which would have no end; and the reason says so."""
    certificate, key = made["rsa"]
    key = openssl(*ENCRYPTED[form], given=key)
    assert found(certificate, key) == Uncheckable("KEY is encrypted")


def test_openssh_keys(made: dict[str, tuple[bytes, bytes]]) -> None:
    """A key in OpenSSH's form is compared as well, if it is not encrypted."""
    certificate, pem = made["ed25519"]
    key = serialization.load_pem_private_key(pem, None)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    assert found(certificate, text) == Together()
    body = base64.b64encode(b"openssh-key-v1\0\0\0\0\x0aaes256-ctr\0\0\0\6bcrypt")
    text = b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + body + b"\n-----END OPENSSH PRIVATE KEY-----\n"
    assert found(certificate, text) == Uncheckable("KEY is encrypted")


def test_a_half_that_is_missing_or_half_written(made: dict[str, tuple[bytes, bytes]]) -> None:
    """The pair waits, and the reason names what is wrong; a pair of which neither is there is none."""
    certificate, key = made["ec"]
    assert found(certificate, None) == Apart("CERT is there without KEY")
    assert found(None, key) == Apart("KEY is there without CERT")
    assert found(None, None) == Together()
    assert found(certificate[:-40], key) == Apart("CERT is not a certificate")
    assert found(certificate, key[:-40]) == Apart("KEY is not a private key")
    assert found(key, certificate) == Apart("CERT is not a certificate")


@given(
    one=st.binary(max_size=200) | st.just(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"),
    other=st.binary(max_size=200)
    | st.sampled_from([b"RSA PRIVATE KEY", b"PRIVATE KEY", b"OPENSSH PRIVATE KEY"]).flatmap(
        lambda kind: st.binary(max_size=60).map(
            lambda body: b"-----BEGIN " + kind + b"-----\n" + body + b"\n-----END " + kind + b"-----"
        )
    ),
)
def test_nothing_raises(one: bytes, other: bytes) -> None:
    """Any two values give an answer, whose text has nothing of them."""
    answer = found(one, other)
    assert isinstance(answer, Apart | Uncheckable)
    assert "CERT" in answer.reason or "KEY" in answer.reason


def as_pem(kind: bytes, body: bytes) -> bytes:
    """A block of PEM."""
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (kind, base64.encodebytes(body), kind)


def der(tag: int, *parts: bytes) -> bytes:
    """A value in DER, of at least 128 bytes."""
    content = b"".join(parts)
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content


def number(bits: int) -> bytes:
    """An odd number of so many bits, in DER."""
    return der(2, ((1 << bits) | 1).to_bytes(bits // 8 + 1, "big"))


def private_key(algorithm: str, *parameters: bytes, bits: int) -> bytes:
    """A private key in PKCS#8, as long as somebody wants it to be."""
    kind = bytes.fromhex(algorithm)
    return der(0x30, b"\2\1\0", der(0x30, kind, der(0x30, *parameters)), der(4, number(bits)))


BITS = 9_992  # the file could be a hundred times as large
HUGE = {
    "dsa": private_key("06072a8648ce380401", *[number(BITS)] * 3, bits=BITS),
    "dh": private_key("06092a864886f70d010301", *[number(BITS)] * 2, bits=BITS),
    "dhx": private_key("06072a8648ce3e0201", *[number(BITS)] * 3, bits=BITS),
}


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.parametrize("label", [b"PRIVATE KEY", b"RSA PRIVATE KEY", b""], ids=["pem", "named rsa", "der"])
def test_a_key_that_takes_hours_is_not_loaded(
    made: dict[str, tuple[bytes, bytes]], kind: str, label: bytes
) -> None:
    """A producer could stop the agent with one of these, for all VMs. They count as unknown kinds."""
    key = as_pem(label, HUGE[kind]) if label else HUGE[kind]
    assert found(made["ec"][0], key) == Uncheckable("the kind of KEY is not known")


def ssh(*parts: bytes) -> bytes:
    """Strings in the form of SSH."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def test_of_an_openssh_key_only_the_public_half_is_read(made: dict[str, tuple[bytes, bytes]]) -> None:
    """To load the private half, cryptography would check its primes: minutes for a huge RSA key."""
    public = ssh(b"ssh-rsa", b"\1\0\1", b"\x7f" + b"\xff" * 40_000)
    content = b"openssh-key-v1\0" + ssh(b"none", b"none", b"") + b"\0\0\0\1" + ssh(public, b"not loaded")
    assert found(made["ec"][0], as_pem(b"OPENSSH PRIVATE KEY", content)) == Apart(
        "CERT is of another key than KEY"
    )


@pytest.mark.parametrize("kind", [b"CERTIFICATE", b"PRIVATE KEY", b"X PRIVATE KEY"])
def test_blocks_without_an_end_take_no_time(made: dict[str, tuple[bytes, bytes]], kind: bytes) -> None:
    """A file of beginnings is read once, and not once for each beginning."""
    certificate, key = made["ec"]
    begun = (b"-----BEGIN %b-----\n" % kind) * 4_000
    began = time.process_time()
    assert found(begun, key) == Apart("CERT is not a certificate")
    assert found(certificate, begun) == Apart("KEY is not a private key")
    assert found(begun + certificate, begun + key) == Together()
    assert time.process_time() - began < 5


def test_no_error_of_the_library_gets_through(made: dict[str, tuple[bytes, bytes]]) -> None:
    """Cryptography has errors that are no ValueError: one would end the agent, again after each start."""
    certificate, key = made["ec"]
    version = b"\xa0\3\2\1\2"
    odd = openssl("x509", "-outform", "DER", given=certificate).replace(version, version[:-1] + b"\5", 1)
    with pytest.raises(x509.InvalidVersion):
        x509.load_der_x509_certificate(odd)
    for each in (odd, as_pem(b"CERTIFICATE", odd)):
        assert found(each, key) == Apart("CERT is not a certificate")
        assert expires(Secret(each)) is None
    point = ssh(b"ecdsa-sha2-nistp256", b"nistp256", b"\0" * 65)
    content = b"openssh-key-v1\0" + ssh(b"none", b"none", b"") + b"\0\0\0\1" + ssh(point, b"")
    assert found(certificate, as_pem(b"OPENSSH PRIVATE KEY", content)) == Apart("KEY is not a private key")


CONFIG = """
[vms.a]
pairs = [["CERT", "KEY"]]
[vms.a.credentials]
CERT = { secret = "fullchain.pem" }
KEY = { secret = "key.pem" }
"""


def lay(loop: Loop, name: str, value: bytes) -> None:
    """Write a file in place, as lego does."""
    (loop.top / "secrets").mkdir(exist_ok=True)
    (loop.top / "secrets" / name).write_bytes(value)


@pytest.mark.parametrize("order", [("fullchain.pem", "key.pem"), ("key.pem", "fullchain.pem")])
def test_one_restart_onto_the_whole_pair(
    made: dict[str, tuple[bytes, bytes]], tmp_path: Path, order: tuple[str, str]
) -> None:
    """However far apart its files are written, and whichever is first: nothing is sealed in between."""
    files = {
        kind: dict(zip(("fullchain.pem", "key.pem"), made[kind], strict=True)) for kind in ("rsa", "ec")
    }
    loop = Loop(tmp_path, CONFIG)
    for name in order:
        lay(loop, name, files["rsa"][name])
    seal_once(load(loop.file))
    loop.start_vm("a")
    with loop.running() as service:
        loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
        lay(loop, order[0], files["ec"][order[0]])
        for _ in range(3):
            loop.turn()
        decision = loop.decision("a")
        assert (decision.state, decision.seal) == (State.WAITING, None)
        assert decision.reasons == ("for its pair: CERT is of another key than KEY",)
        assert service._session.store.current_number("a") == 1
        lay(loop, order[1], files["ec"][order[1]])
        loop.turn(lambda: loop.units.restarts)
        loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
        assert service._session.store.current_number("a") == 2
        values = service._session.store.values("a")
    assert loop.units.restarts == ["microvm@a.service"]
    assert (values["CERT"].reveal(), values["KEY"].reveal()) == made["ec"]
    told = [message for event, message in loop.told() if event is Event.WAITING]
    assert told == ["a: its rotation waits for its pair: CERT is of another key than KEY"]


def test_a_pair_that_cannot_be_checked_is_sealed(
    made: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    """An encrypted key is no reason to keep a VM on old values: the doctor tells of it."""
    loop = Loop(tmp_path, CONFIG)
    lay(loop, "fullchain.pem", made["ec"][0])
    lay(loop, "key.pem", openssl(*ENCRYPTED["pkcs8"], given=made["rsa"][1]))
    assert [state for _, state, _ in seal_once(load(loop.file))] == [State.SEAL_DUE]


def test_the_first_sealing_waits_for_the_pair(made: dict[str, tuple[bytes, bytes]], tmp_path: Path) -> None:
    """Nothing is sealed for a VM whose pair is of two rotations; the reason has both names."""
    loop = Loop(tmp_path, CONFIG)
    lay(loop, "fullchain.pem", made["ec"][0])
    lay(loop, "key.pem", made["rsa"][1])
    ((_, state, reason),) = seal_once(load(loop.file))
    assert (state, reason) == (State.WAITING, "for its pair: CERT is of another key than KEY")


STEP_KEYS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "EC": (lambda: ec.generate_private_key(ec.SECP256R1()), "EC PRIVATE KEY", "TraditionalOpenSSL"),
    "RSA": (lambda: rsa.generate_private_key(65537, 2048), "RSA PRIVATE KEY", "TraditionalOpenSSL"),
    "OKP": (ed25519.Ed25519PrivateKey.generate, "PRIVATE KEY", "PKCS8"),
}
"""By ``--kty`` of step: the key, and its form (smallstep/crypto, pemutil/pem.go, `Serialize`): SEC1, PKCS#1,
and PKCS#8 for Ed25519 alone. A password encrypts it within the same form."""


@pytest.mark.parametrize("kty", STEP_KEYS)
@pytest.mark.parametrize("password", [None, b"x"], ids=["plain", "with a password"])
def test_files_of_step(kty: str, password: bytes | None) -> None:
    """A leaf with its intermediate, as ``step certificate create --bundle`` writes it, and its key."""
    generate, block, form = STEP_KEYS[kty]
    key, other = generate(), generate()
    encryption = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    )
    text = key.private_bytes(
        serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), encryption
    )
    chain = signed(key, "leaf") + signed(other, "intermediate")
    if password is None:
        assert text.startswith(f"-----BEGIN {block}-----\n".encode())
        assert found(chain, text) == Together()
        assert found(signed(other, "intermediate") + signed(key, "leaf"), text) == Apart(
            "CERT is of another key than KEY"
        )
    else:
        assert found(chain, text) == Uncheckable("KEY is encrypted")


def signed(key: Any, name: str) -> bytes:  # noqa: ANN401 (any of the kinds of private keys)
    """A certificate of a key, in PEM as Go writes it: lines of 64 characters."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).serial_number(1)
    built = built.public_key(key.public_key()).not_valid_before(begin)
    made = built.not_valid_after(begin + dt.timedelta(days=9))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return made.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


LEGO = """
[vms.a]
guest_systemd = 257
pairs = [["CERT", "KEY"]]
[vms.a.credentials]
CERT = { secret = "example.org.crt" }
KEY = { secret = "example.org.key" }
"""


def test_files_of_lego(made: dict[str, tuple[bytes, bytes]], tmp_path: Path) -> None:
    """Each file is cut off and written anew, in lego's order: one restart, and none for the other files.

    go-acme/lego, cmd/certs_storage.go, `SaveResource`: .crt, .issuer.crt, .key, .json, by `WriteFile`.
    """
    loop = Loop(tmp_path, LEGO)
    for kind in ("rsa", "ec"):
        files = {
            ".crt": made[kind][0] + made["ec384"][0],
            ".issuer.crt": made["ec384"][0],
            ".key": made[kind][1],
            ".json": b'{"domain": "example.org", "certUrl": "' + kind.encode() + b'"}',
        }
        if kind == "rsa":
            for ending, content in files.items():
                lay(loop, f"example.org{ending}", content)
            seal_once(load(loop.file))
            loop.start_vm("a")
            continue
        with loop.running() as service:
            loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
            for ending, content in files.items():
                assert not loop.units.restarts or ending == ".json"
                for part in (b"", content):  # cut off, then written
                    lay(loop, f"example.org{ending}", part)
                    loop.turn()
            loop.turn(lambda: loop.units.restarts)
            loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
            values = service._session.store.values("a")
    assert loop.units.restarts == ["microvm@a.service"]
    assert values["KEY"].reveal() == made["ec"][1]


@pytest.mark.parametrize("is_key_first", [False, True], ids=["certificate first", "key first"])
def test_ten_seconds_apart(is_key_first: bool) -> None:
    """Certificate and key are written 10 s apart: the VM waits meanwhile, and is restarted once."""
    host = Machine.made()
    try:
        vm = host.systemd.vms["c"]
        before = vm.asked
        files = [("cert.pem", pair(1)[0]), ("key.pem", pair(1)[1])]
        first, second = reversed(files) if is_key_first else files
        host.write_other_in_place(*first)
        for _ in range(5):
            host.turn()
            host.clock.pass_time(2)
        assert vm.asked == before
        assert vm.values["CERT"].decode() == pair(0)[0]
        host.write_other_in_place(*second)
        for _ in range(3):
            host.turn()
            host.clock.pass_time(2)
        assert vm.asked == before + 1
        assert [vm.values[name].decode() for name in ("CERT", "KEY")] == [*pair(1)]
    finally:
        host.close()
