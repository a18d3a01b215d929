# SPDX-License-Identifier: MIT
"""``credferry-launch``: stands where cloud-hypervisor's binary stands, and becomes it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from launcher import cmdline, credentials, journal, plan, version
from launcher.errors import Exit, LaunchError
from launcher.handoff import MESSAGE_ID_LAUNCH_REFUSED, RUNTIME_PARENT, is_vm_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launcher.handoff import Manifest

USAGE: Final = (
    "usage: credferry-launch --real PATH [--explain] [--hypervisor-version V] [--vm NAME] -- ARGV…\n"
    "\n"
    "Starts cloud-hypervisor with the unit's credentials as SMBIOS OEM strings. ARGV are its\n"
    "arguments. --explain shows what would be started, as JSON, with every value redacted.\n"
)
_INTERNAL: Final = 70
_QUESTIONS: Final = frozenset({"--version", "-V", "--help", "-h"})
"""cloud-hypervisor's options that start no VM."""
_WITH_VALUE: Final = frozenset({"--real", "--hypervisor-version", "--vm"})


@dataclass(frozen=True, slots=True)
class _Arguments:
    real: str
    argv: tuple[str, ...] = field(repr=False)
    explain: bool
    version: str | None
    vm: str | None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: becomes cloud-hypervisor, or exits with one line on standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--help"]:
        sys.stdout.write(USAGE)
        sys.exit(0)
    manifests: list[Manifest] = []
    try:
        _run(_arguments(words), manifests)
    except LaunchError as error:
        _report(error, manifests, quiet="--explain" in words)
        sys.exit(error.status)
    except Exception as error:  # noqa: BLE001 (whatever it is, its text may hold a value)
        sys.stderr.write(f"credferry-launch: internal error: {type(error).__name__}: please report it\n")
        sys.exit(_INTERNAL)


def _run(arguments: _Arguments, manifests: list[Manifest]) -> None:
    """Do what is asked; ``manifests`` takes the generation's, so that a refusal can be told about it."""
    if set(_without_program(arguments.argv)) & _QUESTIONS and not arguments.explain:
        _become(arguments.real, _without_program(arguments.argv))
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    delivered = credentials.read(Path(directory)) if directory else None
    manifests += [delivered.manifest] if delivered else []
    text, major = _version(arguments)
    vm = delivered.manifest.vm if delivered else arguments.vm
    runtime = _runtime(vm)
    made = plan.make(
        plan.Request(
            real=arguments.real,
            argv=_without_program(arguments.argv),
            major=major,
            machine=os.uname().machine,
            vm=arguments.vm,
            argv0=_own_name(arguments.argv),
            runtime=runtime,
        ),
        delivered,
    )
    from launcher import start  # noqa: PLC0415 (after all that can be refused without it)

    if arguments.explain:
        from launcher import explain  # noqa: PLC0415 (not on a VM's boot path)

        events = start.events_fd_number()
        shown = explain.render(made, real=arguments.real, version=text, events_fd=events)
        sys.stdout.write(shown + "\n")
        return
    if delivered is None:
        raise LaunchError(
            "$CREDENTIALS_DIRECTORY is not set",
            hint="the unit needs LoadCredentialEncrypted=credferry:/var/lib/credferry/vms/%i/current",
            status=Exit.CREDENTIALS,
        )
    if runtime is None or not runtime.is_dir():
        raise LaunchError(
            f"the unit has no runtime directory for VM {delivered.manifest.vm}",
            hint=f"the unit needs RuntimeDirectory={RUNTIME_PARENT}/%i",
            status=Exit.USAGE,
        )
    if not os.access(arguments.real, os.X_OK):
        raise LaunchError(
            f"cloud-hypervisor is not at {arguments.real}", hint="correct --real", status=Exit.HYPERVISOR
        )
    start.start(made, delivered, arguments.real, runtime)


def _become(real: str, words: tuple[str, ...]) -> NoReturn:
    """Let cloud-hypervisor answer for itself: what stands in its place is asked for its version, too."""
    try:
        os.execv(real, [real, *words])  # noqa: S606 (no shell is wanted)
    except OSError as error:
        raise LaunchError(
            f"cloud-hypervisor cannot be started: {real}: {error.strerror}",
            hint="correct --real",
            status=Exit.HYPERVISOR,
        ) from None


def _arguments(words: list[str]) -> _Arguments:
    explain = False
    values: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            break
        if word == "--explain":
            explain = True
        elif name in _WITH_VALUE and (equals or rest):
            values[name] = value if equals else rest.pop(0)
        else:
            raise cmdline.usage(
                "an argument before -- is not known, or has no value", "see credferry-launch --help"
            )
    else:
        raise cmdline.usage(
            "-- is missing before cloud-hypervisor's arguments", "see credferry-launch --help"
        )
    real, vm = values.get("--real"), values.get("--vm")
    if not real:
        raise cmdline.usage("--real is missing", "give the path of cloud-hypervisor's binary")
    if vm is not None and not is_vm_name(vm):
        raise cmdline.usage("--vm is not a valid name", "give the instance name of the VM's unit")
    return _Arguments(real, tuple(rest), explain, values.get("--hypervisor-version"), vm)


def _version(arguments: _Arguments) -> tuple[str, int]:
    if arguments.version is None:
        cache = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
        return version.ask(arguments.real, Path(cache) if cache else None)
    given = version.parse(arguments.version)
    if given is None:
        raise cmdline.usage("--hypervisor-version is not a version", "give it as 53.0")
    return given


def _runtime(vm: str | None) -> Path | None:
    """The unit's directory for this VM; ``RuntimeDirectory=`` may name several."""
    for directory in os.environ.get("RUNTIME_DIRECTORY", "").split(":"):
        if vm is not None and directory.endswith(f"/{RUNTIME_PARENT}/{vm}"):
            return Path(directory)
    return None


def _without_program(argv: tuple[str, ...]) -> tuple[str, ...]:
    return argv[1:] if argv[:1] and not argv[0].startswith("-") else argv


def _own_name(argv: tuple[str, ...]) -> str | None:
    """The name that microvm.nix runs its hypervisor under (``exec -a``), where it reached us."""
    names = (*argv[:1], *sys.orig_argv[:1])
    return next((name for name in names if name.startswith(plan.PROCESS_PREFIX)), None)


def _report(error: LaunchError, manifests: list[Manifest], *, quiet: bool) -> None:
    message = str(error.args[0])
    sys.stderr.write(f"credferry-launch: {message}: {error.hint}\n")
    if not quiet:
        journal.send(
            f"The VM was not started: {message}: {error.hint}",
            message_id=MESSAGE_ID_LAUNCH_REFUSED,
            priority=journal.ERROR,
            extra=[pair for manifest in manifests for pair in journal.fields(manifest)],
        )


if __name__ == "__main__":
    main()
