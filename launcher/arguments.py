# SPDX-License-Identifier: MIT
"""The launcher's own arguments."""

from __future__ import annotations

from launcher import cmdline
from launcher.handoff import is_vm_name
from launcher.record import Record, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

USAGE: Final = (
    "usage: credferry-launch --real PATH [--explain] [--hypervisor-version V] [--vm NAME] -- ARGV…\n"
    "       credferry-launch --spec FILE [--real PATH] [--explain] [--hypervisor-version V] [--vm NAME]\n"
    "       credferry-launch --spec FILE --tap-up | --tap-down | --virtiofsd | --shutdown\n"
    "\n"
    "Starts cloud-hypervisor with the unit's credentials as SMBIOS OEM strings. ARGV are its\n"
    "arguments, or FILE says what the VM is. --explain shows what would be started, as JSON, with every\n"
    "value redacted. The last line is for the VM's units: what they do on the host.\n"
)
_HELP: Final = "see credferry-launch --help"
_WITH_VALUE: Final = frozenset({"--real", "--spec", "--hypervisor-version", "--vm"})
_HOST_VERBS: Final = frozenset({"--tap-up", "--tap-down", "--virtiofsd", "--shutdown"})


class Arguments(Record):
    """What is asked for. ``argv`` are cloud-hypervisor's; a spec takes their place.

    ``verb`` is one of those with which a VM's units prepare the host.
    """

    real: str | None = None
    argv: tuple[str, ...] = field(default=(), repr=False)
    explain: bool = False
    version: str | None = None
    vm: str | None = None
    spec: str | None = None
    verb: str | None = None


def parse(words: Sequence[str]) -> Arguments:
    """The arguments of the command line. Raises `LaunchError` (USAGE)."""
    flags: set[str] = set()
    values: dict[str, str] = {}
    own, dashes, argv = _halves(words)
    while own:
        word = own.pop(0)
        name, equals, value = word.partition("=")
        if word == "--explain" or word in _HOST_VERBS:
            flags.add(word)
        elif name in _WITH_VALUE and (equals or own):
            values[name] = value if equals else own.pop(0)
        else:
            raise cmdline.usage("an argument before -- is not known, or has no value", _HELP)
    verbs = flags & _HOST_VERBS
    spec, real, vm = values.get("--spec"), values.get("--real"), values.get("--vm")
    if spec is None:
        if not dashes:
            raise cmdline.usage("-- is missing before cloud-hypervisor's arguments", _HELP)
        if not real:
            raise cmdline.usage("--real is missing", "give the path of cloud-hypervisor's binary")
    elif argv:
        raise cmdline.usage("--spec and arguments after -- are both given", "write them into its options")
    if len(verbs) > 1 or (verbs and (spec is None or "--explain" in flags)):
        raise cmdline.usage(f"{min(verbs)} stands alone, with --spec", _HELP)
    if vm is not None and not is_vm_name(vm):
        raise cmdline.usage("--vm is not a valid name", "give the instance name of the VM's unit")
    return Arguments(
        real,
        tuple(argv),
        "--explain" in flags,
        values.get("--hypervisor-version"),
        vm,
        spec,
        verbs.pop() if verbs else None,
    )


def _halves(words: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """What stands before the first ``--``, whether there is one, and what stands behind it."""
    words = list(words)
    if "--" not in words:
        return words, False, []
    at = words.index("--")
    return words[:at], True, words[at + 1 :]
