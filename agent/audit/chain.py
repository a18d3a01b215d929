# SPDX-License-Identifier: MIT
"""Verifies the audit's chain: finds what was removed, edited, added, moved, or lost at its end. Pure.

A record in the chain contains its number, the hash of the previous record, and a hash over all its fields,
keyed with the host's key. Without that key, every change between the chain's ends is detected. The ends need
more: a journal forgets its oldest records, and only the head in the state directory shows a lost end.

One job: the verification. Its findings are worded where they are found.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from credferry.agent.audit.records import chain_hash
from credferry.agent.audit.writer import LOST
from credferry.agent.digests import are_same

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

_LOST_MAX = 10_000_000
"""A kept head that is further from the journal's last record than this counts as unreadable."""

KEY_CHANGED = "host key"
"""The label of the record that the agent writes when the host has another key."""


@dataclass(frozen=True, slots=True)
class Link:
    """A record of the chain as a journal holds it. Only its place in the journal is trusted."""

    sequence: int | None
    hash: str
    previous: str
    fields: tuple[str, ...]
    time: datetime
    label: str

    def is_authentic(self, key: bytes) -> bool:
        """Whether the record is exactly what the holder of the key wrote."""
        return are_same(chain_hash(key, self.fields), self.hash)


@dataclass(frozen=True, slots=True)
class Kept:
    """What the state directory keeps: the head, and the number of the last record known to be sent.

    ``sequence_after``: the head's number after the journal was read, because the agent may write meanwhile.
    """

    sequence: int
    hash: str
    sent: int
    sequence_after: int


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a chain's verification: faults, other notes, and how many records are authentic."""

    findings: tuple[str, ...]
    notes: tuple[str, ...]
    checked: int


def verify(links: Iterable[Link], key: bytes, kept: Kept | None) -> Verification:
    """Check records, given in the journal's order, against each other and against what is kept."""
    good, bad = _sorted_out(links, key)
    findings: list[str] = []
    notes: list[str] = []
    chains = _chains(good)
    former = _written_with_another_key(chains, bad)
    if former:
        notes.append(
            f"{_numbers(each.sequence or 0 for each in former)} cannot be checked: they were written "
            "with the host's previous key"
        )
    suspects = {each.sequence: each for each in bad if each not in former}
    findings += [_no_link(each) for each in suspects.values() if each.sequence is None]
    edited = [number for number in suspects if number is not None]
    if edited:
        times = [suspects[number].time for number in edited]
        findings.append(
            f"{_numbers(edited)} {_are(edited)} not authentic: "
            f"edited, added, or written with another host key ({_span(times)})"
        )
    known = {*edited, *(each.sequence or 0 for each in former)}
    for number, chain in enumerate(chains):
        findings += _within(chain, known)
        first = chain[0]
        if first.sequence == 1 and first.previous == LOST:
            findings.append(
                f"a new chain begins at {_at(first.time)}, because the agent could not read its record "
                "of the last number (audit.json)"
            )
        elif number and first.sequence == 1:
            findings.append(
                f"a new chain begins at {_at(first.time)}, after number "
                f"{chains[number - 1][-1].sequence}: the state directory was removed. Records that "
                "were lost from the end of the old chain cannot be found"
            )
    if chains and min([chains[0][0].sequence or 1, *known]) > 1:
        start = min([chains[0][0].sequence or 1, *known])
        notes.append(f"the chain begins at number {start}, because the journal holds no older records")
    said, remarks = _end(chains[-1] if chains else [], kept, known)
    return Verification(tuple(findings + said), tuple(notes + remarks), len(good))


@dataclass(frozen=True, slots=True)
class _Good:
    """An authentic record and its place in the journal."""

    sequence: int
    hash: str
    previous: str
    time: datetime
    label: str
    place: int


def _sorted_out(links: Iterable[Link], key: bytes) -> tuple[list[_Good], list[Link]]:
    """Separate the authentic records from the others. Each record appears once."""
    good: dict[str, _Good] = {}
    bad: dict[Link, None] = {}
    for place, link in enumerate(links):
        if link.sequence is None or not link.is_authentic(key):
            bad.setdefault(link)
        elif link.hash not in good:  # the first copy of a record counts
            good[link.hash] = _Good(link.sequence, link.hash, link.previous, link.time, link.label, place)
    return list(good.values()), list(bad)


def _chains(good: Sequence[_Good]) -> list[list[_Good]]:
    """Records of each chain, sorted by number. A record with number 1 begins a new chain."""
    by_hash = {each.hash: each for each in good}
    piece: dict[str, int] = {}
    pieces: list[list[_Good]] = []
    for each in sorted(good, key=lambda each: each.sequence):
        before = by_hash.get(each.previous)
        if before is None or before.hash not in piece:
            piece[each.hash] = len(pieces)
            pieces.append([each])
        else:
            piece[each.hash] = piece[before.hash]
            pieces[piece[each.hash]].append(each)
    chains: list[list[_Good]] = []
    for linked in sorted(pieces, key=lambda linked: min(each.place for each in linked)):
        if linked[0].sequence == 1 or not chains:
            chains.append([])
        chains[-1] += linked
    return [sorted(chain, key=lambda each: (each.sequence, each.place)) for chain in chains]


def _written_with_another_key(chains: list[list[_Good]], bad: list[Link]) -> list[Link]:
    """Records from before the host's key changed, which the present key cannot verify."""
    if not chains or KEY_CHANGED not in {each.label for each in chains[0][:2]}:
        return []
    return [each for each in bad if each.sequence is not None and each.sequence < chains[0][0].sequence]


def _within(chain: list[_Good], known: set[int]) -> list[str]:
    """Faults between a chain's first and last record; ``known`` numbers are reported elsewhere."""
    findings = []
    for one, two in pairwise(chain):
        missing = [number for number in range(one.sequence + 1, two.sequence) if number not in known]
        if missing:
            findings.append(
                f"{_numbers(missing)} {_are(missing)} missing (between {_at(one.time)} and {_at(two.time)})"
            )
        if two.sequence == one.sequence:
            findings.append(
                f"there are two different records with number {two.sequence}: an older copy of the "
                "state directory was restored"
            )
        elif two.sequence == one.sequence + 1 and two.previous != one.hash:
            findings.append(
                f"number {two.sequence} does not continue the record with number {one.sequence}: an "
                "older copy of the state directory was restored"
            )
    if moved := _moved(chain):
        findings.append(
            f"{_numbers(each.sequence for each in moved)} {_are(moved)} out of order: moved, or sent "
            f"late because journald was not running ({_span([each.time for each in moved])})"
        )
    return findings


def _moved(chain: list[_Good]) -> list[_Good]:
    """The fewest records to move until the journal's order is the order of the numbers."""
    ends: list[int] = []  # at index n: the lowest place that ends n + 1 records in order
    lengths = []
    for each in chain:
        length = bisect_left(ends, each.place)
        ends[length : length + 1] = [each.place]
        lengths.append(length)
    wanted = len(ends) - 1
    stays: set[int] = set()
    next_place = 0
    for each, length in zip(reversed(chain), reversed(lengths), strict=True):
        if length == wanted and (not stays or each.place < next_place):
            stays.add(each.place)
            next_place = each.place
            wanted -= 1
    return [each for each in chain if each.place not in stays]


def _end(chain: list[_Good], kept: Kept | None, known: set[int]) -> tuple[list[str], list[str]]:
    """Findings and notes about the end of the last chain."""
    last = chain[-1].sequence if chain else 0
    if kept is None:
        return (
            [
                (
                    "the state directory has no record of the last number (audit.json): cannot tell "
                    "whether records are missing at the end"
                )
            ]
            if chain
            else []
        ), []
    if not kept.hash or kept.hash == LOST or kept.sequence - last > _LOST_MAX:
        return [
            (
                "the record of the last number (audit.json) cannot be read: cannot tell whether "
                "records are missing at the end"
            )
        ], []
    if last > kept.sequence_after:
        text = (
            f"the journal has records up to number {last}, but the state directory (audit.json) "
            f"says {kept.sequence_after}"
        )
        return [f"{text}: an older copy of the state directory was restored"], []
    # Records that the agent wrote while the journal was read are not checked.
    missing = [number for number in range(last + 1, kept.sequence + 1) if number not in known]
    lost = [number for number in missing if number <= kept.sent]
    unsent = [number for number in missing if number > kept.sent]
    findings = (
        [
            (
                f"records are missing at the end: {_numbers(lost)} {_was(lost)} sent, but {_are(lost)} "
                "not in the journal"
            )
        ]
        if lost
        else []
    )
    at_number = {each.sequence: each for each in chain}.get(kept.sequence)
    if at_number is not None and at_number.hash != kept.hash and kept.sequence not in known:
        findings.append(
            f"the record with number {kept.sequence} is not the one that the state directory "
            "(audit.json) names: an older copy of the state directory was restored"
        )
    notes = []
    if unsent:
        notes.append(
            f"{_numbers(unsent)} {_was(unsent)} stored but not sent yet: the agent crashed, or "
            "journald was not running. The agent sends the last records when it next starts or writes "
            "a record"
        )
    return findings, notes


def _no_link(link: Link) -> str:
    return (
        f"a record of {_at(link.time)} ({link.label}) has no number: another program of root sent "
        "it, not credferry"
    )


def _numbers(numbers: Iterable[int]) -> str:
    """Numbers as ranges: ``numbers 3, 5 to 7``."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    is_one = len(ranges) == 1 and len(ranges[0]) == 1
    return ("number " if is_one else "numbers ") + ", ".join(" to ".join(map(str, each)) for each in ranges)


def _was(numbers: Sequence[object]) -> str:
    return "was" if len(numbers) == 1 else "were"


def _are(numbers: Sequence[object]) -> str:
    return "is" if len(numbers) == 1 else "are"


def _span(times: Sequence[datetime]) -> str:
    return _at(min(times)) + ("" if min(times) == max(times) else f" to {_at(max(times))}")


def _at(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")
