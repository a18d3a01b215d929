# SPDX-License-Identifier: MIT
"""Which VMs of a configuration are meant by names, or by patterns as a shell has them."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING

from credferry.agent.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from credferry.agent.config.model import Config, VmConfig

_PATTERN = re.compile(r"[*?\[]")


def chosen(config: Config, names: Sequence[str] | None) -> list[VmConfig]:
    """The VMs asked for, each once, by default all. A name may be a pattern, as a shell has them.

    Raises `ConfigurationError` for an unknown name, and for a pattern that no VM fits.
    """
    if not names:
        return list(config.vms.values())
    found = chain.from_iterable(_fitting(config, name) for name in names)
    return list({vm.name: vm for vm in found}.values())


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one of these, or fits one of them that is a pattern; always if there are none."""
    return not patterns or any(name == each or fnmatchcase(name, each) for each in patterns)


def is_pattern(name: str) -> bool:
    """Whether a name stands for any number of VMs."""
    return _PATTERN.search(name) is not None


def _fitting(config: Config, name: str) -> list[VmConfig]:
    if not is_pattern(name):
        return [config.vm(name)]
    fitting = [vm for vm in config.vms.values() if fnmatchcase(vm.name, name)]
    if not fitting:
        raise ConfigurationError(
            f"{config.file}: no VM matches the pattern {name!r}",
            hint="list their names with: credferry status",
        )
    return fitting
