# SPDX-License-Identifier: MIT
"""The launcher's reading of options against the stand-in hypervisor's, which shares no code with it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

from credferry.launcher.errors import LaunchError
from credferry.launcher.hypervisor import cmdline, vmconfig
from credferry.launcher.hypervisor.options import Grammar, parse, plain, split_commas, string_list, words
from tests.fuzz.launcher_targets import COMMAND_WORDS, GRAMMAR_WORDS
from tests.fuzz.target import Target
from tests.support.hypervisor import clap
from tests.support.hypervisor import grammar as standin
from tests.support.hypervisor.grammar import Dialect
from tests.support.hypervisor.options import document
from tests.support.hypervisor.schema import SchemaError
from tests.support.hypervisor.vmconfig import attach, complete

if TYPE_CHECKING:
    from collections.abc import Callable

_UNLIKE: Final = frozenset("\x1c\x1d\x1e\x1f")
"""Blanks to Python's `str.strip`, which the stand-in uses, and none to Rust's trim."""
_WIDE: Final = re.compile(rb"-\+?[0-9]{5,}")
"""A range that the stand-in, which has no bound, would fill the memory with."""
_RELEASE: Final = 53


def grammar(data: bytes) -> None:
    """An option's text, in both grammars: the stand-in hypervisor makes the same of it."""
    text = os.fsdecode(data)
    if _UNLIKE & set(text):
        return
    for ours, theirs in ((Grammar.UP_TO_47, Dialect.UP_TO_V47), (Grammar.FROM_48, Dialect.SINCE_V48)):
        reader = standin.Reader(theirs)
        split = _outcome(split_commas, text, ours)
        assert split == _outcome(standin.split_commas, text, theirs), "it is split otherwise"
        assert _outcome(string_list, text, ours) == _outcome(reader.strings, text), "it is another list"
        assert plain(text, ours) == reader.plain(text), "it is another text"
        keys = [key for key, _ in words(text, ours)] if split is not None else []
        assert _outcome(parse, text, keys, ours) == _outcome(reader.pairs, text, keys), "it has other values"


def vm(data: bytes) -> None:
    """A command line that NULs divide: read by the stand-in, or made a document by us, it is the same VM."""
    text = data.decode(errors="replace")
    if _WIDE.search(data) or _UNLIKE & set(text):
        return
    argv = text.split("\0")
    theirs = _outcome(_read_by_standin, argv)
    try:
        ours = vmconfig.convert(cmdline.parse(argv), _RELEASE)
    except LaunchError:
        return
    if theirs is None:  # it knows less than we do: what microvm.nix generates
        return
    made = complete(ours.document)
    if ours.add_net:
        added = [attach(complete({"net": [net.config]})["net"][0], list(net.fds)) for net in ours.add_net]
        made["net"] = [*made.get("net", ()), *added]
    assert _without_chance(made) == _without_chance(theirs), "it is another VM"


def _read_by_standin(argv: list[str]) -> Any:  # noqa: ANN401 (JSON)
    given = document(clap.parse(argv), (_RELEASE, 0))
    config = complete(given)
    nets = zip(config.get("net", ()), given.get("net", ()), strict=True)
    if attached := [attach(net, each.get("fds", [])) for net, each in nets]:
        config["net"] = attached
    return config


def _without_chance(config: Any) -> Any:  # noqa: ANN401 (JSON)
    """Without what is drawn by lot where it is not given."""
    for net in config.get("net", ()):
        net.pop("mac", None)
    return config


def _outcome(parser: Callable[..., object], *arguments: object) -> Any:  # noqa: ANN401 (whatever it gives)
    try:
        return parser(*arguments)
    except (ValueError, clap.UsageError, SchemaError):  # options' own errors, on both sides, are the first
        return None


TARGETS: Final = (
    Target("grammar", grammar, GRAMMAR_WORDS, length_max=128),
    Target("vm", vm, COMMAND_WORDS, length_max=1024),
)
