# SPDX-License-Identifier: MIT
"""The launcher's own arguments."""

from __future__ import annotations

from credferry.launcher.errors import usage
from credferry.launcher.handoff import is_vm_name
from credferry.launcher.record import FrozenRecord, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from typing import Final

    from credferry.launcher.check import AssumedVm

USAGE: Final = (
    "usage: credferry-launch --real PATH [--explain] [--hypervisor-version V] [--vm NAME] -- ARGV…\n"
    "       credferry-launch --spec FILE [--real PATH] [--explain] [--hypervisor-version V] [--vm NAME]\n"
    "       credferry-launch --spec FILE --tap-up | --tap-down | --virtiofsd | --shutdown\n"
    "       credferry-launch --root-program PATH\n"
    "       credferry-launch --push --vm NAME [--unit UNIT]\n"
    "       credferry-launch --questions\n"
    "       credferry-launch --check [--real PATH | --major N] [--channel api|command] [--kinds LIST]\n"
    "                        [--initrd] [--guest-systemd N] [--plaintext-in-argv] -- ARGV…\n"
    "\n"
    "Starts cloud-hypervisor with the unit's credentials as SMBIOS OEM strings. ARGV are its\n"
    "arguments; or FILE describes the VM. --explain shows what would be started, as JSON, with every\n"
    "value redacted. The options of the third line are for the VM's units, and do work on the host. If\n"
    "root runs them, only root may be able to change FILE and the path to it. --root-program checks PATH\n"
    "in the same way, and then becomes that program.\n"
    "\n"
    "--push sends the unit's generation to the running guest of VM NAME, over the VM's vsock socket. It is\n"
    "for credferry-push@NAME.service. UNIT is the VM's own unit, microvm@NAME.service unless given.\n"
    "\n"
    "--check needs no credentials and starts nothing. It exits with 0 if a VM's start would accept\n"
    "ARGV. Otherwise it prints the reason, on standard output as JSON, and exits with the status of the\n"
    "refusal: 64 for the arguments, 65 for credentials or a limit. LIST has the kinds of the credentials,\n"
    "such as plain,sealed,text, or their names and kinds, such as API_KEY=plain,TOKEN=sealed. Its default\n"
    "is plain. --channel, --initrd, --guest-systemd and --plaintext-in-argv are what the agent's\n"
    "configuration says for the VM.\n"
    "\n"
    "--questions reads many --check and --explain from standard input and answers each, on a line of JSON.\n"
    "credferry doctor uses it.\n"
)
ROOT_PROGRAM: Final = "--root-program"
PUSH: Final = "--push"
QUESTIONS: Final = "--questions"
_HELP: Final = "see credferry-launch --help"
_WITH_VALUE: Final = frozenset({"--real", "--spec", "--hypervisor-version", "--vm"})
_CHECK: Final = "--check"
_CHECK_SWITCHES: Final = frozenset({"--initrd", "--plaintext-in-argv"})
_CHECK_WITH_VALUE: Final = frozenset({"--channel", "--guest-systemd", "--kinds", "--major"})
_HOST_VERBS: Final = frozenset({"--tap-up", "--tap-down", "--virtiofsd", "--shutdown"})
_SWITCHES: Final = frozenset({"--explain", _CHECK}) | _CHECK_SWITCHES | _HOST_VERBS


class Arguments(FrozenRecord):
    """The parsed arguments. ``argv`` are cloud-hypervisor's; a spec replaces them.

    ``verb`` is one of the options for a VM's units, which work on the host. With ``check``, the launcher
    only checks the arguments, for a VM with these credentials.
    """

    real: str | None = None
    argv: tuple[str, ...] = field(default=(), repr=False)
    explain: bool = False
    version: str | None = None
    vm: str | None = None
    spec: str | None = None
    verb: str | None = None
    check: AssumedVm | None = None


def parse(words: Sequence[str]) -> Arguments:
    """The arguments of the command line. Raises `LaunchError` (USAGE)."""
    own, dashes, argv = _halves(words)
    flags, values = read(own, _SWITCHES, _WITH_VALUE | _CHECK_WITH_VALUE, "before --")
    verbs = flags & _HOST_VERBS
    check = _check(flags, values)
    version = values.get("--major", values.get("--hypervisor-version"))
    spec, real, vm = values.get("--spec"), values.get("--real"), values.get("--vm")
    if spec is None:
        if not dashes:
            raise usage("there is no -- before cloud-hypervisor's arguments", _HELP)
        if not real and not (check and version):
            raise usage("--real is missing", "give the path of cloud-hypervisor's binary")
    elif argv:
        raise usage(
            "--spec and arguments after -- are both given",
            "write these arguments into the spec's options",
        )
    if len(verbs) > 1 or (verbs and (spec is None or flags - verbs)):
        raise usage(f"{min(verbs)} can only be combined with --spec", _HELP)
    if vm is not None and not is_vm_name(vm):
        raise usage("--vm is not a valid name", "give the instance name of the VM's unit")
    return Arguments(
        real,
        tuple(argv),
        "--explain" in flags,
        version,
        vm,
        spec,
        verbs.pop() if verbs else None,
        check,
    )


def read(
    words: Sequence[str], switches: AbstractSet[str], valued: AbstractSet[str], where: str
) -> tuple[set[str], dict[str, str]]:
    """The switches among the words, and the values of those that have one. Raises `LaunchError` (USAGE)."""
    flags: set[str] = set()
    values: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word in switches:
            flags.add(word)
        elif name in valued and (equals or left):
            values[name] = value if equals else left.pop(0)
        else:
            raise usage(f"an argument {where} is not known, or has no value", _HELP)
    return flags, values


def is_question(words: Sequence[str]) -> bool:
    """Whether a command line only asks (--explain, --check): its refusal then concerns no VM's start."""
    return not {"--explain", _CHECK}.isdisjoint(_halves(words)[0])


def _check(flags: set[str], values: Mapping[str, str]) -> AssumedVm | None:
    stray = min((flags & _CHECK_SWITCHES) | (values.keys() & _CHECK_WITH_VALUE), default=None)
    if _CHECK not in flags:
        if stray is not None:
            raise usage(f"{stray} goes with --check only", _HELP)
        return None
    if "--explain" in flags:
        raise usage("--explain and --check are both given", "give one of them")
    from credferry.launcher import check  # noqa: PLC0415 (not on a VM's boot path)

    return check.assume(flags, values)


def _halves(words: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """The words before the first ``--``, whether there is a ``--``, and the words after it."""
    words = list(words)
    if "--" not in words:
        return words, False, []
    at = words.index("--")
    return words[:at], True, words[at + 1 :]
