# SPDX-License-Identifier: MIT
"""Builds every guest image that is not in the cache yet."""

from __future__ import annotations

import sys

from .image import guest
from .recipe import Variant

if __name__ == "__main__":
    for variant in Variant:
        image = guest(variant)
        sys.stdout.write(f"{variant}: {image.base}\n")
