# SPDX-License-Identifier: MIT
"""credferry's packages, built from this checkout: each once for the same content, and kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.cache import cache_directory
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PARTS = ("agent", "launcher", "contrib", "docs")
_FILES = ("pyproject.toml", "README.md", "SECURITY.md", "CHANGELOG.md", "LICENSE")


def debian_package() -> Path:
    """The Debian package. Raises RuntimeError, whose text says why it cannot be built."""
    return _kept("deb", _build_debian_package, "credferry_*.deb")


def guest_package() -> Path:
    """The Debian package for guests, from the same build. Raises as `debian_package`."""
    return _kept("deb", _build_debian_package, "credferry-guest_*.deb")


def wheel() -> Path:
    """What pip installs. Raises as `debian_package`."""
    return _kept("wheel", _build_wheel, "*.whl")


def newer(package: Path, directory: Path) -> Path:
    """The same Debian package as a later version would be, made without building it anew."""
    tree, made = directory / "tree", directory / "newer.deb"
    _run("dpkg-deb", "--raw-extract", str(package), str(tree))
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    lines = [f"{line}+next" if line.startswith("Version: ") else line for line in lines]
    control.write_text("\n".join(lines) + "\n")
    _run("dpkg-deb", "-Znone", "--build", "--root-owner-group", str(tree), str(made))
    return made


FORM_1 = "ee5af72"
"""The project's last commit whose store is of form 1."""


def of_form_1(package: Path, directory: Path) -> Path:
    """The Debian package of the last release of form 1, with the libraries of a present one.

    Its own files are those of the project's history; raises RuntimeError where that is not there.
    """
    tree, made, history = directory / "tree-1", directory / "form-1.deb", directory / "history"
    _run("dpkg-deb", "--raw-extract", str(package), str(tree))
    _run(
        "git",
        "-C",
        str(CHECKOUT),
        "archive",
        f"--output={directory}/1.tar",
        FORM_1,
        "agent",
        "launcher",
        "contrib",
    )
    history.mkdir()
    _run("tar", "--extract", f"--file={directory}/1.tar", f"--directory={history}")
    # At that time the packages were called `agent` and `launcher`, and lay where `credferry` lies now.
    shutil.rmtree(tree / "usr/lib/credferry/credferry")
    for name in ("agent", "launcher"):
        shutil.copytree(history / name, tree / "usr/lib/credferry" / name)
    for path in (history / "contrib/debian/bin").iterdir():
        shutil.copy(path, tree / "usr/bin" / path.name)
    for path in (history / "contrib/systemd").glob("*.service"):
        shutil.copy(path, tree / "usr/lib/systemd/system" / path.name)
    for name, place in (("catalog", "usr/lib/systemd/catalog"), ("dbus", "usr/share/dbus-1/system.d")):
        shutil.copytree(history / "contrib" / name, tree / place, dirs_exist_ok=True)
    shutil.copy(history / "contrib/systemd/credferry-vm.conf", tree / "usr/share/doc/credferry/examples")
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    lines = [f"{line}~form1" if line.startswith("Version: ") else line for line in lines]
    control.write_text("\n".join(lines) + "\n")
    _run("dpkg-deb", "-Znone", "--build", "--root-owner-group", str(tree), str(made))
    return made


def drop_in_of_form_1() -> str:
    """A VM's drop-in as it was then. Raises RuntimeError where the project's history is not there."""
    return _run("git", "-C", str(CHECKOUT), "show", f"{FORM_1}:contrib/systemd/credferry-vm.conf")


def _kept(kind: str, build: Callable[[Path, Path], None], pattern: str) -> Path:
    cache = cache_directory()
    place = cache / f"package-{kind}-{_hash()}"
    with (cache / f"package-{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            for older in cache.glob(f"package-{kind}-*"):
                shutil.rmtree(older)
            with tempfile.TemporaryDirectory(dir=cache) as directory:
                tree, output = Path(directory, "tree"), Path(directory, "output")
                _copy_checkout(tree)
                output.mkdir()
                build(tree, output)
                output.rename(place)
    return next(place.glob(pattern))


def _build_debian_package(tree: Path, output: Path) -> None:
    # What pip brings changes with the list of pinned libraries, and not with each line of code.
    content = (CHECKOUT / "contrib/debian/requirements.txt").read_bytes() + sys.version.encode()
    libraries = cache_directory() / f"package-libraries-{hashlib.sha256(content).hexdigest()[:12]}"
    for older in set(cache_directory().glob("package-libraries-*")) - {libraries}:
        shutil.rmtree(older)
    _run(str(tree / "contrib/debian/build"), str(output), LIBRARIES=str(libraries))


def _build_wheel(tree: Path, output: Path) -> None:
    # With the setuptools of this environment: a build's own would be fetched.
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(output))
    _run(sys.executable, "-m", "pip", "--quiet", "wheel", *options, str(tree))


def _files() -> Iterator[Path]:
    for part in _PARTS:
        for path in sorted((CHECKOUT / part).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
    yield from (CHECKOUT / name for name in _FILES)


def _hash() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in _files():
        content = path.read_bytes()
        mode = path.stat().st_mode & 0o111
        digest.update(f"{path.relative_to(CHECKOUT)} {mode} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def _copy_checkout(tree: Path) -> None:
    for path in _files():
        target = tree / path.relative_to(CHECKOUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _run(*command: str, **variables: str) -> str:
    """Run a command, and return what it said; where it fails, that is shown with the exception."""
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environment |= variables
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}:\n{done.stdout}")
    return done.stdout
