# SPDX-License-Identifier: MIT
"""A guest to boot."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import build, newc, overlay, recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .overlay import OverlayEntry
    from .recipe import Variant

# Under emulation a tenth of a boot: the kernel tests its ciphers, and guards against speculation.
_QUICK: Final = "mitigations=off cryptomgr.notests initcall_blacklist=jent_mod_init,crypto_kdf108_init"
COMMAND_LINE: Final = f"{recipe.COMMAND_LINE} {_QUICK}"
"""What a guest's kernel is to be given."""


@dataclass(frozen=True, slots=True)
class Guest:
    """What a variant boots from. ``kernel`` is an ELF image with a PVH entry, as microvm.nix gives it."""

    variant: Variant
    kernel: Path
    base: Path

    def initramfs(self, added: Mapping[str, OverlayEntry], directory: Path, name: str = "initramfs") -> Path:
        """Write the base image with an overlay behind it; returns its path in the given directory."""
        path = directory / name
        shutil.copyfile(self.base, path)
        with path.open("ab") as image:
            image.write(newc.padding(image.tell()))
            image.writelines(newc.archive(overlay.entries(added)))
        return path


def guest(variant: Variant) -> Guest:
    """A variant, built first if the cache does not have it. Raises `debian.BuildError`."""
    base = build.image(variant)
    return Guest(variant, build.kernel() / "vmlinux", base)
