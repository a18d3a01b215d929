# SPDX-License-Identifier: MIT
"""``credferry-launch``: runs in place of cloud-hypervisor's binary, and becomes cloud-hypervisor."""

from __future__ import annotations

import os
import sys

from credferry.launcher import arguments, credentials, hardening, journal, plan
from credferry.launcher.errors import Exit, LaunchError, failed, usage
from credferry.launcher.handoff import MESSAGE_ID_LAUNCH_REFUSED, RUNTIME_PARENT
from credferry.launcher.hypervisor import version
from credferry.launcher.hypervisor.options import Grammar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, NoReturn

    from credferry.launcher.arguments import Arguments
    from credferry.launcher.credentials import Delivered
    from credferry.launcher.handoff import Manifest
    from credferry.launcher.spec.model import Spec

_INTERNAL: Final = 70
_QUESTIONS: Final = frozenset({"--version", "-V", "--help", "-h"})
"""cloud-hypervisor's options that start no VM."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: becomes cloud-hypervisor, or exits with one line on standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--help"]:
        sys.stdout.write(arguments.USAGE)
        sys.exit(0)
    if words == [arguments.QUESTIONS]:
        from credferry.launcher import questions  # noqa: PLC0415 (not for a VM's start)

        questions.answer_all(sys.stdin, sys.stdout, lambda each: _status(arguments.parse, each))
        return
    sys.exit(_status(_asked, words))


def _asked(words: Sequence[str]) -> Arguments:
    """The parsed arguments. Does not return for ``--root-program`` and ``--push``. Raises `LaunchError`."""
    if words[:1] == [arguments.ROOT_PROGRAM]:
        from credferry.launcher import root_program  # noqa: PLC0415 (not for a VM's start itself)

        root_program.become(words[1:])
    if words[:1] == [arguments.PUSH]:
        from credferry.launcher import pushing  # noqa: PLC0415 (not for a VM's start)

        sys.exit(pushing.answer(words[1:]))
    return arguments.parse(words)


def _status(read: Callable[[Sequence[str]], Arguments], words: Sequence[str]) -> int:
    """Do what the words ask, as ``read`` reads them. Reports a refusal. Returns the exit status."""
    manifests: list[Manifest] = []
    try:
        _run_or_refuse(read(words), manifests)
    except LaunchError as error:
        _report(error, manifests, quiet=arguments.is_question(words))
        return error.status
    except Exception as error:  # noqa: BLE001 (any exception's text may hold a value)
        sys.stderr.write(f"credferry-launch: internal error: {type(error).__name__}: please report it\n")
        return _INTERNAL
    return 0


def _run_or_refuse(asked: Arguments, manifests: list[Manifest]) -> None:
    """Do what the arguments ask. If resources are short for a moment, raises `LaunchError` (LATER)."""
    try:
        _run(asked, manifests)
    except (OSError, MemoryError) as error:
        refused = failed("the launcher cannot go on", error, hint="", status=Exit.USAGE)
        if refused.status is Exit.LATER:
            raise refused from None
        raise


def _run(asked: Arguments, manifests: list[Manifest]) -> None:
    """Do what the arguments ask. Adds the generation's manifest to ``manifests``, for a refusal's report."""
    if asked.spec is not None:
        from pathlib import Path  # noqa: PLC0415 (VMs of microvm.nix do not need it)

        from credferry.launcher.spec import reading  # noqa: PLC0415 (not for VMs of microvm.nix)

        vm = reading.load(Path(asked.spec))
        if asked.vm not in {None, vm.name}:
            raise usage(f"the spec is for VM {vm.name}, not for {asked.vm}", "correct --vm")
        if asked.verb is not None:
            _on_host(asked.verb, vm)
            return
        asked = asked.but(real=asked.real or vm.hypervisor, vm=vm.name)
        _start(asked, manifests, vm)
    elif set(_without_program(asked.argv)) & _QUESTIONS and not (asked.explain or asked.check):
        _become(asked.real or "", _without_program(asked.argv))
    else:
        _start(asked, manifests, None)


def _on_host(verb: str, vm: Spec) -> None:
    from credferry.launcher.spec import host  # noqa: PLC0415 (not for a VM's start itself)

    match verb:
        case "--tap-up":
            host.tap_up(vm)
        case "--tap-down":
            host.tap_down(vm)
        case "--virtiofsd":
            host.virtiofsd(vm)
        case _:
            pid = os.environ.get("MAINPID", "")
            if not pid.isdecimal():
                raise usage("$MAINPID is not set", "use --shutdown only in ExecStop= of the VM's unit")
            host.shutdown(vm, int(pid))


def _start(asked: Arguments, manifests: list[Manifest], vm: Spec | None) -> None:
    hardening.forbid_core_dumps()
    if asked.check is not None:
        from credferry.launcher import check  # noqa: PLC0415 (not on a VM's boot path)

        delivered: Delivered | None = check.delivered(asked.check, asked.vm)
    else:
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        delivered = credentials.read(directory) if directory else None
    manifests += [delivered.manifest] if delivered else []
    real = asked.real or ""
    text, major = _version(asked.version, real)
    runtime = _runtime(delivered.manifest.vm if delivered else asked.vm)
    request = plan.Request(
        real=real,
        argv=_without_program(asked.argv),
        major=major,
        machine=os.uname().machine,
        vm=asked.vm or _unit_s_vm(),
        argv0=_own_name(asked.argv),
        runtime=runtime,
    )
    made = plan.make(_of_spec(request, vm) if vm is not None else request, delivered)
    if asked.check is not None:
        return
    from credferry.launcher import start  # noqa: PLC0415 (after all that can be refused without it)

    if asked.explain:
        from credferry.launcher import explain  # noqa: PLC0415 (not on a VM's boot path)

        events = start.events_fd_number()
        sys.stdout.write(explain.render(made, real=real, version=text, events_fd=events) + "\n")
        return
    if delivered is None:
        raise LaunchError(
            "$CREDENTIALS_DIRECTORY is not set",
            hint="the unit needs LoadCredentialEncrypted=credferry:/var/lib/credferry/vms/%i/current",
            status=Exit.CREDENTIALS,
        )
    if runtime is None or not os.path.isdir(runtime):
        raise LaunchError(
            f"the unit has no runtime directory for VM {delivered.manifest.vm}",
            hint=f"the unit needs RuntimeDirectory={RUNTIME_PARENT}/%i",
            status=Exit.USAGE,
        )
    if not os.access(real, os.X_OK):
        raise LaunchError(
            f"cloud-hypervisor is not at {real}", hint="correct --real", status=Exit.HYPERVISOR
        )
    start.start(made, delivered, real, runtime)


def _of_spec(request: plan.Request, vm: Spec) -> plan.Request:
    from credferry.launcher.spec import (  # noqa: PLC0415 (VMs of microvm.nix do not need it)
        command as speccommand,
    )

    argv = speccommand.arguments(vm, Grammar.of(request.major))
    return request.but(argv=tuple(argv), notify=vm.notify_socket, sockets=vm.sockets)


def _become(real: str, words: tuple[str, ...]) -> NoReturn:
    """Let cloud-hypervisor itself answer, since callers also ask the launcher for its version."""
    try:
        os.execv(real, [real, *words])  # noqa: S606 (no shell is wanted)
    except OSError as error:
        raise failed(
            f"cannot start cloud-hypervisor: {real}",
            error,
            hint="correct --real",
            status=Exit.HYPERVISOR,
        ) from None


def _version(asked: str | None, real: str) -> tuple[str, int]:
    if asked is None:
        cache = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
        return version.ask(real, cache or None)
    given = version.parse(asked)
    if given is None:
        raise usage("--hypervisor-version is not a version", "give a version such as 53.0")
    return given


def _unit_s_vm() -> str | None:
    """The VM that the unit's runtime directory names, or None."""
    for directory in os.environ.get("RUNTIME_DIRECTORY", "").split(":"):
        parent, _, vm = directory.rpartition("/")
        if parent.endswith(f"/{RUNTIME_PARENT}"):
            return vm
    return None


def _runtime(vm: str | None) -> str | None:
    """The unit's runtime directory for this VM, or None. ``RuntimeDirectory=`` may name several."""
    for directory in os.environ.get("RUNTIME_DIRECTORY", "").split(":"):
        if vm is not None and directory.endswith(f"/{RUNTIME_PARENT}/{vm}"):
            return directory
    return None


def _without_program(argv: tuple[str, ...]) -> tuple[str, ...]:
    return argv[1:] if argv[:1] and not argv[0].startswith("-") else argv


def _own_name(argv: tuple[str, ...]) -> str | None:
    """The name under which microvm.nix runs its hypervisor (``exec -a``), or None if it is not there."""
    names = (*argv[:1], *sys.orig_argv[:1])
    return next((name for name in names if name.startswith(plan.PROCESS_PREFIX)), None)


def _report(error: LaunchError, manifests: list[Manifest], *, quiet: bool) -> None:
    message = str(error.args[0])
    sys.stderr.write(f"credferry-launch: {message}: {error.hint}\n")
    if quiet:
        import json  # noqa: PLC0415 (not for a VM's start)

        # For programs: both texts may contain ": ".
        sys.stdout.write(json.dumps({"refused": message, "hint": error.hint}) + "\n")
    else:
        journal.send(
            f"The VM was not started: {message}: {error.hint}",
            message_id=MESSAGE_ID_LAUNCH_REFUSED,
            priority=journal.ERROR,
            extra=[pair for manifest in manifests for pair in journal.fields(manifest)],
        )


if __name__ == "__main__":
    main()
