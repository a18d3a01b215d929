# SPDX-License-Identifier: MIT
"""Stamps for VMs that run nothing which would leave one: as if each ran with what is sealed for it.

Standard input has a line ``VM UNIT`` for each. Run by the agent's own Python, with its modules.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, "/usr/lib/credferry")

from agent import config as configuration
from agent.observe import open_store
from launcher.handoff import Channel, Stamp, stamp_path, write_stamp


def main() -> None:
    """Entry point."""
    units = dict(line.split() for line in sys.stdin)
    store = open_store(configuration.load(configuration.DEFAULT_PATH))
    show = ["systemctl", "show", "--property=InvocationID", "--value", "--", *units.values()]
    shown = subprocess.run(show, check=True, capture_output=True, text=True).stdout if units else ""
    for vm, invocation in zip(units, shown.split(), strict=True):
        manifest = store.current(vm)
        if manifest is None:
            raise SystemExit(f"{vm} is not sealed")
        path = stamp_path(vm, Path("/run"))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_stamp(
            path.parent,
            Stamp(vm, manifest.generation, manifest.digest, manifest.run, invocation, Channel.API, 0),
        )


if __name__ == "__main__":
    main()
