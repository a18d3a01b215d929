# SPDX-License-Identifier: MIT
"""The source: what it is, whether its producer is done, and whether the secrets that VMs name are there.

This module reads no secret. It examines only a file's name, kind, mode and size.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from credferry.agent.config.secrets import source_key
from credferry.agent.doctor import probe, unit_files
from credferry.agent.doctor.chain import AGENT, SEAL
from credferry.agent.doctor.finding import UnseenError, hint, ok, problem, unseen
from credferry.agent.sealing.credential import PLAINTEXT_MAX
from credferry.agent.source import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import Config
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding

PRODUCERS: Final = ("sops-install-secrets.service", "agenix.service", "agenix-install-secrets.service")
"""Units that publish secrets. On other hosts an activation script does that."""


def check(chain: Chain) -> Iterator[Finding]:
    """Each source that a VM uses, and each secret in it that a VM names. Without any, the default source."""
    used = {source for vm in chain.vms for source in vm.secrets}
    for source in sorted(used) or [""]:
        yield from _source(chain, source)


def _source(chain: Chain, source: str) -> Iterator[Finding]:
    path = Path(chain.config.source_of(source).path)
    called = f"source {source}: {path}" if source else str(path)
    try:
        top = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        yield problem(
            "source",
            f"{called}: {os.strerror(error.errno or 0)}"
            + (", a dangling link" if path.is_symlink() else ""),
            why="the agent cannot read secrets: VMs that use it keep what they have; a new VM gets none",
            remedy=f"make the producer publish, or correct {source_key(source)}.path",
            commands=[f"systemctl restart {each}" for each in _known_producers()[:1]],
        )
        return
    try:
        yield ok("source", f"{called} is {_kind(path)}")
        for name in sorted({name for vm in chain.vms for name in vm.secrets.get(source, ())}):
            yield _secret(chain, top, source, name)
    finally:
        os.close(top)


def check_seen(chain: Chain) -> Iterator[Finding]:
    """Whether the agent can see the source: its units hide home and temporary directories from it."""
    for unit, _, found in hidden_from_units(chain.config):
        yield problem(
            "source.seen",
            f"{found.text}; this is a setting of {unit}",
            why="the agent sees no source or an empty one, so no published value reaches a VM",
            remedy=found.remedy,
            commands=unit_files.extend(unit, "Service", found.lines, restart=True) if found.lines else (),
        )


def hidden_from_units(config: Config) -> Iterator[tuple[str, str, sandbox.Hidden]]:
    """The agent's units that hide a source from the agent, the source, and the settings that do so.

    Links are followed. If systemd does not answer, or has no such unit, the shipped unit's settings count.
    """
    used = config.secrets or {"": frozenset()}
    for unit in (SEAL, AGENT):  # a restart of the agent starts SEAL first
        try:
            properties = probe.unit(unit)
        except UnseenError:
            properties = {}
        is_known = properties.get("LoadState") == "loaded"
        settings = sandbox.of_unit(properties) if is_known else sandbox.SHIPPED
        for source, secrets in used.items():
            of = config.source_of(source)
            found = sandbox.hidden(settings, of.path, secrets if of.follow_links else ())
            if found is not None:
                yield unit, source, found


def check_producer(chain: Chain) -> Iterator[Finding]:
    """Whether a producer that is a unit has done its work."""
    for name in _producers():
        unit = probe.unit(name)
        if unit["ActiveState"] == "failed" or unit.get("Result", "success") != "success":
            yield problem(
                "source.producer",
                f"{name} has failed",
                why="its secrets are not published, so VMs run on older ones",
                remedy=f"see journalctl -u {name}; then run it again",
                commands=[f"systemctl restart {name}"],
            )
        elif unit["ActiveState"] == "active":
            yield ok("source.producer", f"{name} is done")
        else:
            yield hint(
                "source.producer",
                f"{name} is {unit['ActiveState']}",
                why=f"it has not published to {chain.config.source.path} in this boot",
                remedy="run it",
                commands=[f"systemctl start {name}"],
            )


def _known_producers() -> list[str]:
    try:
        return _producers()
    except UnseenError:  # the source is checked even if systemd does not answer
        return []


def _producers() -> list[str]:
    return [name for name in PRODUCERS if probe.unit(name)["LoadState"] == "loaded"]


def _kind(path: Path) -> str:
    if path.is_symlink():
        return f"a link to {path.readlink()}"
    return (
        "a mount point"
        if path.is_mount()
        else "a directory; the agent waits until files written in place stop changing"
    )


def _secret(chain: Chain, top: int, source: str, name: str) -> Finding:
    using = [vm for vm in chain.vms if name in vm.secrets.get(source, ())]
    users = ", ".join(vm.name for vm in using)
    is_required = any(
        (each.source, each.secret) == (source, name) and each.required
        for vm in using
        for each in vm.credentials.values()
    )
    called = f"secret {name} of {source}" if source else f"secret {name}"
    try:
        status = os.stat(name, dir_fd=top)
    except PermissionError:
        return unseen("source.secret", called)
    except OSError:
        status = None
    wrong = _wrong(status)
    if status is None or wrong:
        if not is_required and wrong in {"is not published", "is empty"}:
            return ok("source.secret", f"{called} {wrong}, and is not required")
        return problem(
            "source.secret",
            f"{called} {wrong}",
            why=f"VMs that use it keep their previous values: {users}",
            remedy="publish it, or correct its name in the configuration, or set required = false",
        )
    if status.st_mode & stat.S_IROTH:
        path = shlex.quote(f"{chain.config.source_of(source).path}/{name}")
        return hint(
            "source.secret",
            f"all users may read {called}",
            why="only the permissions of the producer's directories protect it",
            remedy="make its producer publish it with mode 0400; until then:",
            commands=[f"chmod o-rwx {path}"],
        )
    return ok("source.secret", f"{called} is published, for {users}")


def _wrong(status: os.stat_result | None) -> str:
    if status is None:
        return "is not published"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size == 0:
        return "is empty"
    return f"is over {PLAINTEXT_MAX} bytes" if status.st_size > PLAINTEXT_MAX else ""
