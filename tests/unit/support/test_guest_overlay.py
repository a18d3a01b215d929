# SPDX-License-Identifier: MIT
"""Archives for guests: read back with cpio itself."""

from __future__ import annotations

import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.guest import (
    OverlayEntry,
    OverlayFile,
    OverlayLink,
    Variant,
    credential_printer,
    newc,
    recipe,
)
from tests.support.guest.image import Guest
from tests.support.guest.overlay import entries

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio to read the archive back with")
def test_an_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    """Names, modes, contents and links come back as they went in, whatever their lengths."""
    files = {f"/d{size}/{'n' * size}": OverlayFile(b"c" * size, 0o400) for size in range(1, 10)}
    overlay: dict[str, OverlayEntry] = {
        **files,
        "/link": OverlayLink("d1/n"),
        "/d1/deep/er": OverlayFile(b"", 0o755),
    }
    packed = b"".join(newc.archive(entries(overlay)))
    assert len(packed) % newc.ALIGNMENT == 0
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--no-absolute-filenames"], input=packed, cwd=tmp_path, check=True
    )
    for path, file in files.items():
        unpacked = tmp_path / path.removeprefix("/")
        assert unpacked.read_bytes() == file.content
        assert stat.S_IMODE(unpacked.stat().st_mode) == 0o400
    assert str((tmp_path / "link").readlink()) == "d1/n"
    assert stat.S_IMODE((tmp_path / "d1/deep").stat().st_mode) == 0o755


def test_parents_come_once_and_first() -> None:
    """Each directory above a file is in the archive, before the file, and once."""
    names = [entry.name for entry in entries({"/a/b/c": OverlayFile(b""), "/a/b/d": OverlayLink("c")})]
    assert names == ["a", "a/b", "a/b/c", "a/b/d"]


@pytest.mark.parametrize("size", range(1, 9))
def test_an_overlay_begins_aligned_behind_any_image(tmp_path: Path, size: int) -> None:
    """The kernel finds the second archive behind a first one of any length."""
    base = tmp_path / "base"
    base.write_bytes(b"i" * size)
    guest = Guest(Variant.TRIXIE, tmp_path / "vmlinux", base)
    image = guest.initramfs({"/f": OverlayFile(b"x")}, tmp_path).read_bytes()
    begin = image.index(b"070701")
    assert begin % newc.ALIGNMENT == 0
    assert image[:begin].rstrip(b"\0") == base.read_bytes()


def test_the_printer_names_its_credentials_and_holds_no_value() -> None:
    """Plain ones are loaded by name alone, sealed ones from where PID 1 puts what came over SMBIOS."""
    unit = credential_printer(plain=["A"], sealed=["B"])["/etc/systemd/system/demo-oem-credentials.service"]
    assert isinstance(unit, OverlayFile)
    lines = unit.content.decode().splitlines()
    assert "LoadCredential=A" in lines
    assert "LoadCredentialEncrypted=B:/run/credentials/@system/B" in lines


def test_the_image_leaves_out_what_no_guest_needs() -> None:
    """Whole directories go, what systemd itself needs stays."""
    assert recipe.is_left_out("usr/share/keyrings")
    assert recipe.is_left_out("dev/null")
    assert not recipe.is_left_out("usr/lib/systemd/systemd")
    assert not recipe.is_left_out("usr/lib/systemd/system/basic.target")
