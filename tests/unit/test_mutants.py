# SPDX-License-Identifier: MIT
"""The mutation runs themselves: their tables fit the code, and what they count is what they say."""

from __future__ import annotations

import tomllib
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


def test_the_reason_of_a_failure_is_shown() -> None:
    """A reader of the table sees why a test failed, so that a failure of another kind does not count."""
    summary = "FAILED tests/test_x.py::test_y - AssertionError: assert 1 == 2\n1 failed in 0.02s\n"
    assert takeout.reason(f"F\n{summary}") == "AssertionError: assert 1 == 2"
    assert takeout.reason("1 passed in 0.02s\n") == "1 passed in 0.02s"
    assert takeout.reason("") == ""


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ("if a > 1:", "if a >= 1:", True),
        ("raise SealError('no', hint='do')", "raise SealError('XXnoXX', hint='do')", False),
        ("raise SealError('no', hint='do')", "raise SealError('no', hint=None)", False),
        ("x = {'a': 1}", "x = {'XXaXX': 1}", True),
        ("raise SealError(f'{a} no')", "raise SealError(None)", False),
        ("return Wait(f'{a} no', 5)", "return Wait(None, 5)", False),
        ("return Wait(f'{a} no', a)", "return Wait(f'{a} no', None)", True),
        ("return f'{a}: is too large' + a", "return f'{a}: IS TOO LARGE' + a", False),
        ("return f'{a}: is too large' + a", "return f'{a}: is too large' - a", True),
        ("return 'in step'", "return 'IN STEP'", True),
    ],
)
def test_a_changed_message_does_not_count(tmp_path: Path, before: str, after: str, counts: bool) -> None:
    """Words of messages are left out of the score; conditions, constants and keys are in it."""
    body = "\n        pass" if before.startswith("if") else ""
    text = f"def x_f__mutmut_orig(a):\n    {before}{body}\n\ndef x_f__mutmut_1(a):\n    {after}{body}\n"
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/m.py").write_text(text)
    (tmp_path / "agent/m.py.meta").write_text('{"exit_code_by_key": {"credferry.agent.m.x_f__mutmut_1": 0}}')
    (mutant,) = core.read(tmp_path, "agent/m.py")
    assert mutant.is_message is not counts
    assert core.scores([mutant]) == ([core.Score("agent/m.py", 1, 0, 0)] if counts else [])


@pytest.mark.parametrize(
    ("survivors", "listed", "is_good"),
    [
        ((), (), True),
        (("+ b",), (), False),
        (("+ b",), ("+ b",), True),
        (("+ a", "+ b"), ("+ a", "+ b"), False),
    ],
)
def test_a_module_passes_by_its_share_and_its_list(
    survivors: tuple[str, ...], listed: tuple[str, ...], is_good: bool
) -> None:
    """A survivor that is not listed fails the run; too many fail it though each is listed."""
    known = core.Known(frozenset(("agent/m.py", diff) for diff in listed))
    mutants = [
        *(core.Mutant("agent/m.py", "f", noticed=True, is_message=False, diff="+ c") for _ in range(10)),
        *(core.Mutant("agent/m.py", "f", noticed=False, is_message=False, diff=diff) for diff in survivors),
    ]
    (score,) = core.scores(mutants, known)
    assert (score.counted, score.noticed, score.listed) == (10 + len(survivors), 10, len(listed))
    assert score.is_good is is_good


def test_a_listed_change_that_a_test_notices_is_stale() -> None:
    """So is one that is not made any more. Changes of modules that are not in the run may still survive."""
    known = core.Known(
        frozenset(("agent/m.py", diff) for diff in ("+ a", "+ b", "+ c")) | {("agent/n.py", "+ d")}
    )
    mutants = [
        core.Mutant("agent/m.py", "f", noticed=False, is_message=False, diff="+ a"),
        core.Mutant("agent/m.py", "f", noticed=True, is_message=False, diff="+ b"),
    ]
    assert core.stale(mutants, known) == [("agent/m.py", "+ b"), ("agent/m.py", "+ c")]


def test_a_kind_of_survivor_is_listed_in_every_module() -> None:
    """Its expression is looked for in the changed lines; other changes are not listed by it."""
    known = core.known_survivors()
    flags = "- a = os.O_RDONLY | os.O_CLOEXEC\n+ a = os.O_RDONLY & os.O_CLOEXEC"
    for diff, is_listed in ((flags, True), (flags.replace("CLOEXEC", "NOFOLLOW"), False)):
        assert (
            known.has(core.Mutant("agent/m.py", "f", noticed=False, is_message=False, diff=diff))
            is is_listed
        )


def test_the_fast_tests_of_each_core_module_are_there() -> None:
    """A test file that is renamed or moved does not fall out of the list silently."""
    files = {each for module, tests in core.MODULES.items() for each in (module, *tests)}
    assert {each for each in files if not (ROOT / each).is_file()} == set()


def test_known_survivors_have_reasons() -> None:
    """Each listed survivor is of a core module, and each entry says why no test notices it."""
    for module, diff in core.known_survivors().changes:
        assert module in core.MODULES
        assert diff
    file = tomllib.loads(core.SURVIVORS.read_text(encoding="utf-8"))
    assert all(len(each["reason"]) > 20 for each in (*file["survivor"], *file["kind"]))
