# SPDX-License-Identifier: MIT
"""Debian's packages, by mmdebstrap, and what is made of them: kept in the cache, each made once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.cache import cache_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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


def published(name: str, what: str, sources: Iterable[Path], build: Callable[[Path], None]) -> Path:
    """The cache's entry of this name, as these sources make it; built under a lock if it is not there."""
    place = cache_directory() / f"{name}-{_hash(sources)}"
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


def _hash(sources: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for source in (*sources, Path(__file__)):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def mmdebstrap(suite: str, place: Path, *options: str, **environment: str) -> None:
    """Make a root of a suite's packages, from the mirror that this machine uses. Raises `BuildError`."""
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


def extracted(suite: str, package: str, place: Path) -> Path:
    """The files of a suite's package, below a new directory; a kernel's metapackage is followed."""
    place.mkdir()
    downloads, unpacked, nothing = place / "downloads", place / "unpacked", place / "nothing"
    downloads.mkdir()
    mmdebstrap(
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
