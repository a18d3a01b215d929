# SPDX-License-Identifier: MIT
"""Runs commands for tests inside a machine, one after the other, once it has said ``ready``.

``python inside.py PORT``: each line that comes from the port is a JSON object with ``argv``, ``stdin`` (in
Base64) and ``env``. Each answer is a line, too: ``status``, and ``stdout`` and ``stderr`` in Base64.
Standard library only.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from io import FileIO


def main() -> None:
    """Serve until the machine is switched off."""
    with Path(sys.argv[1]).open("r+b", buffering=0) as port:
        port.write(b"ready\n")
        while True:
            answer = memoryview(json.dumps(_run(json.loads(_line(port)))).encode() + b"\n")
            while answer:
                answer = answer[port.write(answer) :]


def _line(port: FileIO) -> bytes:
    """The next line. The other side sends no other before it has its answer."""
    parts: list[bytes] = []
    while not parts or not parts[-1].endswith(b"\n"):
        if part := port.read(1 << 16):  # nothing while nobody is connected
            parts.append(part)
    return b"".join(parts)


def _run(asked: dict[str, Any]) -> dict[str, object]:
    given = base64.b64decode(asked["stdin"])
    try:
        done = subprocess.run(
            asked["argv"], input=given, capture_output=True, check=False, env=os.environ | asked["env"]
        )
    except OSError as error:
        done = subprocess.CompletedProcess(asked["argv"], 127, b"", str(error).encode())
    return {
        "status": done.returncode,
        "stdout": base64.b64encode(done.stdout).decode(),
        "stderr": base64.b64encode(done.stderr).decode(),
    }


if __name__ == "__main__":
    main()
