# SPDX-License-Identifier: MIT
"""What is shipped agrees with itself: generated files with the code, versions with each other."""

from __future__ import annotations

import hashlib
import re
import tomllib
from textwrap import dedent

import pytest

from credferry.agent import __version__
from credferry.agent.cli.application import VERBS
from credferry.launcher import arguments
from docs.generate.commands import commands
from docs.generate.files import ROOT, generated
from docs.generate.man import page
from tests.support import installation

CHANGELOG = ROOT / "CHANGELOG.md"
_FIRST_RELEASE = "d428878bdfd646828696e1b7cdc5c1dc4458b081a16eff19230036eb641a7bc1"
"""The SHA-256 of the changelog's section of 0.1.0."""


@pytest.mark.parametrize("path", sorted(generated()))
def test_generated_files(path: str) -> None:
    """Completions and manual pages are what the code makes of itself now; `make docs` writes them."""
    assert (ROOT / path).read_text() == generated()[path], "run `make docs`"


def test_every_verb_is_in_them() -> None:
    """What is generated knows each verb that the command has."""
    assert {each.path[0] for each in commands().commands} == set(VERBS)


def test_the_launcher_s_options() -> None:
    """Its manual page has each of its options, and no other."""
    known = {*arguments._WITH_VALUE, *arguments._CHECK_WITH_VALUE, *arguments._SWITCHES}
    known |= {arguments.ROOT_PROGRAM, arguments.PUSH, arguments.QUESTIONS, "--unit", "--help"}
    text = (ROOT / "docs/man/credferry-launch.8.md").read_text()
    assert set(re.findall(r"(?m)^- `(--[a-z-]+)`", text)) == known


def test_the_launcher_starts_alike_everywhere() -> None:
    """By the package of Debian, by that of Nix, and in the tests: from the same lines."""
    debian = (ROOT / "contrib/debian/bin/credferry-launch").read_text()
    nix = (ROOT / "contrib/nixos/launcher.nix").read_text().split("<<EOF\n")[1].split("    EOF\n")[0]
    scripts = {
        debian.replace("/usr/lib/credferry", "DIRECTORY"),
        dedent(nix)
        .replace("${python3.interpreter}", "/usr/bin/python3")
        .replace("$out/lib/credferry", "DIRECTORY"),
        installation._LAUNCHER.format(modules="DIRECTORY"),
    }
    assert len({re.sub(r"\n(# SPDX.*|\n)|  # noqa.*", "", script) for script in scripts}) == 1


def test_versions() -> None:
    """The version is written in one place, and it is the changelog's newest, or the one that is to come."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "agent.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    _, unreleased, *sections = re.split(r"(?m)^## ", CHANGELOG.read_text())
    assert unreleased.startswith("[Unreleased]\n")
    released = [re.fullmatch(r"\[(\S+)\] - \d{4}-\d\d-\d\d", each.partition("\n")[0]) for each in sections]
    versions = [match[1] for match in released if match]
    assert len(versions) == len(sections)
    if unreleased.partition("\n")[2].strip():
        assert __version__ not in versions, "what is added after a release belongs to the next version"
    else:
        assert __version__ == versions[0]


def test_a_released_section_never_changes() -> None:
    """A new line belongs under [Unreleased], also where git merges it into a section below."""
    _, *sections = re.split(r"(?m)^(?=## \[\d)", CHANGELOG.read_text())
    (first,) = [each for each in sections if each.startswith("## [0.1.0]")]
    assert hashlib.sha256(first.strip().encode()).hexdigest() == _FIRST_RELEASE


@pytest.mark.parametrize(
    ("markdown", "roff"),
    [
        ("plain", ".PP\nplain"),
        (".hidden 'x", ".PP\n\\&.hidden 'x"),
        ("`a-b` \\ *c*", ".PP\n\\fBa\\-b\\fR \\e \\fIc\\fR"),
        ("one\ntwo", ".PP\none two"),
        ("[a page](x.md)", ".PP\na page"),
        ("- `-x`: what", ".TP\n\\fB\\-x\\fR\nwhat"),
        ("- said: more", ".IP \\(bu 2\nsaid: more"),
        (
            "| key | default | meaning |\n|---|---|---|\n| `k` | `1` | m |",
            ".TP\n\\fBk\\fR\nm. Default: \\fB1\\fR",
        ),
        ("```\n.x\n```", ".PP\n.RS 4\n.nf\n.EX\n\\&.x\n.EE\n.fi\n.RE"),
    ],
)
def test_markdown_in_manual_pages(markdown: str, roff: str) -> None:
    """Becomes what man(7) has for it, and none of it is taken for a request."""
    assert page("x", 8, markdown).partition(".ad l\n")[2] == roff + "\n"
