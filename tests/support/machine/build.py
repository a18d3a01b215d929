# SPDX-License-Identifier: MIT
"""Builds a machine's disk, kernel and firmware into the cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.guest.debian import BuildError, extracted, mmdebstrap, published
from tests.support.installation import CHECKOUT

from . import files, recipe

if TYPE_CHECKING:
    from tests.support.guest import Variant

_HERE = Path(__file__).parent
_REQUIREMENTS = CHECKOUT / "contrib/debian/requirements.txt"
_SOURCES = (_HERE / "recipe.py", _HERE / "build.py")
_LIBRARIES = "usr/lib/credferry"
_FIRMWARE = ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
_PLATFORMS = (
    "manylinux_2_17_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_34_x86_64",
    "manylinux2014_x86_64",
)


@dataclass(frozen=True, slots=True)
class Built:
    """What a machine boots from, and is never written to."""

    variant: Variant
    root: Path
    """The files of the disk, as a directory."""
    disk: Path
    kernel: Path
    code: Path
    """The firmware's code."""
    variables: Path
    """The firmware's variables, of which each machine has a copy of its own."""


def built(variant: Variant) -> Built:
    """A machine of this release, built first if the cache does not have it. Raises `BuildError`."""
    firmware, root = _firmware(), _root(variant)
    code, variables = (firmware / name for name in _FIRMWARE)
    return Built(variant, root, _disk(variant, root), _kernel() / "vmlinuz", code, variables)


def _firmware() -> Path:
    def build(place: Path) -> None:
        unpacked = extracted(recipe.FIRMWARE_SUITE, recipe.FIRMWARE_PACKAGE, place)
        for name in _FIRMWARE:
            (unpacked / "usr/share/OVMF" / name).rename(place / name)
        shutil.rmtree(unpacked)

    return published("machine-firmware", "machines' firmware", _SOURCES, build)


def _kernel() -> Path:
    def build(place: Path) -> None:
        unpacked = extracted(recipe.KERNEL_SUITE, recipe.KERNEL_PACKAGE, place)
        next(unpacked.glob("boot/vmlinuz-*")).rename(place / "vmlinuz")
        shutil.rmtree(unpacked)

    return published("machine-kernel", "machines' kernel", _SOURCES, build)


def _root(variant: Variant) -> Path:
    def build(root: Path) -> None:
        packages = (*recipe.PACKAGES, *recipe.LIBRARIES_OF_TPM[variant])
        mmdebstrap(
            variant,
            root,
            "--variant=essential",
            "--include=" + ",".join(packages),
            '--aptopt=APT::Install-Recommends "true"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in recipe.LEFT_OUT),
        )
        _add_libraries(variant, root / _LIBRARIES)
        _run("chroot", str(root), "python3", "-m", "compileall", "-q", f"/{_LIBRARIES}")

    sources = (*_SOURCES, _REQUIREMENTS)
    return published(f"machine-{variant}-root", f"a host with systemd {variant.systemd}", sources, build)


def _disk(variant: Variant, root: Path) -> Path:
    def build(place: Path) -> None:
        place.mkdir()
        whole, disk = place / "whole", place / "disk"
        _run("cp", "--archive", str(root), str(whole))
        files.add(whole)
        _run("mke2fs", "-q", "-t", "ext4", "-d", str(whole), str(disk), f"{files.DISK_MEGABYTES}M")
        shutil.rmtree(whole)

    sources = (*_SOURCES, _REQUIREMENTS, _HERE / "files.py", _HERE / "inside.py")
    return (
        published(f"machine-{variant}-disk", f"a disk with systemd {variant.systemd}", sources, build)
        / "disk"
    )


def _add_libraries(variant: Variant, target: Path) -> None:
    """What the Debian package of that release would have, with versions and hashes pinned as there."""
    # fmt: off
    _run(
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input", "install",
        "--progress-bar", "off", "--no-compile", "--target", str(target), "--require-hashes",
        "--only-binary", ":all:", "--requirement", str(_REQUIREMENTS),
        "--implementation", "cp", "--python-version", recipe.PYTHON[variant],
        *(f"--platform={each}" for each in _PLATFORMS),
    )
    # fmt: on


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise BuildError(f"{command[0]} failed:\n{last}")
