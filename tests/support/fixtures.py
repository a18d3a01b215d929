# SPDX-License-Identifier: MIT
"""One host for all tests of a session: each leaves it as it found it, or boots a `Host` of its own."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.support.cache import cache_directory
from tests.support.host import Host
from tests.support.installation import install
from tests.support.nix import Nix, missing
from tests.support.producer import SopsNix
from tests.support.tpm import SoftwareTpm

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A throwaway host with credferry, its units and a cloud-hypervisor installed, and nothing configured.

    The cloud-hypervisor is the one that the environment's CLOUD_HYPERVISOR names, else the stand-in.
    """
    real = os.environ.get("CLOUD_HYPERVISOR")
    with Host(cache_directory()) as booted:
        install(booted, hypervisor=Path(real) if real else None)
        if real:
            # A node of its own, that the VMs' user may open: the one that is bound here is this machine's.
            booted.run("sh", "-c", "umount /dev/kvm; rm -f /dev/kvm; mknod -m 0666 /dev/kvm c 10 232")
        yield booted


@pytest.fixture
def sops(host: Host) -> Iterator[SopsNix]:
    """sops-nix as the producer."""
    made = SopsNix(host)
    yield made
    made.remove()


@pytest.fixture
def nix(tmp_path: Path) -> Nix:
    """A Nix evaluator of its own for each test; where there is none, in CI a failure."""
    lacking = missing()
    if lacking is not None and os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(lacking, pytrace=False)
    if lacking is not None:
        pytest.skip(lacking)
    return Nix(tmp_path)


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftwareTpm]:
    """A software TPM that systemd's programs use, as if it were this machine's."""
    # Not in tmp_path: the path of a socket has at most 107 bytes (unix(7)).
    with TemporaryDirectory() as directory:
        made = SoftwareTpm(Path(directory) / "tpm")
        made.start()
        server = threading.Thread(target=made.serve)
        server.start()
        monkeypatch.setenv("SYSTEMD_TPM2_DEVICE", made.device)
        yield made
        made.close()
        server.join()
