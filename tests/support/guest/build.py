# SPDX-License-Identifier: MIT
"""Builds the guests' kernel, roots and images into the cache."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from . import newc, recipe
from .debian import BuildError, extracted, mmdebstrap, published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .recipe import Variant

_HERE = Path(__file__).parent


def kernel() -> Path:
    """Directory with ``vmlinux`` and the modules of `recipe.KERNEL_MODULES`, uncompressed."""
    return _published("guest-kernel", "the guests' kernel", _build_kernel)


def root(variant: Variant) -> Path:
    """A variant's whole root, as a directory that nobody may write to."""
    return _published(
        f"guest-{variant}-root",
        f"a root with systemd {variant.systemd}",
        lambda place: mmdebstrap(
            variant,
            place,
            "--variant=essential",
            "--include=" + ",".join((*recipe.PACKAGES, *recipe.TPM_PACKAGES.get(variant, ()))),
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in recipe.LEFT_OUT_OF_ROOT),
        ),
    )


def image(variant: Variant) -> Path:
    """A variant's initramfs, uncompressed: unpacking costs more under emulation than copying."""
    modules, source = kernel(), root(variant)

    def build(place: Path) -> None:
        place.mkdir()
        with (place / "initramfs").open("wb") as out:
            out.writelines(newc.archive(_image_entries(source, modules)))

    return (
        _published(f"guest-{variant}-image", f"an initramfs with systemd {variant.systemd}", build)
        / "initramfs"
    )


def vsock_device() -> Path:
    """The program ``vhost-device-vsock`` of a newer Debian, which runs on this one, too."""
    program = recipe.VSOCK_PACKAGE

    def build(place: Path) -> None:
        unpacked = extracted(recipe.VSOCK_SUITE, program, place)
        (unpacked / "usr/bin" / program).rename(place / program)
        shutil.rmtree(unpacked)

    return _published(program, "a vsock device for guests", build) / program


def _published(name: str, what: str, build: Callable[[Path], None]) -> Path:
    return published(name, what, [_HERE / each for each in ("recipe.py", "build.py", "newc.py")], build)


def _build_kernel(place: Path) -> None:
    unpacked = extracted(recipe.KERNEL_SUITE, recipe.KERNEL_PACKAGE, place)
    (place / "vmlinux").write_bytes(_vmlinux(next(unpacked.glob("boot/vmlinuz-*")).read_bytes()))
    for module in recipe.KERNEL_MODULES:
        found = next(unpacked.glob(f"**/kernel/{module}*"))
        data = found.read_bytes()
        (place / Path(module).name).write_bytes(lzma.decompress(data) if found.suffix == ".xz" else data)
    shutil.rmtree(unpacked)


def _vmlinux(image: bytes) -> bytes:
    """The ELF kernel within a bzImage (Documentation/arch/x86/boot.rst): it need not unpack itself."""
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (sectors + 1) * 512 + offset
    payload = image[begin : begin + length]
    if not payload.startswith(b"\x28\xb5\x2f\xfd"):
        raise BuildError("the kernel is not compressed with zstd: the recipe does not know this release")
    # The length behind the compressed data is not part of it; zstd complains about it, after all is out.
    done = subprocess.run(
        ["zstd", "-dcq"], input=payload, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    if not done.stdout.startswith(b"\x7fELF"):
        raise BuildError("zstd cannot unpack the kernel: apt-get install zstd")
    return done.stdout


def _image_entries(source: Path, kernel_directory: Path) -> Iterator[newc.Entry]:
    yield from _tree(source)
    yield newc.character_device("dev/console", 5, 1)
    yield newc.character_device("dev/null", 1, 3, 0o666)
    yield newc.directory("usr/lib/credferry-guest")
    for module in recipe.KERNEL_MODULES:
        name = Path(module).name
        yield newc.file(f"usr/lib/credferry-guest/{name}", (kernel_directory / name).read_bytes())
    for name, text in recipe.FILES.items():
        yield newc.file(name, text.encode())
    for name, target in recipe.LINKS.items():
        yield newc.link(name, target)


def _tree(source: Path) -> Iterator[newc.Entry]:
    for directory, directories, files in os.walk(source):
        directories.sort()
        here = Path(directory)
        for name in sorted([*directories, *files]):
            path = here / name
            relative = str(path.relative_to(source))
            if recipe.is_left_out(relative):
                if name in directories:
                    directories.remove(name)
                continue
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                yield newc.link(relative, str(path.readlink()))
            elif stat.S_ISDIR(mode):
                yield newc.Entry(relative, mode)
            elif stat.S_ISREG(mode):
                yield newc.Entry(relative, mode, path.read_bytes())
