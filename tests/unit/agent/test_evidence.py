# SPDX-License-Identifier: MIT
"""Evidence of starts: believed where root alone can have put it there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from credferry.agent.store.evidence import Evidence, EvidenceDirectory
from credferry.launcher.handoff import EVIDENCE_PARENT, PUSHED_PARENT, Delivery, Manifest

if TYPE_CHECKING:
    from pathlib import Path

INVOCATION = "a" * 32
LATER = "b" * 32
MANIFEST = Manifest("web", 3, "c" * 64, "d" * 32, Delivery(), (), "e" * 64)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The evidence of one start, as root keeps it."""
    directory = tmp_path / EVIDENCE_PARENT
    directory.mkdir(mode=0o755)
    path = directory / f"web@{INVOCATION}"
    path.write_bytes(MANIFEST.to_bytes())
    path.chmod(0o600)
    return path


def test_what_was_kept_is_told(kept: Path, tmp_path: Path) -> None:
    """Of the invocation that is asked for alone, and after the file is gone no more."""
    directory = EvidenceDirectory(tmp_path)
    assert directory.invocations() == {"web": INVOCATION}
    assert directory.of("web", INVOCATION) == Evidence(INVOCATION, 3, "c" * 64, "d" * 32)
    assert directory.of("web", LATER) is None
    assert directory.of("web", "") is None
    assert directory.of("db", INVOCATION) is None
    kept.unlink()
    assert EvidenceDirectory(tmp_path).of("web", INVOCATION) is None
    assert EvidenceDirectory(tmp_path).invocations() == {}


def test_a_copy_under_another_vms_name_is_none(kept: Path, tmp_path: Path) -> None:
    """The manifest says whose it is."""
    kept.rename(kept.with_name(f"db@{INVOCATION}"))
    assert EvidenceDirectory(tmp_path).of("db", INVOCATION) is None


def test_evidence_that_was_left_over_vouches_for_nothing(kept: Path, tmp_path: Path) -> None:
    """Where there is evidence of two invocations, systemd is asked which one is the present."""
    kept.with_name(f"web@{LATER}").write_bytes(MANIFEST.but(generation=4).to_bytes())
    directory = EvidenceDirectory(tmp_path)
    assert directory.invocations() == {"web": ""}
    assert [each.generation for name in (INVOCATION, LATER) if (each := directory.of("web", name))] == [3, 4]


def test_what_is_being_written_is_read_again(kept: Path, tmp_path: Path) -> None:
    """Half a manifest is no evidence yet."""
    whole = kept.read_bytes()
    kept.write_bytes(whole[:50])
    directory = EvidenceDirectory(tmp_path)
    assert directory.of("web", INVOCATION) is None
    kept.write_bytes(whole)
    assert directory.of("web", INVOCATION) is not None


def test_a_directory_that_others_can_write_counts_as_none(kept: Path, tmp_path: Path) -> None:
    """Whatever is in it."""
    for mode in (0o775, 0o757, 0o777):
        kept.parent.chmod(mode)
        assert EvidenceDirectory(tmp_path).of("web", INVOCATION) is None
        assert EvidenceDirectory(tmp_path).invocations() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("user", [1, 1234])
def test_files_and_directories_of_others_count_as_none(kept: Path, tmp_path: Path, user: int) -> None:
    """Root owns all that counts."""
    os.chown(kept, user, user)
    assert EvidenceDirectory(tmp_path).of("web", INVOCATION) is None
    os.chown(kept, 0, 0)
    os.chown(kept.parent, user, user)
    assert EvidenceDirectory(tmp_path).of("web", INVOCATION) is None
    assert EvidenceDirectory(tmp_path).invocations() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["web", "web@before"])
def test_proofs_of_others_count_as_none(tmp_path: Path, name: str) -> None:
    """A push is proved by two copies of root's, in a directory of root's; a link counts as none."""
    directory = tmp_path / PUSHED_PARENT
    directory.mkdir(mode=0o755)
    for each in ("web", "web@before"):
        (directory / each).write_bytes(MANIFEST.to_bytes())
    proofs = EvidenceDirectory(tmp_path)
    assert proofs.pushed("web") == MANIFEST
    assert proofs.pushed("db") is None
    os.chown(directory / name, 1234, 1234)
    assert proofs.pushed("web") is None
    (directory / name).rename(tmp_path / name)
    (directory / name).symlink_to(tmp_path / name)
    assert proofs.pushed("web") is None
    (directory / name).unlink()
    assert proofs.pushed("web") is None
    (directory / name).write_bytes(MANIFEST.to_bytes())
    assert proofs.pushed("web") == MANIFEST
    os.chown(directory, 1234, 1234)
    assert proofs.pushed("web") is None


def test_evidence_is_read_once(kept: Path, tmp_path: Path) -> None:
    """What root has copied does not change, so it is known for as long as the agent runs."""
    kept.with_name(f"db@{LATER}").write_bytes(MANIFEST.but(vm="db").to_bytes())
    directory = EvidenceDirectory(tmp_path)
    first = directory.of("web", INVOCATION)
    assert directory.of("db", LATER) is not None
    kept.unlink()
    assert directory.of("web", INVOCATION) == first is not None
    assert directory.of("web", LATER) is None


def test_a_runtime_directory_that_is_a_link_is_followed(kept: Path, tmp_path: Path) -> None:
    """Only root can change its own path, so a link there is no one else's."""
    link = tmp_path / "run"
    link.symlink_to(kept.parent.parent)
    assert EvidenceDirectory(link).of("web", INVOCATION) is not None


def test_without_a_directory_there_is_no_evidence(tmp_path: Path) -> None:
    """Before the first start of all, nothing is kept, and that is no error."""
    directory = EvidenceDirectory(tmp_path)
    assert directory.invocations() == {}
    assert directory.of("web", INVOCATION) is None


def test_a_stray_file_hides_no_vm_s_evidence(kept: Path, tmp_path: Path) -> None:
    """The invocation is what follows the last @; a longer name is another VM's."""
    kept.with_name(f"web@x@{LATER}").write_bytes(b"")
    assert EvidenceDirectory(tmp_path).invocations() == {"web": INVOCATION, "web@x": LATER}


def test_links_fifos_and_floods_count_as_none(kept: Path, tmp_path: Path) -> None:
    """None of them is followed, waited for, or read without end."""
    elsewhere = tmp_path / "elsewhere"
    kept.rename(elsewhere)
    kept.symlink_to(elsewhere)
    assert EvidenceDirectory(tmp_path).of("web", INVOCATION) is None
    kept.unlink()
    os.mkfifo(kept)
    assert EvidenceDirectory(tmp_path).of("web", INVOCATION) is None
    kept.unlink()
    kept.write_bytes(MANIFEST.to_bytes() + b" " * (1 << 20))
    assert EvidenceDirectory(tmp_path).of("web", INVOCATION) is None
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.symlink_to(tmp_path)
    assert EvidenceDirectory(tmp_path).of("web", INVOCATION) is None
