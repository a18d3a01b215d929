# SPDX-License-Identifier: MIT
"""Asks a service in a guest every ten milliseconds what it says: ``asker.py SOCKET``.

The service connects to the host as soon as it runs. Each answer that differs from the last, or is the first
on a new connection, is a line of JSON: ``says``, the time ``at`` which it came, and that of the ``last`` one
before it, in milliseconds of the wall clock. Standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

_PERIOD = 0.01
_SILENCE = 30.0


def main() -> None:
    """Entry point."""
    path = sys.argv[1]
    if os.path.exists(path):  # noqa: PTH110 (pathlib takes longer to import than all of this)
        os.unlink(path)  # noqa: PTH108 (see above)
    last = 0.0
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)  # noqa: PTH101, S103 (see above; the VM's user connects)
        listener.listen()
        while True:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(_SILENCE)
                last = _ask(peer, last)


def _ask(peer: socket.socket, last: float) -> float:
    """Ask until the connection breaks. Returns the time of the last answer."""
    says = b""
    while True:
        began = time.monotonic()
        try:
            peer.sendall(b"?\n")
            data = peer.recv(64)
        except OSError:
            return last
        if not data:
            return last
        now = time.time() * 1000
        if data != says:
            sys.stdout.write(json.dumps({"says": data.decode().strip(), "at": now, "last": last}) + "\n")
            sys.stdout.flush()
        says, last = data, now
        time.sleep(max(0.0, began + _PERIOD - time.monotonic()))


if __name__ == "__main__":
    main()
