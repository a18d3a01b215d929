# SPDX-License-Identifier: MIT
"""`make release`: what it refuses, and what it leaves in a repository of git."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING

import pytest

from contrib.release.release import ReleaseError, git, release
from contrib.release.texts import CHANGELOG, FILES, PLACES, PROJECT, UPGRADE, faults
from docs.generate.files import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DAY = date(2026, 12, 1)
CHANGES = (
    "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n\n"
    "## [0.1.0] - 2026-11-23\n\n### Added\n\n- The first.\n"
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository on `main` with the files that hold the version, of 0.1.0, and what 0.2.0 needs."""
    for path in FILES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / path).read_text()
        if path in PLACES:
            text = re.sub(PLACES[path], r"\g<1>0.1.0\g<3>", text)
        (tmp_path / path).write_text(text)
    (tmp_path / CHANGELOG).write_text(CHANGES)
    (tmp_path / UPGRADE).write_text("# Upgrade\n\n### 0.2.0\n\nNothing.\n")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "config", "user.name", "A maintainer")
    git(tmp_path, "config", "user.email", "maintainer@example.org")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=First")
    return tmp_path


def state(root: Path) -> tuple[str, str, str]:
    """The commit, the tags and what is not committed."""
    return (git(root, "rev-parse", "HEAD"), git(root, "tag", "--list"), git(root, "status", "--porcelain"))


def test_a_release(repository: Path) -> None:
    """It is one commit with the dated section and the version in every place, and an annotated tag on it."""
    assert release(repository, "0.2.0", DAY) == "v0.2.0"
    assert (repository / CHANGELOG).read_text() == CHANGES.replace(
        "## [Unreleased]\n", "## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n"
    )
    for path, pattern in PLACES.items():
        assert [each[1] for each in re.findall(pattern, (repository / path).read_text())] == ["0.2.0"]
    assert git(repository, "log", "--format=%s") == "Release 0.2.0\nFirst\n"
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "cat-file", "-t", "v0.2.0") == "tag\n"
    assert git(repository, "rev-parse", "v0.2.0^{commit}") == git(repository, "rev-parse", "HEAD")
    said = git(repository, "tag", "--list", "--format=%(contents)", "v0.2.0").strip()
    assert said == "credferry 0.2.0\n\n### Added\n\n- A thing."


def test_a_release_whose_version_is_in_the_files_already(repository: Path) -> None:
    """The next version may stand in the files long before its release."""
    for path, pattern in PLACES.items():
        text = (repository / path).read_text()
        (repository / path).write_text(re.sub(pattern, r"\g<1>0.2.0\g<3>", text))
    git(repository, "commit", "--quiet", "--all", "--message=Next")
    assert release(repository, "0.2.0", DAY) == "v0.2.0"
    assert git(repository, "show", "--format=", "--name-only", "HEAD") == f"{CHANGELOG}\n"


def _write(root: Path, path: str, text: str) -> None:
    (root / path).write_text(text)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=Other")


@pytest.mark.parametrize(
    ("version", "path", "old", "new", "said"),
    [
        ("0.2", "", "", "", "no version of the form"),
        ("0.1.0", UPGRADE, "0.2.0", "0.1.0", "already has 0.1.0"),
        ("0.0.9", UPGRADE, "0.2.0", "0.0.9", "already has 0.1.0"),
        ("0.3.0", "", "", "", "has no section `0.3.0`"),
        ("0.2.0", UPGRADE, "### 0.2.0", "### From 0.2.0", "has no section `0.2.0`"),
        ("0.2.0", CHANGELOG, "- A thing.\n", "", "has no entry"),
        ("0.2.0", CHANGELOG, "[Unreleased]", "[Next]", "has no section [Unreleased]"),
        ("0.2.0", PROJECT, 'dynamic = ["version"]', 'version = "0.1.0"', "must read its version"),
        ("0.2.0", "agent/__init__.py", "__version__", "version", "must hold the version once"),
    ],
)
def test_what_is_refused(repository: Path, version: str, path: str, old: str, new: str, said: str) -> None:
    """Each is named by a sentence, and the repository stays as it was."""
    if path:
        text = (repository / path).read_text()
        assert old in text
        _write(repository, path, text.replace(old, new))
    before = state(repository)
    with pytest.raises(ReleaseError, match=re.escape(said)):
        release(repository, version, DAY)
    assert state(repository) == before


def test_the_repository_must_be_ready(repository: Path) -> None:
    """Nothing is released on another branch, with changes, or over an existing tag; all is said at once."""
    git(repository, "tag", "v0.2.0")
    git(repository, "checkout", "--quiet", "-b", "other")
    (repository / "new").write_text("")
    before = state(repository)
    with pytest.raises(ReleaseError) as raised:
        release(repository, "0.2.0", DAY)
    assert raised.value.problems == [
        "the tag v0.2.0 is there already",
        "a release is made on main, and this is other",
        "the tree has changes that are not committed: see git status",
    ]
    assert state(repository) == before


def test_this_checkout() -> None:
    """Its files take the release of the version that they name, unless it was released already."""
    texts = {path: (ROOT / path).read_text() for path in FILES}
    found = re.search(PLACES["agent/__init__.py"], texts["agent/__init__.py"])
    assert found
    problems = list(faults(texts, found[2]))
    is_released = f"## [{found[2]}] - " in texts[CHANGELOG]
    assert bool(problems) is is_released, problems
