# SPDX-License-Identifier: MIT
"""Evidence and stamps for VMs that run nothing which would leave them: as if each ran what is sealed for it.

Standard input has a line ``VM UNIT`` for each. Run by the agent's own Python, with its modules.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, "/usr/lib/credferry")

from credferry.agent.config import loading as configuration
from credferry.agent.config import model
from credferry.agent.store.opening import open_store
from credferry.launcher.handoff import (
    EVIDENCE_PARENT,
    Channel,
    Stamp,
    evidence_name,
    stamp_path,
    write_stamp,
)


def main() -> None:
    """Entry point."""
    units = dict(line.split() for line in sys.stdin)
    store = open_store(configuration.load(model.DEFAULT_PATH))
    show = ["systemctl", "show", "--property=InvocationID", "--value", "--", *units.values()]
    shown = subprocess.run(show, check=True, capture_output=True, text=True).stdout if units else ""
    for vm, invocation in zip(units, shown.split(), strict=True):
        manifest = store.current(vm)
        if manifest is None:
            raise SystemExit(f"{vm} is not sealed")
        evidence = Path("/run", EVIDENCE_PARENT, evidence_name(vm, invocation))
        evidence.parent.mkdir(exist_ok=True)
        evidence.write_bytes(manifest.to_bytes())
        evidence.chmod(0o600)
        path = stamp_path(vm, Path("/run"))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_stamp(
            path.parent,
            Stamp(vm, manifest.generation, manifest.digest, manifest.run, invocation, Channel.API, 0),
        )


if __name__ == "__main__":
    main()
