# SPDX-License-Identifier: MIT
"""The agent's own units: whether they run, start at the next boot, and match their files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from credferry.agent.audit.events import Event
from credferry.agent.doctor import probe, unit_files
from credferry.agent.doctor.chain import AGENT, SEAL
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

_MEMORY_MAX: Final = 512 << 10
"""KiB."""
_THREADS_MAX: Final = 100
_RECENT_SECONDS: Final = 3600
_INSTALL: Final = "install credferry's units, from its package or from contrib/systemd"


def check_agent(chain: Chain) -> Iterator[Finding]:
    """Whether the agent runs, has a watchdog, and starts at the next boot."""
    unit = probe.unit(AGENT)
    yield from _loaded(AGENT, unit, "agent")
    if unit["LoadState"] != "loaded":
        return
    if unit["ActiveState"] == "active":
        yield ok("agent", f"{AGENT} runs, as user {chain.agent_user}")
    else:
        status = unit.get("ExecMainStatus", 0)
        ended = f", its last exit status is {status}" if status else ""
        yield problem(
            "agent",
            f"{AGENT} is {unit['ActiveState']}{ended}",
            why="when a secret rotates, nothing seals it and no VM restarts",
            remedy=f"see journalctl -u {AGENT}, correct the other findings here, then start it",
            commands=[f"systemctl reset-failed {AGENT}", f"systemctl start {AGENT}"],
        )
    yield _enabled(AGENT, unit, "agent.enabled", "after the next boot nothing seals secrets or restarts VMs")
    if unit["ActiveState"] == "active" and unit.get("WatchdogUSec", 0) in {0, 2**64 - 1}:
        yield hint(
            "agent.watchdog",
            f"{AGENT} has no watchdog",
            why="systemd would not notice that the agent hangs",
            remedy="set WatchdogSec=3min",
            commands=unit_files.extend(AGENT, "Service", ["WatchdogSec=3min"], restart=True),
        )


def check_seal(_chain: Chain) -> Iterator[Finding]:
    """Whether the first sealing of this boot was done, and whether the next boot will do one."""
    unit = probe.unit(SEAL)
    yield from _loaded(SEAL, unit, "seal")
    if unit["LoadState"] != "loaded":
        return
    why = "VMs that start with the host may start with older secrets, or not at all"
    if unit["ActiveState"] == "failed":
        yield problem(
            "seal",
            f"{SEAL} has failed, with exit status {unit.get('ExecMainStatus', 0)}",
            why=why,
            remedy=f"see journalctl -u {SEAL}; correct the other findings here, then run it again",
            commands=[f"systemctl restart {SEAL}"],
        )
    elif unit["ActiveState"] == "active":
        yield ok("seal", f"{SEAL} has sealed in this boot")
    else:
        yield hint(
            "seal",
            f"{SEAL} has not run in this boot",
            why=why,
            remedy="run it",
            commands=[f"systemctl start {SEAL}"],
        )
    yield _enabled(SEAL, unit, "seal.enabled", why)


def check_configuration_in_force(chain: Chain) -> Iterator[Finding]:
    """Whether the agent has read the configuration after its last change."""
    unit = probe.unit(AGENT)
    if unit["ActiveState"] != "active" or chain.error is not None:
        return
    if not probe.is_root():
        raise UnseenError("the journal")
    read_at = unit["ExecMainStartTimestamp"] / 1e6
    match = (f"MESSAGE_ID={Event.CONFIGURATION.value}", f"_SYSTEMD_UNIT={AGENT}")
    for line in probe.quiet_lines("journalctl", "-q", "-n", "1", "-o", "json", *match):
        read_at = max(read_at, int(json.loads(line)["__REALTIME_TIMESTAMP"]) / 1e6)
    if chain.file.stat().st_mtime > read_at:
        yield problem(
            "agent.configuration",
            f"{chain.file} has changed since the agent read it",
            why="the agent still uses the previous configuration",
            remedy="reload the agent",
            commands=[f"systemctl reload {AGENT}"],
        )
    else:
        yield ok("agent.configuration", "the agent uses the present configuration")


def check_process(_chain: Chain) -> Iterator[Finding]:
    """How much memory and how many threads the agent uses."""
    unit = probe.unit(AGENT)
    if not unit.get("MainPID"):
        return
    text = probe.text_of(Path(f"/proc/{unit['MainPID']}/status"))
    if text is None:
        raise UnseenError("the agent's process")
    status = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    memory, threads = int(status["VmRSS"].split()[0]), int(status["Threads"])
    said = f"the agent uses {memory >> 10} MiB and {threads} threads"
    if memory > _MEMORY_MAX or threads > _THREADS_MAX:
        yield hint(
            "agent.process",
            said,
            why="the agent needs much less than that",
            remedy="report it, then restart the agent; this restarts no VM",
            commands=[f"systemctl restart {AGENT}"],
        )
    else:
        yield ok("agent.process", said)


def check_journal(_chain: Chain) -> Iterator[Finding]:
    """Whether systemd has restarted the agent, and whether this invocation has logged errors lately."""
    unit = probe.unit(AGENT)
    if unit.get("NRestarts", 0):
        yield hint(
            "agent.restarts",
            f"systemd has restarted the agent {unit['NRestarts']} time(s)",
            why="the agent ended or hung without an order",
            remedy=f"see journalctl -u {AGENT}",
        )
    invocation = bytes(unit.get("InvocationID", [])).hex()
    if not invocation or unit["ActiveState"] != "active":
        return
    if not probe.is_root():
        raise UnseenError("the journal")
    since = f"@{int(time.time()) - _RECENT_SECONDS}"
    match = (f"_SYSTEMD_UNIT={AGENT}", f"_SYSTEMD_INVOCATION_ID={invocation}")
    asked = ("journalctl", "-q", "-p", "err", "--since", since, "-o", "json", *match)
    lines = probe.quiet_lines(*asked)
    if lines:
        yield hint(
            "agent.journal",
            f"{len(lines)} error(s) in the last hour; the last: {json.loads(lines[-1]).get('MESSAGE')}",
            why="the cause may be over already, or be one of the findings below",
            remedy=f"see journalctl -u {AGENT} -p err",
        )
    else:
        yield ok("agent.journal", "no errors in the last hour")


def _loaded(name: str, unit: Mapping[str, Any], check: str) -> Iterator[Finding]:
    match unit["LoadState"]:
        case "loaded":
            if unit["NeedDaemonReload"]:
                yield problem(
                    f"{check}.reload",
                    f"the files of {name} have changed since systemd read them",
                    why="systemd still uses the previous files",
                    remedy="make systemd read them again",
                    commands=unit_files.reload_units(name),
                )
        case "masked":
            yield problem(
                check,
                f"{name} is masked",
                why="systemd cannot start it",
                remedy="unmask it, then start it",
                commands=[*unit_files.unmask(name), f"systemctl start {name}"],
            )
        case state:
            yield problem(check, f"{name}: {state}", why="systemd cannot start it", remedy=_INSTALL)


def _enabled(name: str, unit: Mapping[str, Any], check: str, why: str) -> Finding:
    wanted_by = set(unit.get("WantedBy", [])) | set(unit.get("RequiredBy", []))
    if unit["UnitFileState"].startswith("enabled") or wanted_by - {AGENT}:
        return ok(check, f"{name} starts with the host")
    return problem(
        check,
        f"{name} is not enabled",
        why=why,
        remedy="set services.credferry.enable = true, which enables it; then switch"
        if probe.is_nixos()
        else "enable it",
        commands=() if probe.is_nixos() else [f"systemctl enable {name}"],
    )
