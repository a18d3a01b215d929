# SPDX-License-Identifier: MIT
"""``tell.py SOCKET PORT``: a shell in a guest runs what comes on standard input. Standard library only."""

from __future__ import annotations

import socket
import sys


def main() -> None:
    """Entry point."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(sys.argv[1])
        peer.sendall(f"CONNECT {sys.argv[2]}\n".encode())
        said = b""
        while not said.endswith(b"\n"):
            byte = peer.recv(1)
            if not byte:
                raise SystemExit("the guest does not listen")
            said += byte
        peer.sendall(sys.stdin.buffer.read() + b"\nexit\n")
        while data := peer.recv(4096):
            sys.stdout.buffer.write(data)


if __name__ == "__main__":
    main()
