# SPDX-License-Identifier: MIT
"""The audit's chain: what was done to it is named, and what crashes leave is not held against it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.chain import KEY_CHANGED, Kept, Link, verify
from credferry.agent.audit.records import chain_hash
from credferry.agent.audit.writer import LOST

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = b"a key"
BEGIN = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
Links = list[Link]


def written(
    count: int, *, first: int = 1, previous: str = "", key: bytes = KEY, about: str = "fact"
) -> Links:
    """Records as the agent writes them."""
    links: Links = []
    for number in range(first, first + count):
        fields = (
            f"MESSAGE={about} {number}",
            f"CREDFERRY_SEQUENCE={number}",
            f"CREDFERRY_PREVIOUS={previous}",
        )
        digest = chain_hash(key, fields)
        links.append(Link(number, digest, previous, fields, BEGIN + timedelta(seconds=number), "sealed"))
        previous = digest
    return links


def kept(link: Link, *, sent: int | None = None) -> Kept:
    """The head, with this as the last record."""
    number = link.sequence or 0
    return Kept(number, link.hash, number if sent is None else sent, number)


def edited(links: Links, index: int) -> Links:
    """The same with another message in one of them."""
    changed = replace(links[index], fields=("MESSAGE=another", *links[index].fields[1:]))
    return [*links[:index], changed, *links[index + 1 :]]


WHOLE = written(12)
HONEST: dict[str, tuple[Links, Kept | None]] = {
    "whole": (WHOLE, kept(WHOLE[-1])),
    "the last sent again at each start": ([*WHOLE, WHOLE[-1], WHOLE[-1]], kept(WHOLE[-1])),
    "sent again, and then gone on": ([*WHOLE[:6], WHOLE[5], *WHOLE[6:]], kept(WHOLE[-1])),
    "an old one sent again much later": ([*WHOLE, WHOLE[3]], kept(WHOLE[-1])),
    "the agent goes on while the journal is read": (WHOLE, Kept(9, WHOLE[8].hash, 9, 12)),
    "nothing ever written": ([], None),
}


@pytest.mark.parametrize("case", HONEST)
def test_an_honest_journal(case: str) -> None:
    """What a whole chain looks like, and what repeated sending makes of it, is no finding and no note."""
    links, head = HONEST[case]
    verdict = verify(links, KEY, head)
    assert (verdict.findings, verdict.notes) == ((), ())


NOTED: dict[str, tuple[Links, Kept, str]] = {
    "vacuumed": (WHOLE[7:], kept(WHOLE[-1]), "begins at number 8"),
    "stored but not sent": (WHOLE[:-1], kept(WHOLE[-1], sent=11), "number 12 was stored but not sent"),
    "no journal for a while": (WHOLE[:9], kept(WHOLE[-1], sent=9), "numbers 10 to 12 were stored"),
    "the first was never sent": ([], kept(WHOLE[0], sent=0), "number 1 was stored but not sent"),
}


@pytest.mark.parametrize("case", NOTED)
def test_what_is_told_and_not_held_against_it(case: str) -> None:
    """A journal that forgot its beginning, and a crash between keeping and sending, are told of."""
    links, head, told = NOTED[case]
    verdict = verify(links, KEY, head)
    assert verdict.findings == ()
    assert told in " ".join(verdict.notes)


def test_a_host_with_another_key() -> None:
    """What was written with the key before cannot be checked, which is told; the rest is checked."""
    before = written(5, key=b"another key")
    after = written(4, first=6, previous=before[-1].hash)
    after[0] = replace(after[0], label=KEY_CHANGED)
    verdict = verify([*before, *after], KEY, kept(after[-1]))
    assert verdict.findings == ()
    assert "numbers 1 to 5 cannot be checked" in " ".join(verdict.notes)
    verdict = verify([*before, *after[:1], *after[2:]], KEY, kept(after[-1]))
    assert "number 7 is missing" in " ".join(verdict.findings)


def forged(link: Link) -> Link:
    """A record of the same number and hash that somebody without the key made up."""
    return replace(link, fields=("MESSAGE=forged", f"CREDFERRY_SEQUENCE={link.sequence}"))


DONE: dict[str, tuple[Callable[[Links], Links], list[str]]] = {
    "one removed": (lambda all_: [*all_[:4], *all_[5:]], ["number 5 is missing"]),
    "several removed": (
        lambda all_: [*all_[:3], *all_[5:8], *all_[9:]],
        ["numbers 4 to 5 are missing", "number 9 is missing"],
    ),
    "one edited": (lambda all_: edited(all_, 4), ["number 5 is not authentic"]),
    "the first edited": (lambda all_: edited(all_, 0), ["number 1 is not authentic"]),
    "the last edited": (lambda all_: edited(all_, 11), ["number 12 is not authentic"]),
    "two edited": (lambda all_: edited(edited(all_, 4), 5), ["numbers 5 to 6 are not authentic"]),
    "one added": (
        lambda all_: [*all_[:4], forged(all_[6]), *all_[4:]],
        ["number 7 is not authentic"],
    ),
    "one added at the end": (
        lambda all_: [*all_, replace(forged(all_[0]), sequence=13, hash="0" * 64)],
        ["number 13 is not authentic"],
    ),
    "one added without a number": (
        lambda all_: [*all_, replace(all_[0], sequence=None, fields=())],
        ["a record of 2026-11-23 08:00:01 UTC (sealed) has no number"],
    ),
    "one moved forward": (
        lambda all_: [*all_[:4], *all_[5:9], all_[4], *all_[9:]],
        ["number 5 is out of order"],
    ),
    "one moved back": (
        lambda all_: [*all_[:2], all_[7], *all_[2:7], *all_[8:]],
        ["number 8 is out of order"],
    ),
    "two swapped": (lambda all_: [*all_[:4], all_[5], all_[4], *all_[6:]], ["is out of order"]),
    "the end cut off": (lambda all_: all_[:9], ["missing at the end: numbers 10 to 12 were sent"]),
    "the last cut off": (lambda all_: all_[:11], ["missing at the end: number 12 was sent"]),
    "all removed": (lambda _: [], ["missing at the end: numbers 1 to 12 were sent"]),
    "one removed, and one moved": (
        lambda all_: [*all_[:3], *all_[4:6], *all_[7:10], all_[6], *all_[10:]],
        ["number 4 is missing", "number 7 is out of order"],
    ),
}


@pytest.mark.parametrize("case", DONE)
def test_what_was_done_is_named(case: str) -> None:
    """Each thing that somebody without the key can do is one line, with the numbers that it concerns."""
    do, expected = DONE[case]
    findings = verify(do(WHOLE), KEY, kept(WHOLE[-1])).findings
    assert len(findings) == len(expected), findings
    for finding, part in zip(findings, expected, strict=True):
        assert part in finding


def test_a_chain_begun_anew() -> None:
    """A state directory that was removed, or could not be read, shows: the end before it has no witness."""
    removed = [*WHOLE, *written(3, about="anew")]
    assert "a new chain begins" in verify(removed, KEY, kept(removed[-1])).findings[0]
    lost = [*WHOLE, *written(3, previous=LOST)]
    assert "could not read its record of the last number" in verify(lost, KEY, kept(lost[-1])).findings[0]
    # The numbers are the same as before, and yet neither chain's gap hides behind the other's record.
    gap = [*WHOLE[:1], *WHOLE[2:], *written(3, about="anew")]
    assert "number 2 is missing" in " ".join(verify(gap, KEY, kept(gap[-1])).findings)


def test_a_state_directory_put_back() -> None:
    """An older head than the journal's last record, and a chain that goes on from it, are findings."""
    assert "older copy of the state directory was restored" in verify(WHOLE, KEY, kept(WHOLE[8])).findings[0]
    fork = [*WHOLE, *written(2, first=10, previous=WHOLE[8].hash, about="fork")]
    findings = verify(fork, KEY, kept(fork[-1])).findings
    assert any("two different records with number 10" in finding for finding in findings), findings


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (None, "no record of the last number"),
        (Kept(0, LOST, 0, 0), "cannot be read"),
        (Kept(2**61, "0" * 64, 12, 2**61), "cannot be read"),
    ],
)
def test_a_head_that_tells_nothing(head: Kept | None, told: str) -> None:
    """Without a head the end has no witness, which is a finding, and quickly found."""
    assert told in verify(WHOLE, KEY, head).findings[0]


def test_many_records() -> None:
    """Tens of thousands of records, most of them moved, are checked in seconds."""
    links = written(20_000)
    findings = verify([*links[10_000:], *links[:10_000]], KEY, kept(links[-1])).findings
    assert len(findings) == 1
