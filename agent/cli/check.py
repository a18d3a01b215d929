# SPDX-License-Identifier: MIT
"""``credferry check``: the configuration, and whether this host can do what it says. Changes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, print_json
from credferry.agent.cli.selection import SomeVmArguments
from credferry.agent.cli.tables import print_table
from credferry.agent.cli.terminal import warn
from credferry.agent.config.choosing import chosen
from credferry.agent.config.loading import load
from credferry.agent.config.model import Config, SealKey
from credferry.agent.config.secrets import source_key
from credferry.agent.errors import ConfigurationError, CredferryError, ExitStatus
from credferry.agent.printable import printable
from credferry.agent.store.records import Way

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.arguments import Verdict

RunnerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--runner",
        help="Check this microvm-run for the VM instead of the one that its unit starts. Can be repeated.",
        metavar="VM=FILE",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("check")
    def check(
        vms: SomeVmArguments = None,
        *,
        config: ConfigOption = DEFAULT_CONFIG,
        json: JsonOption = False,
        runner: RunnerOption = None,
    ) -> None:
        """Check the configuration file, and show what each VM gets.

        If systemd has a VM's unit, the launcher also checks its arguments for cloud-hypervisor. Ends with
        status 1 if the launcher would refuse to start a VM.
        """
        loaded = load(config)
        _check_seen(loaded)
        _warn_of_fleet(loaded)
        scripts = _scripts(loaded, runner or ())
        wanted = chosen(loaded, vms)
        rows = [
            {
                "vm": vm.name,
                "unit": vm.unit,
                "channel": vm.channel.value,
                "credential": name,
                "kind": vm.kind(name).value,
                "from": credential.origin,
                "change": (Way.PUSH if vm.live and credential.live else Way.RESTART).value,
            }
            for vm in wanted
            for name, credential in vm.credentials.items()
        ]
        if json:
            print_json(rows)
        else:
            # Without a live VM, each change is a restart, and the column would say nothing.
            headings = ["VM", "UNIT", "CHANNEL", "CREDENTIAL", "KIND", "FROM"]
            headings += ["CHANGE"] if any(vm.live for vm in wanted) else []
            print_table(
                headings,
                [list(row.values())[: len(headings)] for row in rows],
                ("CHANNEL", "UNIT", "KIND"),
            )
        if not loaded.vms:
            warn(f"{config}: configures no VM: add a table [vms.NAME] for each")
        _tell_seal_key(loaded)
        _ask_ahead([vm for vm in wanted if vm.name not in scripts])
        if sum([_is_refused(vm, scripts) for vm in wanted]):
            raise typer.Exit(ExitStatus.FAILED)


def _tell_seal_key(config: Config) -> None:
    """Say what systemd decides for ``seal_key = "auto"``, or that it cannot seal as configured."""
    if config.seal_key is SealKey.HOST or os.geteuid() != 0:
        return
    from credferry.agent.doctor.chain import Chain  # noqa: PLC0415 (not for --help)
    from credferry.agent.doctor.finding import Severity, UnseenError  # noqa: PLC0415 (see above)
    from credferry.agent.doctor.tpm import check  # noqa: PLC0415 (see above)

    try:
        for each in check(Chain(config.file)):
            if each.severity is Severity.OK:
                _say(each.what)
            else:
                warn(f"{each.what}: {each.remedy}")
    except (CredferryError, UnseenError) as error:
        warn(f"cannot tell what systemd seals with: {error}")


def _check_seen(config: Config) -> None:
    """Raise `ConfigurationError` for a source that is hidden from one of the agent's units.

    Where systemd does not answer, or has no such unit, the unit that is shipped is what counts.
    """
    from credferry.agent.doctor.source import hidden_from_units  # noqa: PLC0415 (not for --help)

    for _, source, found in hidden_from_units(config):
        key = source_key(source)
        raise ConfigurationError(f"{config.file}: {key}.path: {found.text}", hint=found.remedy)


def _warn_of_fleet(config: Config) -> None:
    """Say if the agent's unit has no network for [fleet]. Where systemd does not answer, nothing is said."""
    if config.fleet is None:
        return
    from credferry.agent.doctor import fleet, probe  # noqa: PLC0415 (not for --help)
    from credferry.agent.doctor.chain import AGENT  # noqa: PLC0415 (see above)
    from credferry.agent.doctor.finding import UnseenError  # noqa: PLC0415 (see above)

    try:
        unit = probe.unit(AGENT)
    except UnseenError:
        return
    lack = fleet.lacking(config.fleet, unit) if unit["LoadState"] == "loaded" else ""
    if lack:
        warn(f"{config.file}: {lack}: {fleet.remedy()}")


def _scripts(config: Config, words: Iterable[str]) -> Mapping[str, Path]:
    """The scripts that ``--runner`` names, by VM. Raises `ConfigurationError` for a VM that there is not."""
    scripts = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not equals or not file:
            raise typer.BadParameter("expected VM=FILE", param_hint="--runner")
        scripts[config.vm(name).name] = Path(file)
    return scripts


def _ask_ahead(vms: Sequence[VmConfig]) -> None:
    from credferry.agent.doctor import probe  # noqa: PLC0415 (not for --help)
    from credferry.agent.doctor.ahead import ask_launchers  # noqa: PLC0415 (see above)

    ask_launchers(vms, lambda vm: probe.unit(vm.unit))


def _is_refused(vm: VmConfig, scripts: Mapping[str, Path]) -> bool:
    """Whether the launcher would refuse the arguments of a VM; says so, and why."""
    from credferry.agent.doctor.finding import UnseenError  # noqa: PLC0415 (not for --help)

    try:
        verdict = _verdict(vm, scripts.get(vm.name))
    except UnseenError as error:
        _say(f"VM {vm.name}: cannot tell whether the launcher accepts its arguments: {error}")
        return False
    if verdict is None or not verdict.refusal:
        return False
    why = f"{verdict.file}: {verdict.refusal}: {verdict.remedy}"
    _say(f"VM {vm.name}: its next start would fail: {why}")
    return True


def _verdict(vm: VmConfig, script: Path | None) -> Verdict | None:
    """The launcher's verdict; None where there is nothing to judge. Raises `UnseenError`."""
    from credferry.agent.doctor import arguments, probe  # noqa: PLC0415 (not for --help)
    from credferry.agent.doctor.finding import UnseenError  # noqa: PLC0415 (see above)

    if script is not None:
        return arguments.judge_script(vm, script)
    try:
        unit = probe.unit(vm.unit)
    except UnseenError:
        return None  # No systemd, as where NixOS builds a host: there are no VMs to judge.
    return arguments.judge(vm, unit) if unit["LoadState"] == "loaded" else None


def _say(what: str) -> None:
    typer.echo(printable(f"credferry: {what}"), err=True)
