# SPDX-License-Identifier: MIT
"""Builds kernel, roots and images into the cache: once, under a lock, published by a rename."""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.cache import cache_directory

from . import newc, recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .recipe import Variant

_HERE = Path(__file__).parent
_FALLBACK_MIRROR = "http://deb.debian.org/debian"
_DOWNLOAD_HOOK = """\
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$CREDFERRY_DOWNLOADS"
package=$CREDFERRY_PACKAGE
case $package in
linux-image-*) package=$(apt-cache depends --important "$package" | sed -n 's/.*Depends: //p') ;;
esac
apt-get -qq download "$package"
"""


class BuildError(Exception):
    """An image that cannot be built; the text says what is missing."""


def kernel() -> Path:
    """Directory with ``vmlinux`` and the modules of `recipe.KERNEL_MODULES`, uncompressed."""
    return _published("guest-kernel", "the guests' kernel", _build_kernel)


def root(variant: Variant) -> Path:
    """A variant's whole root, as a directory that nobody may write to."""
    return _published(
        f"guest-{variant}-root",
        f"a root with systemd {variant.systemd}",
        lambda place: _mmdebstrap(
            variant,
            place,
            "--variant=essential",
            "--include=" + ",".join(recipe.PACKAGES),
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
        unpacked = _unpacked(recipe.VSOCK_SUITE, program, place)
        (unpacked / "usr/bin" / program).rename(place / program)
        shutil.rmtree(unpacked)

    return _published(program, "a vsock device for guests", build) / program


def _published(name: str, what: str, build: Callable[[Path], None]) -> Path:
    """The cache's entry of this name and recipe, built if it is not there."""
    place = cache_directory() / f"{name}-{_recipe_hash()}"
    if place.is_dir():
        return place
    if os.geteuid() != 0:
        raise BuildError(f"{what} is not built yet, and building it needs root")
    with _locked(place):
        if place.is_dir():
            return place
        sys.stderr.write(f"credferry: building {what} (once)\n")
        partial = place.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        build(partial)
        partial.rename(place)
    return place


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with place.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _recipe_hash() -> str:
    digest = hashlib.sha256()
    for source in ("recipe.py", "build.py", "newc.py"):
        digest.update((_HERE / source).read_bytes())
    return digest.hexdigest()[:12]


def _mmdebstrap(suite: str, place: Path, *options: str, **environment: str) -> None:
    if not shutil.which("mmdebstrap"):
        raise BuildError("mmdebstrap is not installed: apt-get install mmdebstrap debian-archive-keyring")
    command = ["mmdebstrap", "--mode=root", "--architectures=amd64", *_proxies(), *options]
    # A frozen mirror's newer suites soon count as expired. They are signed all the same.
    command.append('--aptopt=Acquire::Check-Valid-Until "false"')
    command += [str(suite), str(place), _mirror()]
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **_network(), **environment},
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise BuildError(f"mmdebstrap failed (is there a network, and a Debian mirror?):\n{last}")


def _network() -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "no_proxy", "TMPDIR")
    return {name: os.environ[name] for name in names if name in os.environ}


def _mirror() -> str:
    """The first Debian mirror that this machine's apt uses."""
    uris = _output("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    return next((uri for uri in uris if uri.rstrip("/").endswith("/debian")), _FALLBACK_MIRROR)


def _proxies() -> list[str]:
    """This machine's apt proxies, which mmdebstrap would not take over by itself."""
    lines = _output("apt-config", "dump", "--no-empty").splitlines()
    return [
        f"--aptopt={line}"
        for line in lines
        if line.lower().startswith(("acquire::http::proxy", "acquire::https::proxy"))
    ]


def _output(*command: str) -> str:
    return subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout


def _unpacked(suite: str, package: str, place: Path) -> Path:
    """The files of a suite's package, below a new directory; a kernel's metapackage is followed."""
    place.mkdir()
    downloads, unpacked, nothing = place / "downloads", place / "unpacked", place / "nothing"
    downloads.mkdir()
    _mmdebstrap(
        suite,
        nothing,
        "--variant=custom",
        f"--customize-hook={_DOWNLOAD_HOOK}",
        CREDFERRY_DOWNLOADS=str(downloads),
        CREDFERRY_PACKAGE=package,
    )
    subprocess.run(["dpkg-deb", "--extract", next(downloads.glob("*.deb")), unpacked], check=True)
    for directory in (downloads, nothing):
        shutil.rmtree(directory)
    return unpacked


def _build_kernel(place: Path) -> None:
    unpacked = _unpacked(recipe.KERNEL_SUITE, recipe.KERNEL_PACKAGE, place)
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
