# SPDX-License-Identifier: MIT
"""One target under atheris, in a child process, since libFuzzer ends the process that it runs in.

What libFuzzer says is a stream of lines (https://llvm.org/docs/LibFuzzer.html#output); its status is 0
unless an input was found that the target should not have raised at.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from tests.fuzz.target import directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.fuzz.target import Target

_EXECUTED: Final = re.compile(r"stat::number_of_executed_units:\s*([0-9]+)")
_WRITTEN: Final = re.compile(r"Test unit written to (.+)")
_PULSE: Final = re.compile(r"#([0-9]+)\t\w+ +cov: ([0-9]+) ft: [0-9]+ corp: ([0-9]+)")
_SAID_MAX: Final = 200
_MEMORY_MB: Final = 2048


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a target runs: for so many seconds and so many inputs, whichever ends first; 0 is no limit.

    ``input_seconds`` is for one input: one that takes longer is a finding.
    """

    seconds: int
    runs: int = 0
    seed: int = 0
    input_seconds: int = 30


@dataclass(frozen=True, slots=True)
class Pulse:
    """How far a run is."""

    inputs: int
    coverage: int
    corpus: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has ended. ``finding`` is the input that broke the target, ``said`` how."""

    inputs: int
    status: int
    finding: Path | None
    said: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return self.status == 0 and self.finding is None


def fuzz(
    target: Target, limits: Limits, corpus: Sequence[Path], findings: Path, pulse: Callable[[Pulse], None]
) -> Run:
    """Run a target; new inputs go into the first of the corpus directories, and findings into theirs."""
    findings.mkdir(parents=True, exist_ok=True)
    words = directory("words") / f"{target.name}.{os.getpid()}"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words), encoding="ascii")
    flags = [
        f"-artifact_prefix={findings}/{target.name}-",
        *([f"-dict={words}"] if target.words else []),
        f"-max_len={target.length_max}",
        f"-timeout={limits.input_seconds}",
        f"-rss_limit_mb={_MEMORY_MB}",
        "-print_final_stats=1",
        *([f"-max_total_time={limits.seconds}"] if limits.seconds else []),
        *([f"-runs={limits.runs}"] if limits.runs else []),
        *([f"-seed={limits.seed}"] if limits.seed else []),
    ]
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(reading)
        _be_libfuzzer(target, [target.name, *flags, *map(str, corpus)], writing)
    os.close(writing)
    said: list[str] = []
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if found := _PULSE.match(line):
                pulse(Pulse(*(int(number) for number in found.groups())))
            elif len(said) < _SAID_MAX or line.startswith("stat::"):
                said.append(line.rstrip("\n"))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    words.unlink()
    text = "\n".join(said)
    executed, written = _EXECUTED.search(text), _WRITTEN.search(text)
    return Run(
        inputs=int(executed[1]) if executed else 0,
        status=status,
        finding=Path(written[1]) if written else None,
        said=tuple(said),
    )


def _be_libfuzzer(target: Target, argv: list[str], output: int) -> NoReturn:
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        # It is there on some machines only, and has no stubs.
        import atheris  # type: ignore[import-untyped]  # noqa: PLC0415 (only there if it is installed)

        atheris.Setup(argv, target.run)
        atheris.Fuzz()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 (a child that went on would be a second parent)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Neither Python's end, which is the parent's to clean up, nor none: libFuzzer writes the input that
        # broke the target when C's exit() comes.
        ctypes.CDLL(None).exit(status)
    raise AssertionError


def _escaped(word: str) -> str:
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word.encode()
    )
