# SPDX-License-Identifier: MIT
"""The page with timelines, as text: what it may not hold, and what is in its place."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.audit.html import page
from credferry.agent.audit.html_style import LOOKS, looks
from credferry.agent.audit.periods import Period
from credferry.agent.audit.records import Record
from credferry.agent.audit.rotations import Rotation, Story, tell

BEGIN = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
EVIL = '</title></style><script>alert(1)</script><img src=http://x/>"\' onload="x'
_VOID = {"meta", "br", "input"}


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
    looks = [each[0] for each in found]
    assert looks == [looks[0], looks[1], looks[0], "unknown"]
    assert looks[0] != looks[1]
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
        *("table", "tr", "td", "label", "input", "nav", "a"),
    }
    for _, attributes in found:
        assert not {"src", "style", "action"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
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


def rotated(vms: int, times: int) -> tuple[Story, list[Period]]:
    """VMs whose secret was rotated so often; a few restarts failed, and were rolled back."""
    records, periods = [], []
    for number in range(times):
        run = hashlib.sha256(str(number).encode()).hexdigest()[:32]
        value = hashlib.sha256(run.encode()).hexdigest()
        for index in range(vms):
            vm, begin = f"customer-api-gateway-{index:02}", number * 144_000.0 + index * 3
            is_bad = number % 37 == 5 and index % 13 == 3
            ends = (
                [(1.5, Event.RESTART_FAILED), (2.0, Event.ROLLED_BACK)]
                if is_bad
                else [(1.5, Event.LAUNCHED), (2.0, Event.RESTARTED)]
            )
            for seconds, event in [
                (0.0, Event.PUBLISHED),
                (0.1, Event.SEALED),
                (0.5, Event.RESTART_ASKED),
                *ends,
            ]:
                time = BEGIN + timedelta(seconds=begin + seconds)
                message = f"{vm}: {event.label}, generation {number + 1}"
                records.append(
                    Record(time, event, message, vm, run, number + 1, {"TLS_KEY": value}, ("TLS_KEY",))
                )
            ran = period(begin + 1.5, begin + 144_000, value, vm=vm, credential="TLS_KEY")
            periods.append(replace(ran, run=run))
    records.sort(key=lambda record: record.time)
    return tell(records, periods), periods


def test_a_large_fleet_fits_a_page() -> None:
    """40 VMs with 200 rotations make at most 2 MB; each has a line, and a failed one all its steps."""
    story, periods = rotated(40, 200)
    text = page(story, periods)
    assert len(text.encode()) <= 2_000_000
    assert text.count("<tr><td>customer-api-gateway-") + text.count('<details class="rotation"') == 8000
    assert text.count('<details class="rotation"') == sum(each.is_bad for each in story.rotations) > 0
    assert text.count('<a href="#vm-') + text.count('<a class="bad" href="#vm-') == 40
    targets = set(re.findall(r'<a href="#(run-[0-9a-f]{8})">', text))
    assert targets
    assert targets <= set(re.findall(r'<table id="(run-[0-9a-f]{8})">', text))
    assert '<input type="checkbox" id="only-bad">' in text


def test_each_value_looks_different() -> None:
    """As many values as there are looks have one each, by their fingerprints alone; more share them."""
    values = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(LOOKS)]
    assert len(set(looks(values).values())) == LOOKS
    assert looks(reversed(values)) == looks(values)
    assert len(set(looks([*values, "one more"]).values())) == LOOKS
    assert looks(values[:1]) == {values[0]: looks(values[:2])[values[0]]}
