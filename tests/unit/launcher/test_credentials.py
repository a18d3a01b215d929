# SPDX-License-Identifier: MIT
"""What PID 1 unsealed: read whole, in the manifest's order, and as what the manifest says that it is."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from credferry.launcher.credentials import Credential, read
from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.handoff import Channel, Delivery, Kind, Secret, unit_credential
from tests.support.descriptors import opened

from .conftest import CANARY, credentials, sealed

if TYPE_CHECKING:
    from pathlib import Path

SIZE_MAX = 1 << 20
VALUES = {
    "Z": (Kind.PLAIN, CANARY.encode()),
    "A": (Kind.SEALED, sealed()),
    "M": (Kind.TEXT, b"text"),
}


def test_a_generation_is_read_as_its_manifest_says(tmp_path: Path) -> None:
    """The manifest, and its names, kinds and values in its order; other files are not read."""
    manifest = credentials(tmp_path, VALUES, Delivery(channel=Channel.COMMAND, guest_systemd=255))
    (tmp_path / unit_credential("value.OTHER")).write_bytes(b"of another unit")
    found = read(tmp_path)
    assert found.manifest == manifest
    assert [(each.name, each.kind, each.value.reveal()) for each in found.credentials] == [
        (name, kind, value) for name, (kind, value) in VALUES.items()
    ]


def test_a_credential_has_its_form_of_an_oem_string() -> None:
    """Sealed ones as they are, others in Base64; what may be shown has the name and no value."""
    plain, as_sealed, text = (Credential("N", kind, Secret(b"QUJD")) for kind in Kind)
    assert plain.string.reveal() == text.string.reveal() == b"io.systemd.credential.binary:N=UVVKRA=="
    assert as_sealed.string.reveal() == b"io.systemd.credential:N=QUJD"
    assert plain.redacted == text.redacted == "io.systemd.credential.binary:N=<redacted>"
    assert as_sealed.redacted == "io.systemd.credential:N=<redacted>"


def test_the_largest_credential_that_systemd_takes_is_taken(tmp_path: Path) -> None:
    """1 MiB is read whole, and one byte more is refused by its name and the limit."""
    credentials(tmp_path, {"K": (Kind.PLAIN, b"x" * SIZE_MAX)}, Delivery())
    assert len(read(tmp_path).credentials[0].value.reveal()) == SIZE_MAX
    credentials(tmp_path, {"K": (Kind.PLAIN, b"x" * (SIZE_MAX + 1))}, Delivery())
    with pytest.raises(LaunchError, match="credential K is larger than 1048576 bytes") as caught:
        read(tmp_path)
    assert caught.value.status is Exit.CREDENTIALS


@pytest.mark.parametrize("file", ["manifest", "value.Z"])
@pytest.mark.parametrize("spoil", ["missing", "a link", "a directory", "empty"])
def test_what_is_not_there_as_it_should_be_is_refused(tmp_path: Path, file: str, spoil: str) -> None:
    """Status 65, and a line that names what lacks; a link is not followed, wherever it leads."""
    directory = tmp_path / "c"
    credentials(directory, VALUES, Delivery())
    path = directory / unit_credential(file)
    content = path.read_bytes()
    path.unlink()
    match spoil:
        case "a link":
            (tmp_path / "elsewhere").write_bytes(content)
            path.symlink_to(tmp_path / "elsewhere")
        case "a directory":
            path.mkdir()
        case "empty":
            path.touch()
    with pytest.raises(LaunchError) as caught:
        read(directory)
    assert caught.value.status is Exit.CREDENTIALS
    what = "credential Z " if file != "manifest" else "manifest: " if spoil == "empty" else "the manifest "
    assert str(caught.value).startswith(what)
    if spoil == "missing":
        assert "credferry:/var/lib/credferry/vms/%i/current" in caught.value.hint
        assert f"credferry_{file}" in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_without_end_is_refused_at_once(tmp_path: Path) -> None:
    """No more than the limit is read of it, whatever its length."""
    credentials(tmp_path, VALUES, Delivery())
    os.truncate(tmp_path / unit_credential("value.Z"), 1 << 43)
    with pytest.raises(LaunchError, match="larger than 1048576 bytes") as caught:
        read(tmp_path)
    assert caught.value.status is Exit.CREDENTIALS


def test_a_manifest_of_an_earlier_form_is_a_matter_of_time(tmp_path: Path) -> None:
    """The agent seals it anew: the status is the one after which systemd tries the start again."""
    credentials(tmp_path, VALUES, Delivery())
    path = tmp_path / unit_credential("manifest")
    path.write_bytes(json.dumps({**json.loads(path.read_bytes()), "version": 1}).encode())
    with pytest.raises(LaunchError, match="version 1") as caught:
        read(tmp_path)
    assert caught.value.status is Exit.LATER


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Neither of what was read nor of what was refused: an exec would hand it on."""
    credentials(tmp_path, VALUES, Delivery())
    before = opened()
    read(tmp_path)
    (tmp_path / unit_credential("value.M")).write_bytes(b"another")
    with pytest.raises(LaunchError):
        read(tmp_path)
    assert opened() <= before
