# SPDX-License-Identifier: MIT
"""The option grammar over wide inputs, with a second implementation as oracle."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from credferry.launcher.hypervisor.options import (
    Grammar,
    OptionError,
    merge_oem_strings,
    oem_strings,
    split_commas,
)

MESSY = st.text(alphabet=st.sampled_from('ab=,:[]" \n\té+/@\\'), max_size=14)
SAFE = st.text(
    alphabet=st.sampled_from("ABCabc019.:_=+/-"), min_size=1, max_size=40
)  # what a credential's OEM string is made of


def oracle_split(text: str, *, new: bool) -> list[str] | None:
    """`split_commas` of option_parser/src/lib.rs, told as a regular expression; None is its error."""
    trimmed = text.strip("\t\n\v\f\r \x85\xa0")
    # What is quoted counts for nothing since v48; before, brackets count there too, commas never.
    quoted = re.compile('"[^"]*"')
    if quoted.sub("", trimmed).count('"'):
        return None
    hidden = quoted.sub(
        lambda found: "".join(c if not new and c in "[]" else "q" for c in found[0]), trimmed
    )
    depths = list(itertools.accumulate({"[": 1, "]": -1}.get(char, 0) for char in hidden))
    if any(depth < 0 for depth in depths) or (depths and depths[-1]):
        return None
    cuts = [i for i, char in enumerate(hidden) if char == "," and depths[i] == 0]
    pieces = [trimmed[a + 1 : b] for a, b in itertools.pairwise([-1, *cuts, len(trimmed)])]
    return pieces if new else [piece.replace('"', "") for piece in pieces]


def oracle_strings(option: str, *, new: bool) -> list[str] | None:
    """The OEM strings that `PlatformConfig::parse` makes of an option that holds nothing else."""
    pieces = oracle_split(option, new=new)
    if pieces is None or len(pieces) != 1 or "=" not in pieces[0]:
        return None
    value = pieces[0].split("=", 1)[1].strip("\t\n\v\f\r \x85\xa0")
    if not value:
        return []
    inner = value.strip("[]")
    return oracle_split(inner, new=new) if new else inner.split(",")


@given(MESSY, st.sampled_from(Grammar))
def test_any_text_is_split_as_the_oracle_splits_it(text: str, grammar: Grammar) -> None:
    """Same pieces, same refusals."""
    want = oracle_split(text, new=grammar is not Grammar.UP_TO_47)
    try:
        assert split_commas(text, grammar) == want
    except OptionError:
        assert want is None


@given(st.lists(MESSY, max_size=4), st.lists(MESSY, max_size=4), st.sampled_from(Grammar))
def test_a_merge_is_read_by_the_oracle_as_old_then_new(
    old: list[str], new: list[str], grammar: Grammar
) -> None:
    """Whatever strings there are: cloud-hypervisor gets exactly them in order, or somebody refuses them."""
    option = f"oem_strings=[{','.join(old)}]"
    before = oracle_strings(option, new=grammar is not Grammar.UP_TO_47)
    try:
        merged = merge_oem_strings(option, new, grammar)
    except OptionError:
        return
    # Unbalanced brackets can make another key of a string: cloud-hypervisor refuses it before and after.
    want = None if before is None else [*before, *new]
    assert oracle_strings(merged, new=grammar is not Grammar.UP_TO_47) == want


@given(
    st.lists(SAFE, min_size=1, max_size=8), st.lists(SAFE, min_size=1, max_size=8), st.sampled_from(Grammar)
)
def test_credential_strings_always_merge(old: list[str], new: list[str], grammar: Grammar) -> None:
    """Base64 behind a valid name goes into every version's grammar, and comes out of it."""
    merged = merge_oem_strings(f"oem_strings=[{','.join(old)}],uuid=u", new, grammar)
    assert oem_strings(merged, grammar) == [*old, *new]
    assert merged.endswith(",uuid=u")
