# SPDX-License-Identifier: MIT
"""Evidence of a start, and the launcher's report of it, as a VM's unit and its launcher leave them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credferry.launcher.handoff import (
    EVIDENCE_PARENT,
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
