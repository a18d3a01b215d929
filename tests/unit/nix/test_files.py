# SPDX-License-Identifier: MIT
"""The Nix files as files: each parses, and what they repeat of other files agrees with those."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from credferry.agent import __version__
from credferry.agent.reconcile.live import with_push_manifest
from credferry.agent.sealing.credential import seal
from credferry.agent.sealing.keys import CredentialKey
from credferry.launcher import power
from credferry.launcher.handoff import (
    OEM_COUNT_MAX,
    OEM_TOTAL_BEFORE_257,
    OEM_TOTAL_MAX,
    PUSH_MANIFEST,
    SYSTEMD_READS_ALL_OEM_STRINGS,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    oem_size,
    oem_string,
)
from tests.support.nix import CHECKOUT, Nix, NixError

if TYPE_CHECKING:
    from pathlib import Path

FILES = sorted(
    file
    for place in (CHECKOUT / "contrib", CHECKOUT / "tests", CHECKOUT / "flake.nix")
    for file in ([place] if place.is_file() else place.rglob("*.nix"))
)
UNITS = CHECKOUT / "contrib/systemd"
LAUNCHER = 'launcher = { type = "derivation"; outPath = "%L%"; meta.mainProgram = "credferry-launch"; };'

Directives = dict[tuple[str, str], list[str]]


def directives(text: str) -> Directives:
    """What a unit file says: values by section and key."""
    found: Directives = defaultdict(list)
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found[section, key].append(value)
    return dict(found)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CHECKOUT)))
def test_parses(nix: Nix, file: Path) -> None:
    """Each file is Nix, and says under which licence it is."""
    nix.parse(file)
    assert file.read_text().startswith("# SPDX-License-Identifier: MIT\n")


def test_malformed_is_found(nix: Nix, tmp_path: Path) -> None:
    """The check above can fail."""
    (tmp_path / "bad.nix").write_text("{ a = 1; ")
    with pytest.raises(NixError, match="syntax error"):
        nix.parse(tmp_path / "bad.nix")


@pytest.mark.parametrize(
    "name",
    [
        "credferry.service",
        *(f"credferry-{name}.service" for name in ("health@", "push@", "restart@", "seal", "seal@")),
    ],
)
def test_units_are_those_of_contrib(nix: Nix, name: str) -> None:
    """A host's units say what contrib/systemd says, with the system's own programs and the same targets."""
    report = nix.evaluate("t.report (t.sopsHost t.example)")
    [text] = [unit["text"] for unit in report["units"] if unit["path"] == f"lib/systemd/system/{name}"]
    ours, theirs = directives(text), directives((UNITS / name).read_text())
    for (section, key), values in theirs.items():
        if key.startswith("Exec"):
            arguments = [value.partition(" ")[2] for value in ours.pop((section, key))]
            assert arguments == [value.partition(" ")[2] for value in values]
        else:
            assert ours.pop((section, key)) == values
    assert ours == {}
    # /bin/sh is the one program that NixOS has there.
    assert not re.search(r"=[-+!@]*/(?!bin/sh )(usr/)?s?bin/", text), "a program that NixOS does not have"
    service = report["services"].get(name.removesuffix(".service"), {"wantedBy": []})
    assert service["wantedBy"] == theirs.get(("Install", "WantedBy"), [])


def test_drop_in_is_that_of_contrib(nix: Nix) -> None:
    """A VM's drop-in says what contrib/systemd/credferry-vm.conf says, and nothing else of its own."""
    service = nix.evaluate("t.report (t.sopsHost t.example)")["services"]["microvm@test-vm"]
    assert service["overrideStrategy"] == "asDropin"
    assert service["path"] == []
    assert service["serviceConfig"].pop("Type") == "notify", "what microvm.nix says is kept"
    assert service["serviceConfig"].pop("X-RestartIfChanged") == ["", "false"]
    ours = {("Unit", "After"): service["after"], ("Unit", "Wants"): service["wants"]}
    ours |= {("Unit", key): [value] for key, value in service["unitConfig"].items()}
    for key, value in service["serviceConfig"].items():
        values = value if isinstance(value, list) else [value]
        # The programs lie elsewhere; the prefixes and the arguments are the same.
        assert "/usr/bin/" not in str(values), "a program that NixOS does not have"
        ours["Service", key] = [
            re.sub(r"(-\+|exec )/nix/store/[^/]+/bin/", r"\1/usr/bin/", each) for each in values
        ]
    theirs = directives((UNITS / "credferry-vm.conf").read_text())
    theirs["Unit", "After"] = " ".join(theirs["Unit", "After"]).split(" ")
    assert ours == theirs


def test_drop_in_of_a_unit_with_another_name(nix: Nix) -> None:
    """Where the unit's instance is not the VM's name, the VM's name stands in place of %i."""
    services = nix.evaluate(
        't.report (t.sopsHost [ { services.credferry = { enable = true; vms.web = { unit = "guest.service"; '
        'credentials.A.text = "a"; }; }; } ])'
    )["services"]
    assert services["guest"]["serviceConfig"]["RuntimeDirectory"] == "credferry-vms/web"
    assert "%i" not in str(services["guest"])


@pytest.mark.parametrize("text", ["[Unit]\nAfter=a \\\n b\n", "[Unit]\nnonsense\n", "[Install]\nAlias=x\n"])
def test_drop_in_that_is_not_understood(nix: Nix, text: str, tmp_path: Path) -> None:
    """A line, or a section, that the reading of unit files does not know is an error and not dropped."""
    (tmp_path / "drop-in.conf").write_text(text)
    with pytest.raises(NixError):
        nix.evaluate(
            '((import (t.root + "/contrib/nixos/units.nix") { inherit (t) lib; }).dropIn '
            '{ vm = "a"; unit = "microvm@a.service"; agent = "/a"; coreutils = "/c"; } '
            f"{tmp_path}/drop-in.conf)"
        )


def test_budget_is_the_launchers(nix: Nix) -> None:
    """What OEM strings take, and what they may, is computed as the launcher and the agent do it."""
    budget = '(import (t.root + "/contrib/nixos/budget.nix") { inherit (t) lib; })'
    key = CredentialKey(bytes(range(32)))
    for name, text in [
        ("A", "x"),
        ("API_KEY", "xy"),
        ("a.name-of_24-bytes......", "é" * 50),
        ("B", "z" * 4000),
    ]:
        value = text.encode()
        blob = seal(value, name=name, key=key).replace(b"\n", b"")
        plain, sealed = nix.evaluate(
            f"map (seal: {budget}.credentials false {{ "
            f'"{name}" = {{ text = "{text}"; inherit seal; }}; }}) [ null true ]'
        )
        assert plain == oem_size([oem_string(name, Kind.TEXT, Secret(value)).reveal()])
        assert sealed == oem_size([oem_string(name, Kind.SEALED, Secret(blob)).reveal()])
    limits = nix.evaluate(f"with {budget}; [ (limit 250) (limit 256) (limit 257) maxCount ]")
    assert limits == [OEM_TOTAL_BEFORE_257, OEM_TOTAL_BEFORE_257, OEM_TOTAL_MAX, OEM_COUNT_MAX]
    assert SYSTEMD_READS_ALL_OEM_STRINGS == 257


@pytest.mark.parametrize("guest", [None, CredentialKey(bytes(range(32)))], ids=["plain", "sealed"])
def test_budget_of_a_live_vm_has_its_manifest(nix: Nix, guest: CredentialKey | None) -> None:
    """A live VM's guest gets a manifest too: as the agent makes it for the first generation, and no more."""
    published = {"A": Secret(b"x"), "a.name-of_24-bytes......": Secret(b"y")}
    entries = tuple(ManifestEntry(name, Kind.PLAIN, "0" * 16) for name in published)
    manifest, value = with_push_manifest(
        Manifest("web", 1, "ab" * 32, "cd" * 16, Delivery(), entries, "ef" * 32), published, guest
    )
    names = " ".join(f'"{name}"' for name in published)
    least = nix.evaluate(
        '(import (t.root + "/contrib/nixos/budget.nix") { inherit (t) lib; }).manifest "web" '
        f"{json.dumps(guest is not None)} [ {names} ]"
    )
    assert least == oem_size([oem_string(PUSH_MANIFEST, manifest.credentials[-1].kind, value).reveal()])


def test_power_is_the_launchers(nix: Nix) -> None:
    """Which names give power over a guest is one table: the launcher's, which the agent uses, and Nix's."""
    names = [
        *(f"{group}.unknown" for group in power.GROUPS),
        *power.HARMLESS,
        *("API_KEY", "db.password", "ssh", "sshd.key", "systemd-x.y"),
    ]
    listed = " ".join(f'"{name}"' for name in names)
    found = nix.evaluate(
        'with (import (t.root + "/contrib/nixos/power.nix") { inherit (t) lib; }); '
        f"{{ inherit groups harmless; powerful = map isPowerful [ {listed} ]; }}"
    )
    assert found["groups"] == sorted(power.GROUPS)
    assert found["harmless"] == sorted(power.HARMLESS)
    assert found["powerful"] == [power.is_powerful(name) for name in names]


def test_package_has_the_dependencies_of_the_project(nix: Nix) -> None:
    """What pyproject.toml asks for, and only that, is in the package for nixpkgs."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in project["dependencies"]}
    package = nix.evaluate(
        """
        with (import (t.root + "/flake.nix")).outputs {
          self = { };
          nixpkgs.legacyPackages.x86_64-linux = t.pkgs;
        };
        {
          inherit (packages.x86_64-linux.default) version meta;
          names = map (each: each.pname) packages.x86_64-linux.default.dependencies;
        }
        """
    )
    assert {name.replace("pygobject3", "pygobject") for name in package["names"]} == wanted
    assert package["version"] == __version__
    assert package["meta"]["mainProgram"] == "credferry"


def test_flake(nix: Nix) -> None:
    """The flake has what the documentation names."""
    flake = nix.evaluate(
        """
        let
          flake = (import (t.root + "/flake.nix")).outputs {
            self.nixosModules.host = null;
            self.packages = flake.packages;
            nixpkgs.legacyPackages.x86_64-linux = t.pkgs;
          };
          inherit (flake) checks clan lib nixosModules overlays packages templates;
        in
        {
          packages = builtins.attrNames packages.x86_64-linux;
          modules = builtins.attrNames nixosModules;
          checks = builtins.attrNames checks.x86_64-linux;
          paths = map builtins.pathExists [
            nixosModules.host nixosModules.guest
            clan.modules.credferry (templates.default.path + "/flake.nix")
          ];
          wrapped = (lib.wrapCloudHypervisor t.pkgs t.pkgs.cloud-hypervisor).version;
          overlay = (overlays.default t.pkgs { }).credferry.pname;
        }
        """
    )
    assert flake == {
        "packages": ["cloud-hypervisor", "credferry", "credferry-launch", "default"],
        "modules": ["default", "guest", "host"],
        "checks": ["cloud-hypervisor", "credferry", "credferry-launch", "default", "host", "modules"],
        "paths": [True, True, True, True],
        "wrapped": "53.0",
        "overlay": "credferry",
    }


def test_wrapped_hypervisor(nix: Nix) -> None:
    """The wrapped package has both programs and the version, and is not wrapped twice."""
    wrapped = nix.evaluate(
        f"""
        let
          wrap = t.pkgs.callPackage (t.root + "/contrib/nixos/wrap.nix") {{ {LAUNCHER} }};
          once = wrap t.pkgs.cloud-hypervisor;
        in
        {{
          inherit (once) version script meta;
          twice = (wrap once).outPath == once.outPath;
          real = once.credferry.hypervisor.name;
        }}
        """
    )
    assert wrapped["version"] == "53.0"
    assert wrapped["meta"]["mainProgram"] == "cloud-hypervisor"
    assert wrapped["real"] == "cloud-hypervisor-53.0"
    assert wrapped["twice"]
    assert re.findall(r"\$out/bin/(\S+)", wrapped["script"]) == ["cloud-hypervisor", "ch-remote"]


def test_wrapper_script(nix: Nix, tmp_path: Path) -> None:
    """The script hands every argument on as it is, after the real binary and its version."""
    text = nix.evaluate(
        f"""
        t.pkgs.callPackage (t.root + "/contrib/nixos/wrap.nix") {{
          {LAUNCHER}
          writeShellScript = _: text: text;
          runCommand = _: _: script: script;
        }} t.pkgs.cloud-hypervisor
        """
    )
    body = re.search(r"exec .*", text)
    assert body
    program = tmp_path / "bin/credferry-launch"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    program.chmod(0o755)
    script = body[0].replace("%L%", str(tmp_path)).split(" $out/bin")[0]
    shown = subprocess.run(
        ["/bin/sh", "-c", script, "script", "--cpus", "boot=2", "a b", "", "*"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    real, rest = re.fullmatch(r"<--real><(.*?)>(.*)", shown).groups()  # type: ignore[union-attr]  # or it fails
    assert real.endswith("/bin/cloud-hypervisor")
    assert rest == "<--hypervisor-version><53.0><--><--cpus><boot=2><a b><><*>"


def test_launcher_package_works(nix: Nix, tmp_path: Path) -> None:
    """What the launcher's package installs starts in any surroundings, from bytecode that never ages."""
    phase = nix.evaluate('(t.pkgs.callPackage (t.root + "/contrib/nixos/launcher.nix") { }).installPhase')
    out = tmp_path / "out"
    phase = phase.replace("/nix/store/python3/bin/python3", sys.executable)
    subprocess.run(
        ["/bin/sh", "-euc", f'runHook() {{ :; }}\npython3() {{ {sys.executable} "$@"; }}\n{phase}'],
        cwd=CHECKOUT,
        check=True,
        env={"out": str(out), "PATH": "/usr/bin:/bin"},
    )
    launch = out / "bin/credferry-launch"
    assert (
        "usage: credferry-launch"
        in subprocess.run(
            [launch, "--help"], check=True, capture_output=True, text=True, env={}, cwd="/"
        ).stdout
    )
    [bytecode] = (out / "lib/credferry/credferry/launcher/__pycache__").glob("handoff.*.pyc")
    assert bytecode.read_bytes()[4:8] == b"\1\0\0\0", (
        "unchecked: found by its hash, never compared (PEP 552)"
    )
