# SPDX-License-Identifier: MIT
"""What the set-up says where it cannot do its work: one line on what is missing, and a status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.installation import VM_USER

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.support.host import Host

CHECKOUT = Path(__file__).parents[2]
PLACE = "/opt/credferry-bootstrap"
CACHE = f"{PLACE}/cache"
TEMPORARY = f"{PLACE}/tmp"
"""In place of /tmp, where other programs of the host make and remove files meanwhile."""
PACKAGES = "/var/lib/dpkg/status"
POLICY = "/usr/sbin/policy-rc.d"
WANTS = "/etc/systemd/system/multi-user.target.wants"


@pytest.fixture
def bare(host: Host) -> Iterator[Host]:
    """A host, which has no network, with the set-up's script and nothing in its cache."""
    for name in ("tests/support/bootstrap", "pyproject.toml"):
        host.write(f"{PLACE}/{name}", (CHECKOUT / name).read_bytes(), 0o755)
    host.run("mkdir", "-p", WANTS)
    host.run("mkdir", "-m", "1777", TEMPORARY)
    packages = host.path(PACKAGES).read_bytes()
    policy = host.run("sh", "-c", f"cat {POLICY} 2>/dev/null", check=False).stdout
    yield host
    if policy:
        host.write(POLICY, policy, 0o755)
    host.write(PACKAGES, packages)
    host.run("rm", "-rf", PLACE)


def bootstrap(
    host: Host, *arguments: str, user: str | None = None, path: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run it, with the patience of a test; pip's configuration could name a place that needs no network.

    ``path`` is a directory with programs that stand before others.
    """
    environment = {"CREDFERRY_CACHE": CACHE, "PIP_CONFIG_FILE": "/dev/null", "PIP_RETRIES": "0"}
    environment["TMPDIR"] = TEMPORARY
    if path:
        environment["PATH"] = f"{path}:/usr/sbin:/usr/bin:/sbin:/bin"
    script = f"{PLACE}/tests/support/bootstrap"
    return host.run(script, *arguments, env=environment, user=user, check=False, timeout=240)


def test_not_root(bare: Host) -> None:
    """What boots whole systems needs root, and says what can be run without."""
    done = bootstrap(bare, "full", "true", user=VM_USER)
    assert done.returncode == 1
    assert done.stderr == (
        "credferry: host and guest tests boot whole systems and need root: "
        "run as root, or run `make test-unit`\n"
    )


def test_a_cache_that_cannot_be_written(bare: Host) -> None:
    """Whoever may not write to the cache is told how to name another."""
    done = bootstrap(bare, "unit", "true", user=VM_USER)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert (
        said
        == f"credferry: cannot write to {CACHE}: set CREDFERRY_CACHE to a directory that you may write to"
    )


def test_no_network_for_apt(bare: Host) -> None:
    """Where Debian's packages cannot be had, they are named."""
    paragraphs = bare.path(PACKAGES).read_text().split("\n\n")
    kept = [each for each in paragraphs if not each.startswith(("Package: cpio\n", "Package: strace\n"))]
    assert len(kept) == len(paragraphs) - 2
    bare.write(PACKAGES, "\n\n".join(kept))
    bare.run("rm", "-rf", "/var/lib/apt/lists")
    done = bootstrap(bare, "full", "true")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "credferry: installing cpio strace"
    assert (
        lines[-1]
        == "credferry: cannot install cpio strace: is there a network, and a Debian mirror in /etc/apt?"
    )


def without_cpio(host: Host, apt_get: str) -> str:
    """A host that lacks a package, with a program in the place of apt-get; the program's directory."""
    paragraphs = host.path(PACKAGES).read_text().split("\n\n")
    host.write(PACKAGES, "\n\n".join(each for each in paragraphs if not each.startswith("Package: cpio\n")))
    host.write(f"{PLACE}/bin/apt-get", f"#!/bin/sh\n{apt_get}\n", 0o755)
    host.run("rm", "-f", POLICY)
    return f"{PLACE}/bin"


def test_no_service_is_started_or_enabled(bare: Host) -> None:
    """While packages are installed, none may start a service; what they enable is disabled, and told."""
    link = f"{WANTS}/new.service"
    path = without_cpio(bare, f"{POLICY} new start; echo $? >{PLACE}/policy; ln -sf /dev/null {link}")
    done = bootstrap(bare, "demo", "true", path=path)
    assert done.stderr.splitlines()[:3] == [
        "credferry: installing cpio",
        "credferry: not enabled: new.service",
        "credferry: installed; nothing of it was started or enabled",
    ]
    assert "101" in bare.path(f"{PLACE}/policy").read_text()
    assert not bare.path(link, follow=False).is_symlink()
    assert not bare.path(POLICY).exists()


def test_lists_that_are_too_old(bare: Host) -> None:
    """Packages that apt's lists cannot give are asked for once more, with new lists."""
    log, renewed = f"{PLACE}/asked", f"{PLACE}/renewed"
    apt_get = f"""echo "$*" >>{log}
case $* in *update) touch {renewed} ;; *) [ -e {renewed} ] || exit 100 ;; esac"""
    done = bootstrap(bare, "demo", "true", path=without_cpio(bare, apt_get))
    assert "credferry: installed; nothing of it was started or enabled" in done.stderr.splitlines()
    ask = "-qy --no-install-recommends install cpio"
    assert bare.path(log).read_text().splitlines() == [ask, "-q update", ask]


def test_guests_need_no_python_environment(bare: Host) -> None:
    """What builds guests is there before anything of PyPI is."""
    done = bootstrap(bare, "guests", "/bin/sh", "-c", 'echo "$CREDFERRY_CACHE $PWD"')
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{CACHE} {PLACE}\n", "")
    assert not list(bare.path(CACHE).glob("venv-*"))


def test_an_interrupted_set_up(bare: Host) -> None:
    """Ctrl-C while packages are installed is answered in one line, and leaves no file behind."""
    done = bootstrap(bare, "demo", "true", path=without_cpio(bare, "kill -INT $PPID; exit 1"))
    assert done.returncode == 130
    assert done.stderr.splitlines() == [
        "credferry: installing cpio",
        "credferry: interrupted; what is missing is set up the next time",
    ]
    assert not bare.path(POLICY).exists()
    assert list(bare.path(TEMPORARY).iterdir()) == []


def test_a_user_is_told_which_packages_to_install(bare: Host) -> None:
    """Without root nothing is installed: the command that root would type is shown."""
    text = bare.path(PACKAGES).read_text()
    bare.write(PACKAGES, text.replace("Package: python3-venv\n", "Package: python3-other\n"))
    done = bootstrap(bare, "unit", "true", user=VM_USER)
    assert done.returncode == 1
    assert done.stderr == "credferry: packages are missing: run `apt-get install python3-venv` as root\n"


def test_no_network_for_pip(bare: Host) -> None:
    """Where PyPI's packages cannot be had, we say so below what pip says; half a set-up does not count."""
    done = bootstrap(bare, "full", "true")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"credferry: making a Python environment in {CACHE}/venv-")
    assert any(line.startswith("ERROR: ") for line in lines)
    assert lines[-1] == (
        "credferry: pip cannot install the packages above: is there a network, "
        "and a package index that pip may use?"
    )
    assert not list(bare.path(CACHE).glob("venv-*/.complete"))
