# SPDX-License-Identifier: MIT
"""The page with timelines, as text: what it may not hold, and what is in its place."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.audit.html import page
from credferry.agent.audit.periods import Period
from credferry.agent.audit.records import Record
from credferry.agent.audit.rotations import Rotation, Story, tell

BEGIN = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
EVIL = '</title></style><script>alert(1)</script><img src=http://x/>"\' onload="x'
_VOID = {"meta", "br"}


class _Elements(HTMLParser):
    """The page's elements with their attributes; fails where they are not nested as they should be."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag


def elements(text: str) -> list[tuple[str, dict[str, str | None]]]:
    """All elements of a page."""
    parser = _Elements()
    parser.feed(text)
    parser.close()
    return parser.found


def period(
    begin: float, end: float | None, value: str, *, vm: str = "web", credential: str = "KEY"
) -> Period:
    """A VM ran a value, from so many seconds to so many."""
    ends = BEGIN + timedelta(seconds=end) if end is not None else None
    begins = BEGIN + timedelta(seconds=begin)
    return Period(vm, f"{vm}.service", 1, begins, ends, "stopped", None, {credential: value}, "run", "api")


def bars(text: str) -> list[tuple[str, float, float]]:
    """Class, place and width of each bar."""
    found = []
    for tag, attributes in elements(text):
        if tag == "rect":
            x, width = attributes["x"], attributes["width"]
            assert x
            assert width
            found.append(((attributes["class"] or "").split()[0], float(x), float(width)))
    return found


def test_bars_are_where_their_moments_are() -> None:
    """A bar begins and ends where its period does on the axis; one value has one colour, also later on."""
    periods = [period(0, 100, "aa"), period(100, 200, "bb"), period(200, 300, "aa"), period(300, 400, "")]
    begin = BEGIN.timestamp()
    found = bars(page(Story((), ()), periods, since=begin, until=begin + 400))
    assert [each[0] for each in found] == ["f0", "f1", "f0", "unknown"]
    width = found[0][2]
    for number, (_, x, each) in enumerate(found):
        assert each == pytest.approx(width, abs=0.2)
        assert x == pytest.approx(found[0][1] + number * width, abs=0.2)
    assert found[3][1] + width == pytest.approx(1000 - 12, abs=0.2)


def test_only_what_is_within_the_bounds() -> None:
    """What lies outside is not drawn, and what reaches beyond is cut off."""
    periods = [period(0, 10, "aa"), period(10, 60, "bb"), period(60, None, "cc")]
    begin = BEGIN.timestamp()
    found = bars(page(Story((), ()), periods, since=begin + 20, until=begin + 40))
    assert [(round(x), round(width)) for _, x, width in found] == [(170, 818)]


def test_nothing_from_the_journal_is_obeyed() -> None:
    """Whatever names and messages hold is text: no element, no attribute and no address comes of it."""
    record = Record(BEGIN, Event.HELD, EVIL, EVIL, "", None)
    rotation = Rotation(EVIL, EVIL, changed={EVIL: EVIL})
    story = tell([Record(BEGIN, Event.PUBLISHED, EVIL, EVIL, EVIL, 1, {EVIL: EVIL})])
    rotation.steps = story.rotations[0].steps
    text = page(
        Story((rotation, *story.rotations), (record,)), [period(0, 1, EVIL, vm=EVIL, credential=EVIL)]
    )
    found = elements(text)
    assert {tag for tag, _ in found} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "section", "svg"),
        *("line", "text", "rect", "circle", "path", "details", "summary", "time", "b", "div", "code"),
        *("table", "tr", "td"),
    }
    for _, attributes in found:
        assert not {"src", "href", "style", "action"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)  # noqa: S314 (our own, and to be well-formed)


def test_the_policy_lets_only_the_page_s_own_style_in() -> None:
    """No scripts, no addresses, no other style: the policy says the hash of the style that is there."""
    text = page(Story((), ()), [])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert policy
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1].startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text


@pytest.mark.parametrize("seconds", [0.5, 30, 4000, 90_000, 3_000_000, 400_000_000])
def test_axes_of_any_length(seconds: float) -> None:
    """From half a second to a dozen years there are a few ticks, and never many."""
    text = page(Story((), ()), [period(0, seconds, "aa")])
    assert 1 <= text.count("<line ") <= 9
