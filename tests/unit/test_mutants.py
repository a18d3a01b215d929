# SPDX-License-Identifier: MIT
"""The mutation runs themselves: their tables fit the code, and what they count is what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import core, takeout
from tests.mutants.protections import PROTECTIONS
from tests.mutants.row import Edit, Protection

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("protection", PROTECTIONS, ids=lambda each: each.name)
def test_each_protection_is_in_the_code(protection: Protection) -> None:
    """What a mutation run takes out is there, exactly once: the table cannot fall behind the code."""
    assert protection.tests
    for edit in protection.edits:
        assert (ROOT / edit.file).read_text(encoding="utf-8").count(edit.old) == 1, edit


def test_a_text_that_is_gone_is_noticed(tmp_path: Path) -> None:
    """A change that finds nothing to change is an error, and no protection without effect."""
    (tmp_path / "file").write_text("twice twice")
    for old in ("never", "twice"):
        with pytest.raises(ValueError, match="not once"):
            takeout.apply(Edit("file", old, ""), tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ("if a > 1:", "if a >= 1:", True),
        ("raise SealError('no', hint='do')", "raise SealError('XXnoXX', hint='do')", False),
        ("raise SealError('no', hint='do')", "raise SealError('no', hint=None)", False),
        ("x = {'a': 1}", "x = {'XXaXX': 1}", True),
        ("raise SealError(f'{a} no')", "raise SealError(None)", False),
    ],
)
def test_a_changed_message_does_not_count(tmp_path: Path, before: str, after: str, counts: bool) -> None:
    """Words of messages are left out of the score; conditions, constants and keys are in it."""
    body = "\n        pass" if before.startswith("if") else ""
    text = f"def x_f__mutmut_orig(a):\n    {before}{body}\n\ndef x_f__mutmut_1(a):\n    {after}{body}\n"
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/m.py").write_text(text)
    (tmp_path / "agent/m.py.meta").write_text('{"exit_code_by_key": {"agent.m.x_f__mutmut_1": 0}}')
    (mutant,) = core.read(tmp_path, "agent/m.py")
    assert mutant.is_message is not counts
    assert core.scores([mutant]) == ([core.Score("agent/m.py", 0, 1)] if counts else [])


def test_known_survivors_have_reasons() -> None:
    """Each listed survivor is of a core module and says why no test notices it."""
    for module, diff in core.known_survivors():
        assert module in core.MODULES
        assert diff
