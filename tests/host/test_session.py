# SPDX-License-Identifier: MIT
"""A run of the tests by several workers ends in order when it is interrupted."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.host import patience, wait_until
from tests.support.modules import MODULES

CHECKOUT = Path(__file__).parents[2]
WORKERS = ("gw0", "gw1")
ENDLESS = """\
import os, pathlib, select, signal

place, worker = pathlib.Path(__file__).parent, os.environ["PYTEST_XDIST_WORKER"]

def test_endless(host):
    # A signal right before signal.pause() would not end it; it ends this wait.
    woken, wake = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wake)
    try:
        (place / f"{worker}.new").write_text(f"{os.getpid()} {host.leader}")
        (place / f"{worker}.new").rename(place / f"{worker}.begun")
        select.select([woken], [], [])
    finally:
        (place / f"{worker}.ended").touch()
"""


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, how: str) -> None:
    """Each worker's test comes to its own end, no worker and no throwaway host is left; the status is 2."""
    files = [tmp_path / f"test_{name}.py" for name in ("a", "b")]
    for file in files:
        file.write_text(ENDLESS)
    # fmt: off
    command = [
        sys.executable, "-m", "pytest", "-c", str(CHECKOUT / "pyproject.toml"), "--rootdir", str(tmp_path),
        "-p", "tests.support.fixtures", "-p", "tests.support.session", "-p", "no:cacheprovider",
        "-n", str(len(WORKERS)), "--dist", "loadfile", "--basetemp", str(tmp_path / "temporary"),
    ]
    # fmt: on
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.Popen(
        [*command, *map(str, files)],
        cwd=CHECKOUT,
        env={**environment, "PYTHONPATH": f"{CHECKOUT}:{MODULES}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    alive = []
    try:
        begun = [tmp_path / f"{worker}.begun" for worker in WORKERS]
        wait_until(lambda: run.poll() is not None or all(map(Path.exists, begun)), 60, "both workers' tests")
        assert run.poll() is None, run.communicate()[0]
        alive = [os.pidfd_open(int(pid)) for file in begun for pid in file.read_text().split()]
        if how == "Ctrl-C":
            os.killpg(run.pid, signal.SIGINT)
        else:
            run.send_signal(signal.SIGTERM)
        said, _ = run.communicate(timeout=60 * patience())
        assert run.returncode == pytest.ExitCode.INTERRUPTED, said
        for process in alive:
            assert select.select([process], [], [], 20 * patience())[0], "still alive"
        assert all((tmp_path / f"{worker}.ended").exists() for worker in WORKERS)
    finally:
        run.kill()
        for process in alive:
            os.close(process)
