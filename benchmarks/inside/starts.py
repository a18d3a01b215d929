# SPDX-License-Identifier: MIT
"""How long commands take from their start to the end of their first process, in turn, so many times.

Standard input is JSON: ``commands`` (name to argument vector), ``environment``, ``directory``, ``times``.
Standard output is name to milliseconds, as JSON. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Entry point."""
    asked = json.load(sys.stdin)
    os.chdir(asked["directory"])
    environment = {**os.environ, **asked["environment"]}
    null = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
    taken: dict[str, list[float]] = {name: [] for name in asked["commands"]}
    for turn in range(asked["times"] + 2):
        for name, words in asked["commands"].items():
            began = time.perf_counter()
            pid = os.posix_spawn(words[0], words, environment, file_actions=actions)
            _, status = os.waitpid(pid, 0)
            took = (time.perf_counter() - began) * 1000
            if status:
                raise SystemExit(f"{name}: status {status}")
            if turn > 1:  # files are in memory by then
                taken[name].append(took)
            time.sleep(0.005)  # a child that is left ends
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    main()
