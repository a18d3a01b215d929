# SPDX-License-Identifier: MIT
"""cloud-hypervisor's option grammar, against what its own parsers make of the same options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from credferry.launcher.hypervisor.options import (
    Fault,
    Grammar,
    OptionError,
    merge_oem_strings,
    parse,
    plain,
    string_list,
)

DATA = Path(__file__).parents[2] / "data" / "platform-option-vectors.json"
VECTORS = json.loads(DATA.read_text())["cases"]
KEYS = frozenset({"oem_strings", "uuid", "num_pci_segments", "iommu_segments"})
NOTIFY = "io.systemd.credential:vmm.notify_socket=vsock-stream:2:8888"
OURS = "io.systemd.credential.binary:API_KEY=QUJD+/=="


def read(option: str, grammar: Grammar) -> dict[str, Any]:
    """An option as the vectors write it down."""
    try:
        values = parse(option, KEYS, grammar)
        strings, uuid = values.get("oem_strings"), values.get("uuid")
        return {
            "oem_strings": string_list(strings, grammar) if strings else None,
            "uuid": plain(uuid, grammar) if uuid else None,
        }
    except OptionError as error:
        return {"error": "conversion" if error.fault is Fault.CONVERSION else "syntax"}


@pytest.mark.parametrize(
    ("column", "grammar"), [("v47", Grammar.UP_TO_47), ("v48", Grammar.FROM_48)], ids=["v47", "v48"]
)
def test_every_vector_is_read_as_the_real_parser_reads_it(column: str, grammar: Grammar) -> None:
    """All vectors, both grammars: same strings, same uuid, same refusals."""
    wrong = [case["option"] for case in VECTORS if read(case["option"], grammar) != case[column]]
    assert wrong == []
    assert len(VECTORS) == 252


@pytest.mark.parametrize(
    ("column", "grammar"), [("v47", Grammar.UP_TO_47), ("v48", Grammar.FROM_48)], ids=["v47", "v48"]
)
def test_a_merge_keeps_what_was_there_or_is_refused(column: str, grammar: Grammar) -> None:
    """For each vector the merged option gives the old strings and then ours, and the same uuid."""
    merged = 0
    for case in VECTORS:
        want = case[column]
        try:
            result = merge_oem_strings(case["option"], [OURS], grammar)
        except OptionError:
            continue
        if "error" in want:  # an unknown key: not the merge's business
            continue
        merged += 1
        assert read(result, grammar) == {
            "oem_strings": [*(want["oem_strings"] or []), OURS],
            "uuid": want["uuid"],
        }
    assert merged > 140


@pytest.mark.parametrize(
    ("option", "merged"),
    [
        ("", f"oem_strings=[{OURS}]"),
        ("uuid=1-2", f"uuid=1-2,oem_strings=[{OURS}]"),
        (f"oem_strings=[{NOTIFY}]", f"oem_strings=[{NOTIFY},{OURS}]"),
        (f"oem_strings=[{NOTIFY}],uuid=1-2", f"oem_strings=[{NOTIFY},{OURS}],uuid=1-2"),
        (f"num_pci_segments=2,oem_strings={NOTIFY}", f"num_pci_segments=2,oem_strings=[{NOTIFY},{OURS}]"),
        ("oem_strings=", f"oem_strings=[{OURS}]"),
        ('uuid="a,b"', f'uuid="a,b",oem_strings=[{OURS}]'),
    ],
)
@pytest.mark.parametrize("grammar", Grammar)
def test_a_merge_changes_nothing_else(option: str, merged: str, grammar: Grammar) -> None:
    """Other keys stay as they were written, in their order; the notify socket stays first."""
    assert merge_oem_strings(option, [OURS], grammar) == merged


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("oem_strings=[a],uuid=x,oem_strings=[b]", Fault.REPEATED_STRINGS),
        ('oem_strings=[a="]', Fault.SYNTAX),
        ("oem_strings=[a=x]y]", Fault.SYNTAX),
        ("oem_strings", Fault.SYNTAX),
        ("oem_strings=[b=1,a=[x]]", Fault.CONVERSION),
    ],
)
def test_what_cannot_be_merged_is_refused_with_its_reason(option: str, fault: Fault) -> None:
    """Repeated lists (the last would silently win) and what the parser refuses."""
    with pytest.raises(OptionError) as caught:
        merge_oem_strings(option, [OURS], Grammar.FROM_48)
    assert caught.value.fault is fault


def test_a_string_that_a_merge_would_change_is_refused() -> None:
    """A comma cannot be written down: it would make two strings of one."""
    with pytest.raises(OptionError) as caught:
        merge_oem_strings("oem_strings=[a]", ["x,y"], Grammar.FROM_48)
    assert caught.value.fault is Fault.UNFAITHFUL


@pytest.mark.parametrize("option", ['oem_strings=[K=canary"]', "oem_strings=[K=canary,x]y]", "canary"])
def test_a_refusal_never_quotes_the_option(option: str) -> None:
    """cloud-hypervisor prints the whole option; this does not."""
    for grammar in Grammar:
        with pytest.raises(OptionError) as caught:
            merge_oem_strings(option, [OURS], grammar)
        assert "canary" not in f"{caught.value} {caught.value!r}"
