# SPDX-License-Identifier: MIT
"""Checks the repository, writes the version and the changelog's date, commits and tags."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from contrib.release.texts import CHANGELOG, FILES, changed, entries, faults

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

_BRANCH: Final = "main"


class ReleaseError(Exception):
    """The release was not made. ``problems``: what to mend, one sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def release(root: Path, version: str, day: date) -> str:
    """Release a version: commit the dated changelog, and return the name of the annotated tag.

    Raises `ReleaseError`. Then nothing was changed, unless git refused the commit or the tag.
    """
    texts = {path: (root / path).read_text(encoding="utf-8") for path in FILES}
    tag = f"v{version}"
    problems = list(faults(texts, version))
    if not problems and git(root, "tag", "--list", tag):
        problems.append(f"the tag {tag} is there already")
    if (branch := git(root, "rev-parse", "--abbrev-ref", "HEAD").strip()) != _BRANCH:
        problems.append(f"a release is made on {_BRANCH}, and this is {branch}")
    if git(root, "status", "--porcelain"):
        problems.append("the tree has changes that are not committed: see git status")
    if problems:
        raise ReleaseError(problems)

    made = changed(texts, version, day)
    for path, text in made.items():
        (root / path).write_text(text, encoding="utf-8")
    git(root, "commit", "--quiet", "--message", f"Release {version}", "--", *made)
    # Not git's own clean-up: it would drop the changelog's headings as comments.
    message = f"credferry {version}\n\n{entries(texts[CHANGELOG])}\n"
    git(root, "tag", "--annotate", "--cleanup=whitespace", "--file=-", tag, given=message)
    return tag


def git(root: Path, *arguments: str, given: str = "") -> str:
    """What git prints. Raises `ReleaseError` with git's own words."""
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ReleaseError([f"git {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}"])
    return done.stdout
