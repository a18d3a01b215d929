# SPDX-License-Identifier: MIT
"""A second source of the model world: a file with fields, and a certificate with its key.

VM ``b`` takes a field of the file. VM ``c`` takes the pair, and gets it only if certificate and key belong
together. A change of another field of the file concerns nobody.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

TABLES = {
    "b": 'V = { secret = "w.json", source = "other", field = "n.v" }\n',
    "c": 'CERT = { secret = "cert.pem", source = "other" }\n'
    'KEY = { secret = "key.pem", source = "other" }\n',
}
"""What VMs take of this source, in their tables of credentials."""
PAIRS = 'pairs = [["CERT", "KEY"]]\n'
"""For VM ``c``."""
PAIR_NUMBERS = range(3)


@dataclass(slots=True)
class SecondSource:
    """The source's directory, and what is published there; None while the source is gone."""

    path: Path
    files: dict[str, str] | None = None
    _number: int = field(default=0)

    def publish(self, value: str, neighbour: int, certificate: int, key: int) -> None:
        """A new generation takes the place of the one before. The numbers say of which pair each file is."""
        self._number += 1
        files = {
            "w.json": document(value, neighbour),
            "cert.pem": pair(certificate)[0],
            "key.pem": pair(key)[1],
        }
        directory = self.path.with_name(f"other.{self._number}")
        directory.mkdir()
        for name, text in files.items():
            (directory / name).write_text(text)
        new = self.path.with_name("other.new")
        new.symlink_to(directory)
        new.rename(self.path)
        shutil.rmtree(self.path.with_name(f"other.{self._number - 1}"), ignore_errors=True)
        self.files = files

    def write_in_place(self, name: str, text: str) -> None:
        """One file is written where it is, as an ACME client does."""
        if self.files is not None:
            (self.path / name).write_text(text)
            self.files = {**self.files, name: text}

    def remove(self) -> None:
        """The source vanishes, until something is published again."""
        self.path.unlink(missing_ok=True)
        self.files = None

    def wanted(self, vm: str) -> dict[str, bytes] | None:
        """What a VM should get of this source; None if that cannot be made."""
        if vm == "a":
            return {}
        if self.files is None:
            return None
        certificate, key = self.files["cert.pem"], self.files["key.pem"]
        if vm == "b":
            try:
                value = str(json.loads(self.files["w.json"])["n"]["v"])
            except (ValueError, KeyError, TypeError):
                return None
            return {"V": value.encode()} if value else None
        if not any((certificate, key) == pair(number) for number in PAIR_NUMBERS):
            return None
        return {"CERT": certificate.encode(), "KEY": key.encode()}


def document(value: str, neighbour: int) -> str:
    """The file with fields."""
    return json.dumps({"n": {"v": value}, "neighbour": neighbour})


@functools.cache
def pair(number: int) -> tuple[str, str]:
    """A certificate and its key, as PEM: one of a few pairs."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"world {number}")])
    begin = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(number + 1).not_valid_before(begin)
    certificate = built.not_valid_after(begin + dt.timedelta(days=36_500)).sign(key, None)
    text = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    return certificate.public_bytes(form.Encoding.PEM).decode(), text.decode()
