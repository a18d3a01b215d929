# SPDX-License-Identifier: MIT
"""The style of the audit's page, and which colour and pattern stand for which value.

A value's look comes from its fingerprint. So the same value looks the same in each timeline, unless two
values of one credential would look the same: then the later one, by its fingerprint, takes the next look.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HUES = 18
PATTERNS = ("", "1 5", "8 3", "2 2", "12 2 2 2", "4 1", "1 2 6 2", "20 4")
"""Dashes of a bar's border; the first has no border."""
LOOKS = HUES * len(PATTERNS)

_BASE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #1c2126; --dim: #5c6670;
  --line: #d9dee3; --bad: #c22f3d; --good: #1f8a4c; --warn: #b06f00; --bar: 46%; --text: #fff; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2126; --ink: #e4e8ec;
  --dim: #98a2ac; --line: #353b42; --bad: #ff7b86; --good: #5fd08d; --warn: #f0b54c; --bar: 66%;
  --text: #14171b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
html { background: var(--page); }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 .4rem; }
section, details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
section { padding: .9rem 1rem; margin: 1rem 0; }
details { padding: .35rem .8rem; margin: .4rem 0; }
summary { cursor: pointer; } summary time { color: var(--dim); font-variant-numeric: tabular-nums; }
.dim { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); }
.note { color: var(--warn); }
code, .mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em; }
table { border-collapse: collapse; margin: .4rem 0; }
td { padding: .1rem .9rem .1rem 0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, "DejaVu Sans", sans-serif; fill: var(--dim); }
svg text.name { fill: var(--ink); font-size: 12px; }
svg text.print { font-family: ui-monospace, "DejaVu Sans Mono", monospace; fill: var(--text);
  font-size: 10px; }
svg line { stroke: var(--line); } svg line.back { stroke: var(--dim); stroke-dasharray: 2 3; }
svg .mark-good { fill: var(--good); } svg .mark-bad { fill: var(--bad); }
svg .mark-note { fill: var(--warn); }
svg .open { opacity: .85; }
.unknown { fill: var(--line); }
.many { fill: var(--dim); opacity: .45; } a:hover .many { opacity: .8; }
nav { columns: 14rem; font-size: .9em; } nav a { display: block; color: inherit; }
nav a.bad { color: var(--bad); }
.filter { display: block; margin: .4rem 0; }
body:has(#only-bad:checked) .fine { display: none; }
body:has(section:target) section:not(:target) { display: none; }
@media print { :root { --page: #fff; --card: #fff; --ink: #000; --dim: #444; --line: #bbb; --bad: #a00;
  --good: #060; --warn: #840; --bar: 46%; --text: #fff; } body { max-width: none; padding: 0; }
  nav, .filter { display: none; } section, details { break-inside: avoid; border-color: #bbb; }
  rect { print-color-adjust: exact; } }
"""


def _hue(number: int) -> str:
    # Neighbours on the colour wheel differ in lightness, too.
    return f".f{number} {{ fill: hsl({number * 360 // HUES} 60% calc(var(--bar) - {number % 3 * 8}%)); }}"


def _pattern(number: int, dashes: str) -> str:
    return f".d{number} {{ stroke: var(--card); stroke-width: 3; stroke-dasharray: {dashes}; }}"


STYLE = "\n".join(
    [
        _BASE.rstrip(),
        *(_hue(number) for number in range(HUES)),
        *(_pattern(number, dashes) for number, dashes in enumerate(PATTERNS) if dashes),
        "",
    ]
)
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"


def looks(fingerprints: Iterable[str]) -> dict[str, str]:
    """The classes of each value's bars, by fingerprint. Up to `LOOKS` values all look different."""
    taken: set[int] = set()
    found = {}
    for fingerprint in sorted(set(fingerprints)):
        look = int(hashlib.sha256(fingerprint.encode()).hexdigest()[:8], 16) % LOOKS
        while look in taken and len(taken) < LOOKS:
            look = (look + 1) % LOOKS
        taken.add(look)
        pattern, hue = divmod(look, HUES)
        found[fingerprint] = f"f{hue}" + (f" d{pattern}" if pattern else "")
    return found
