# SPDX-License-Identifier: MIT
"""What the Debian package has of others: each library pinned, each file known by its hash, and all of it."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from docs.generate.files import ROOT

if TYPE_CHECKING:
    from pathlib import Path

LIST = ROOT / "contrib/debian/requirements.txt"
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pinned() -> dict[str, Requirement]:
    """Each library of the list, by name. Fails for a line that is no pin with its hashes."""
    found = {}
    text = "\n".join(line for line in LIST.read_text().splitlines() if not line.startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        pin, *hashes = line.split(" --hash=")
        requirement = Requirement(pin)
        assert [each.operator for each in requirement.specifier] == ["=="], line
        assert hashes, line
        assert all(_HASH.fullmatch(f"--hash={each.strip()}") for each in hashes), line
        assert requirement.name not in found
        found[requirement.name] = requirement
    return found


def test_each_library_is_pinned_and_hashed() -> None:
    """Each line of the list is one version, and has at least one SHA-256."""
    assert len(pinned()) > 8


def test_the_list_is_what_the_project_asks_for() -> None:
    """Each of the project's dependencies is in it, in a version that pyproject.toml allows."""
    script = ROOT / "contrib/debian/requirements"
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=True)
    asked = [Requirement(line) for line in done.stdout.splitlines()]
    assert len(asked) > 5
    found = pinned()
    for requirement in asked:
        (version,) = (each.version for each in found[requirement.name].specifier)
        assert requirement.specifier.contains(version), f"{requirement}: run `make requirements`"


def test_the_build_takes_what_is_pinned_only() -> None:
    """The package's rules have pip compare hashes, and build nothing of source packages."""
    rules = (ROOT / "contrib/debian/rules").read_text()
    (command,) = re.findall(r"-m pip (?:.*\\\n)*.*", rules)
    for option in ("--require-hashes", "--only-binary :all:", "--requirement debian/requirements.txt"):
        assert option in command


@pytest.mark.parametrize("line", ["mdurl\n", "mdurl==0.1.2\n", f"mdurl==0.1.2 --hash=sha256:{'0' * 64}\n"])
def test_pip_refuses_what_is_not_pinned(tmp_path: Path, line: str) -> None:
    """With the rules' options: no version, no hash, and a file of another hash end the build."""
    (tmp_path / "mdurl-0.1.2-py3-none-any.whl").write_bytes(b"another file")
    (tmp_path / "list").write_text(line)
    options = ["--isolated", "--quiet", "install", "--no-index", "--find-links", str(tmp_path)]
    options += ["--target", str(tmp_path / "target"), "--require-hashes", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", *options, "--requirement", str(tmp_path / "list")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "hash" in done.stderr.lower()
    assert not (tmp_path / "target/mdurl").exists()
