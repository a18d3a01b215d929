# SPDX-License-Identifier: MIT
"""Evidence of a start, and the launcher's report of it, as a VM's unit and its launcher leave them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credferry.launcher.handoff import (
    EVIDENCE_PARENT,
    PUSHED_PARENT,
    Channel,
    Manifest,
    Stamp,
    evidence_name,
    stamp_path,
    write_stamp,
)

if TYPE_CHECKING:
    from pathlib import Path


def leave(runtime: Path, manifest: Manifest, invocation: str) -> None:
    """What a start of a VM with this generation leaves below ``/run``."""
    evidence = runtime / EVIDENCE_PARENT / evidence_name(manifest.vm, invocation)
    evidence.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    evidence.write_bytes(manifest.to_bytes())
    directory = stamp_path(manifest.vm, runtime).parent
    directory.mkdir(parents=True, exist_ok=True)
    write_stamp(
        directory,
        Stamp(
            vm=manifest.vm,
            generation=manifest.generation,
            digest=manifest.digest,
            run=manifest.run,
            invocation_id=invocation,
            channel=Channel.API,
            other_oem_bytes=0,
        ),
    )


def leave_proof(runtime: Path, manifest: Manifest) -> None:
    """What the push unit of a VM leaves below ``/run`` once the guest has proved that it holds this."""
    directory = runtime / PUSHED_PARENT
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in (f"{manifest.vm}@before", manifest.vm):
        (directory / name).write_bytes(manifest.to_bytes())


def remove_proof(runtime: Path, vm: str) -> None:
    """What the push unit of a VM does before a push."""
    (runtime / PUSHED_PARENT / vm).unlink(missing_ok=True)
