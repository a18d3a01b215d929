# SPDX-License-Identifier: MIT
"""The sealing format, held against what real systemd-creds wrote."""

from __future__ import annotations

import base64
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.errors import KeyFileError, SealError
from credferry.agent.sealing.credential import (
    NEVER,
    PLAINTEXT_MAX,
    SEALED_MAX,
    is_valid_name,
    one_line,
    seal,
    sealed_size,
    unseal,
)
from credferry.agent.sealing.keys import CredentialKey, create_key, hashed_machine_id, host_key, read_key

VECTORS = json.loads((Path(__file__).parents[2] / "data/sealed-credential-vectors.json").read_text())["sets"]
OPEN = [
    pytest.param(each, vector, id=f"{each['systemd'][:11]} {number} {vector['name'][:20]}")
    for each in VECTORS
    for number, vector in enumerate(each["open"])
]
REFUSE = [
    pytest.param(each, vector, id=f"{each['systemd'][:11]} {vector['why']}")
    for each in VECTORS
    for vector in each["refuse"]
]
KEY = CredentialKey(bytes(range(256)) * 16)


def key_of(vectors: dict[str, Any]) -> CredentialKey:
    """The host key that a set of vectors was written with."""
    return CredentialKey.from_file_content(base64.b64decode(vectors["secret_file_base64"]))


@pytest.mark.parametrize(("vectors", "vector"), OPEN)
def test_opens_what_systemd_creds_sealed(vectors: dict[str, Any], vector: dict[str, Any]) -> None:
    """What systemd-creds 252 and 257 sealed with the host key opens to the same bytes."""
    plaintext = unseal(vector["sealed"].encode(), name=vector["name"], key=key_of(vectors))
    assert plaintext == base64.b64decode(vector["plaintext_base64"])


@pytest.mark.parametrize(("vectors", "vector"), REFUSE)
def test_refuses_what_must_be_refused(vectors: dict[str, Any], vector: dict[str, Any]) -> None:
    """Expired, renamed, null-key, altered and cut credentials are refused, for that reason."""
    expected = {
        "expired": "has expired",
        "name": "was sealed under the name",
        "null key": "the null key",
        "tampered": "does not open",
        "tampered iv": "does not open",
        "truncated": "does not open|cut short|not Base64",
    }[vector["why"]]
    with pytest.raises(SealError, match=expected):
        unseal(vector["sealed"].encode(), name=vector["name"], key=key_of(vectors))


@pytest.mark.parametrize("vectors", VECTORS, ids=lambda value: value["systemd"])
def test_machine_id_of_the_vectors(vectors: dict[str, Any]) -> None:
    """The header that systemd wrote is the machine id's hash that we compute."""
    assert base64.b64decode(vectors["secret_file_base64"])[:16] == hashed_machine_id(vectors["machine_id"])


def test_known_answer_of_the_format() -> None:
    """A blob built from known parts opens: key derivation, padding and the order of fields hold."""
    blob = (
        b"Whxqht+dQJax1aZeCGLxmiAAAAABAAAADAAAABAAAAAAAQIDBAUGBwgJCgsAAAAAQC8w6tYVJSXL6gM\n"
        b"EOF7LaARu2ww46zyaipFfjYBo+bsjKKngiwxGk11LgPEYI6HKfsyVIJeyjQw=\n"
    )
    assert unseal(blob, name="db-password", key=KEY) == b"hunter2\n"


def test_machine_id_known_answer() -> None:
    """The application-specific machine id is what systemd-id128 prints."""
    assert hashed_machine_id("0123456789abcdef0123456789abcdef").hex() == "f65a25a6c02a44888e0e49b6adb6b1f9"


@given(value=st.binary(max_size=3000), name=st.text("abcXYZ019._- =~", min_size=1, max_size=255))
def test_what_is_sealed_opens(value: bytes, name: str) -> None:
    """Every value comes back under its own name, and under no other."""
    if not is_valid_name(name):
        return
    blob = seal(value, name=name, key=KEY)
    assert unseal(one_line(blob), name=name, key=KEY) == value
    assert all(len(line) <= 79 for line in blob.splitlines())
    with pytest.raises(SealError):
        unseal(blob, name="another", key=KEY)


@given(at=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
def test_any_flipped_byte_is_refused(at: int, flip: int) -> None:
    """Not one byte of a sealed credential can be changed unnoticed, the padding of the header included."""
    raw = bytearray(base64.b64decode(seal(b"v" * 40, name="n", key=KEY)))
    raw[at % len(raw)] ^= flip
    with pytest.raises(SealError):
        unseal(base64.b64encode(bytes(raw)), name="n", key=KEY)


@given(st.binary(max_size=300))
def test_rubbish_is_refused(data: bytes) -> None:
    """No input raises anything but the one error."""
    for blob in (data, base64.b64encode(data)):
        with pytest.raises(SealError):
            unseal(blob, name="n", key=KEY)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a\n", "ü", "x" * 256])
def test_bad_names_are_refused(name: str) -> None:
    """A name that systemd would not take is refused before anything is sealed."""
    with pytest.raises(SealError, match="not a credential name"):
        seal(b"v", name=name, key=KEY)


def test_limits() -> None:
    """1 MiB seals and opens, a byte more is refused; the error tells neither value nor length."""
    assert len(unseal(seal(b"x" * PLAINTEXT_MAX, name="n", key=KEY), name="n", key=KEY)) == PLAINTEXT_MAX
    with pytest.raises(SealError) as caught:
        seal(b"canary" * PLAINTEXT_MAX, name="n", key=KEY)
    assert "canary" not in f"{caught.value} {caught.value.hint}"
    assert str(6 * PLAINTEXT_MAX) not in str(caught.value)


def test_expiry() -> None:
    """A credential opens until its not-after, and not after it."""
    blob = seal(b"v", name="n", key=KEY, timestamp=1000, not_after=2000)
    assert unseal(blob, name="n", key=KEY, now=2000) == b"v"
    with pytest.raises(SealError, match="expired"):
        unseal(blob, name="n", key=KEY, now=2001)
    with pytest.raises(SealError, match="expire before"):
        seal(b"v", name="n", key=KEY, timestamp=1000, not_after=1000)


def test_no_name_inside_goes_with_any(tmp_path: Path) -> None:
    """A timestamp of infinity and an unchecked name are accepted, as systemd does."""
    blob = seal(b"v", name="n", key=KEY, timestamp=NEVER - 1)
    assert unseal(blob, name=None, key=KEY) == b"v"
    assert not list(tmp_path.iterdir())


class TestKeyFiles:
    """Key files under systemd's own conditions."""

    MACHINE_ID = "0123456789abcdef0123456789abcdef"

    def test_created_as_systemd_would(self, tmp_path: Path) -> None:
        """4112 bytes, mode 0400, the machine id's hash first; a second time nothing is touched."""
        path = tmp_path / "credential.secret"
        (tmp_path / "machine-id").write_text(self.MACHINE_ID + "\n")
        first = host_key(path, machine_id_file=tmp_path / "machine-id")
        content = path.read_bytes()
        assert (len(content), path.stat().st_mode & 0o7777) == (4112, 0o400)
        assert content[:16] == hashed_machine_id(self.MACHINE_ID)
        assert host_key(path, machine_id_file=tmp_path / "machine-id").aes_key == first.aes_key
        with pytest.raises(FileExistsError):
            create_key(path, machine_id=self.MACHINE_ID)
        assert path.read_bytes() == content

    @pytest.mark.parametrize(
        ("spoil", "expected"),
        [
            (lambda path: path.chmod(0o600), "mode is 0600"),
            (lambda path: path.with_name("link").hardlink_to(path), "one link"),
            (lambda path: (path.chmod(0o600), path.write_bytes(b"x" * 16), path.chmod(0o400)), "17 to 4112"),
            (lambda path: (path.chmod(0o600), path.write_bytes(b"x" * 4113), path.chmod(0o400)), "17 to"),
            (lambda path: (path.rename(path.with_name("t")), path.symlink_to("t")), "symbolic link"),
        ],
    )
    def test_unsafe_files_are_refused_and_kept(self, tmp_path: Path, spoil: Any, expected: str) -> None:  # noqa: ANN401 (a lambda of any result)
        """A file that systemd would not take is refused with the reason, and stays where it is."""
        path = tmp_path / "credential.secret"
        create_key(path, machine_id=self.MACHINE_ID)
        spoil(path)
        with pytest.raises(KeyFileError, match=expected):
            read_key(path, machine_id=self.MACHINE_ID)
        assert path.exists()

    def test_another_machines_key_is_refused_and_kept(self, tmp_path: Path) -> None:
        """Systemd would delete it; we say whose it is not, and leave it."""
        path = tmp_path / "credential.secret"
        create_key(path, machine_id="f" * 32)
        with pytest.raises(KeyFileError, match="another machine id"):
            read_key(path, machine_id=self.MACHINE_ID)
        assert path.exists()

    @pytest.mark.parametrize("machine_id", ["", "0" * 32, "g" * 32, "12", "0123456789abcdef" * 3])
    def test_bad_machine_ids(self, machine_id: str) -> None:
        """An uninitialised or malformed machine id is refused."""
        with pytest.raises(KeyFileError, match="not a machine id"):
            hashed_machine_id(machine_id)

    def test_keys_do_not_show_themselves(self) -> None:
        """A key's repr holds nothing of it."""
        assert repr(KEY) == "CredentialKey(…)"


def made(
    plaintext: bytes, *, key: CredentialKey = KEY, header: bytes | None = None, wrap: bool = True
) -> bytes:
    """A blob with any content at all, sealed as the format says."""
    iv = bytes(12)
    head = header or (
        bytes.fromhex("5a1c6a86df9d4096b1d5a65e0862f19a")
        + struct.pack("<IIII", 32, 1, 12, 16)
        + iv
        + bytes(4)
    )
    data = head + AESGCM(key.aes_key).encrypt(iv, plaintext, head)
    return base64.b64encode(data) if wrap else data


def metadata(timestamp: int, not_after: int, name: bytes) -> bytes:
    """What stands before the value."""
    fields = struct.pack("<QQI", timestamp, not_after, len(name)) + name
    return fields + bytes(-len(fields) % 8)


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def test_the_present_moment_counts() -> None:
    """Without a given moment, a credential expires by the clock, and none is made that has expired."""
    second = 1_000_000
    assert unseal(seal(b"v", name="n", key=KEY, not_after=now() + 3600 * second), name="n", key=KEY) == b"v"
    expired = seal(b"v", name="n", key=KEY, timestamp=1, not_after=now() - second)
    with pytest.raises(SealError, match="expired"):
        unseal(expired, name="n", key=KEY)
    with pytest.raises(SealError, match="expire before"):
        seal(b"v", name="n", key=KEY, not_after=now() - second)


@pytest.mark.parametrize(("timestamp", "not_after"), [(2000, 2000), (2001, 2000)])
def test_timestamps_out_of_order_are_refused(timestamp: int, not_after: int) -> None:
    """As systemd does: not-after must come after the timestamp, unless there is no timestamp."""
    with pytest.raises(SealError, match="not before its expiry"):
        unseal(made(metadata(timestamp, not_after, b"n") + b"v"), name="n", key=KEY, now=0)
    assert unseal(made(metadata(NEVER, not_after, b"n") + b"v"), name="n", key=KEY, now=0) == b"v"


@pytest.mark.parametrize("name", [b"\xff", b"a/b", b"a:b", b".."])
def test_a_name_inside_that_is_none_is_refused(name: bytes) -> None:
    """Bytes that are no name of a credential raise the one error, whatever is asked for."""
    with pytest.raises(SealError, match="contains an invalid name"):
        unseal(made(metadata(1, NEVER, name) + b"v"), name=None, key=KEY)


def test_an_error_names_the_credential() -> None:
    """The name that was asked for stands in each refusal; without one, the text says so."""
    for blob in (b"!", base64.b64encode(b"rubbish" * 20), made(metadata(1, 2, b"n"))):
        for name, shown in (("db-password", "credential 'db-password'"), (None, "a credential ")):
            with pytest.raises(SealError) as caught:
                unseal(blob, name=name, key=KEY)
            assert str(caught.value).startswith(shown)


@given(size=st.integers(min_value=0, max_value=400), length=st.integers(min_value=1, max_value=100))
def test_the_size_is_known_beforehand(size: int, length: int) -> None:
    """What a sealed value will take is told exactly, whatever the value's and the name's length."""
    name, value = "n" * length, bytes(size)
    assert sealed_size(name, value) == len(one_line(seal(value, name=name, key=KEY)))


def test_sizes_at_their_limits() -> None:
    """A blob, and what it decodes to, may have the limit's size, and not a byte more."""
    over = "larger than systemd's limit"
    within = base64.b64encode(bytes(SEALED_MAX))
    for blob in (within, within + b"\n" * (2 * SEALED_MAX - len(within))):
        with pytest.raises(SealError, match="is not an encrypted credential"):
            unseal(blob, name="n", key=KEY)
    for blob in (b"QUJD" + b"\n" * (2 * SEALED_MAX - 3), base64.b64encode(bytes(SEALED_MAX + 1))):
        with pytest.raises(SealError, match=over):
            unseal(blob, name="n", key=KEY)


def test_what_is_cut_short_is_told_from_what_was_altered() -> None:
    """The least that a blob can hold is metadata, four bytes and a tag; one byte less is cut short."""
    least = made(bytes(20 + 4), wrap=False)
    with pytest.raises(SealError, match="cut short"):
        unseal(base64.b64encode(least[:-1]), name="n", key=KEY)
    with pytest.raises(SealError, match="does not open"):
        unseal(base64.b64encode(least[:-1] + bytes([least[-1] ^ 1])), name="n", key=KEY)


def test_foreign_characters_are_refused() -> None:
    """Characters outside of Base64 are refused and not passed over."""
    blob = one_line(seal(b"v", name="n", key=KEY))
    with pytest.raises(SealError, match="is not Base64"):
        unseal(blob[:40] + b"!" + blob[40:], name="n", key=KEY)


@pytest.mark.parametrize("name", ["X", "Xen", "a.X"])
def test_no_letter_is_refused_in_a_name(name: str) -> None:
    """What a credential's name may not have is a slash, a colon, and what is not printable."""
    assert is_valid_name(name)
