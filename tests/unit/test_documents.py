# SPDX-License-Identifier: MIT
"""The documents agree with themselves and with the code; and what reads them for the tests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from credferry.agent.reconcile.decision import State
from docs.generate.files import ROOT
from docs.generate.pages import FIELDS, STATES
from tests.support.documents import Command, DocumentError, WrittenFile, steps

if TYPE_CHECKING:
    from pathlib import Path

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("how-to/*.md"), ROOT / "README.md", ROOT / "SECURITY.md"])
FOLLOWED = [DOCS / "tutorial.md", *sorted(DOCS.glob("how-to/*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^]]+\]: (\S+)$", re.MULTILINE)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    """Those that GitHub makes of headings: small letters, no punctuation, hyphens for blanks."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each file that a page names is there, and has the heading that is named."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    for found in _LINK.findall(text):
        target, _, anchor = "".join(found).partition("#")
        if ":" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in _anchors(path), f"{target}#{anchor}"


def test_every_page_is_found() -> None:
    """Each document can be reached from the list of them."""
    listed = {"".join(found).partition("#")[0] for found in _LINK.findall((DOCS / "index.md").read_text())}
    pages = {str(page.relative_to(DOCS)) for page in (*DOCS.glob("*.md"), *DOCS.glob("how-to/*.md"))}
    assert pages - listed == {"index.md"}


@pytest.mark.parametrize("page", FOLLOWED, ids=_name)
def test_files_are_named_where_they_are_written(page: Path) -> None:
    """Who follows a page sees which file a block is: its path stands in it."""
    taken = steps(page)
    assert any(isinstance(step, Command) for step in taken)
    for step in taken:
        if isinstance(step, WrittenFile):
            assert step.path in "\n".join(step.content.splitlines()[:2])


def test_fields_of_records() -> None:
    """The page about the journal has each field that the agent and the launcher send, and no other."""
    sources = [*(ROOT / "agent").rglob("*.py"), *(ROOT / "launcher").rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources)
    sent = set(re.findall(r"[\"'](CREDFERRY_[A-Z_]+)(?=[\"'=])", code)) - {"CREDFERRY_CONFIG"}
    assert set(FIELDS) - {"OBJECT_SYSTEMD_UNIT"} == sent


def test_states() -> None:
    """The reference explains each state that a VM can be in."""
    assert set(STATES) == set(State)


@pytest.mark.parametrize(
    ("output", "printed", "agrees"),
    [
        ((), "anything\n", True),
        (("a b",), "a   b  \n", True),
        (("a",), "b\n", False),
        (("a",), "a\nb\n", False),
        (("a", "…"), "a\nb\nc\n", True),
        (("a", "…"), "a\n", True),
        (("…", "c"), "a\nb\nc\n", True),
        (("…", "c", "…"), "a\nb\n", False),
        (("x … z",), "x y z\n", True),
        (("x … z",), "x     z\n", True),
        (("x … z",), "x y\nz\n", False),
        (("(.*)",), "other\n", False),
    ],
)
def test_what_agrees(output: tuple[str, ...], printed: str, *, agrees: bool) -> None:
    """An ellipsis stands for anything in its line, and alone for any lines; blanks count once."""
    assert Command(1, "true", output).agrees(printed) is agrees


def test_how_a_document_is_read(tmp_path: Path) -> None:
    """Files, commands over several lines with their output, statuses, and what is not run."""
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- file: /etc/x -->\n```toml\na = 1\n```\n\n<!-- soon -->\n<!-- status: 3 -->\n"
        "```console\n# one \\\n    two\nout\n# three\n```\n<!-- not run: no -->\n```sh\nrm -rf /\n```\n"
    )
    assert steps(page) == (
        WrittenFile(2, "/etc/x", "a = 1\n"),
        Command(9, "one \\\n    two", ("out",), 0, is_awaited=True),
        Command(12, "three", (), 3, is_awaited=True),
    )


@pytest.mark.parametrize(
    "text",
    [
        "```sh\ntrue\n```\n",
        "```console\nno prompt\n```\n",
        "```console\n# true\n",
        "<!-- not run -->\n```sh\ntrue\n```\n",
        "<!-- soon -->\nsomething else\n",
    ],
)
def test_a_document_that_does_not_say_what_it_means(tmp_path: Path, text: str) -> None:
    """Is an error: nothing that a reader would type goes unnoticed."""
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(DocumentError, match=r"page\.md:1|page\.md:2"):
        steps(tmp_path / "page.md")


def test_the_projects_own_terms_are_explained() -> None:
    """CONTRIBUTING.md and the page on the architecture name the terms that docs/reference.md explains."""
    table = (DOCS / "reference.md").read_text().partition("\n## Terms\n")[2].partition("\n## ")[0]
    explained = re.findall(r"(?m)^\| ([a-z]+) \| [A-Z]", table)
    for page, start in (
        (ROOT / "CONTRIBUTING.md", "own terms are "),
        (DOCS / "architecture.md", "the project means by "),
    ):
        named = re.search(rf"{start}([a-z,\s]+)[.;]", page.read_text())
        assert named is not None, page
        assert re.split(r",\s|\sand\s", named[1]) == explained, page
