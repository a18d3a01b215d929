# SPDX-License-Identifier: MIT
"""Builds what is not in the cache yet: the guest images of each run of the tests, and the vsock device."""

from __future__ import annotations

import sys

from .build import vsock_device
from .image import guest
from .recipe import STABLE

if __name__ == "__main__":
    for variant in STABLE:
        image = guest(variant)
        sys.stdout.write(f"{variant}: {image.base}\n")
    sys.stdout.write(f"vsock: {vsock_device()}\n")
