# SPDX-License-Identifier: MIT
"""Nix in the documents: each block parses, and those of the tutorial make the host that it promises."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.documents import snippets
from tests.support.nix import CHECKOUT, Nix

if TYPE_CHECKING:
    from pathlib import Path

PAGES = sorted(
    [*(CHECKOUT / "docs").rglob("*.md"), CHECKOUT / "README.md", CHECKOUT / "contrib/clan/README.md"]
)
TUTORIAL = CHECKOUT / "docs/tutorial-nixos.md"
GUEST = "{ microvm.vms.test-vm.config.imports = [ t.guestModule ]; }"
PRODUCERS = {
    "sops-nix": (["sops-nix"], "{ sops-nix.nixosModules.sops = t.producers.sops; }", "/run/secrets"),
    "agenix": (["agenix"], "{ agenix.nixosModules.default = t.producers.age; }", "/run/agenix"),
}


def test_every_block_parses(nix: Nix, tmp_path: Path) -> None:
    """As a whole file, or as what stands within a module."""
    found = 0
    for page in PAGES:
        for line, text in snippets(page, "nix"):
            file = tmp_path / f"{page.stem}-{line}.nix"
            is_whole = re.match(r"(?:#.*\n)*\s*[{(]", text)
            file.write_text(text if is_whole else f"{{ config, ... }}:\n{{\n{text}\n}}\n")
            nix.parse(file)
            found += 1
    assert found > 5


@pytest.mark.parametrize("producer", PRODUCERS)
def test_the_tutorial_s_host(nix: Nix, tmp_path: Path, producer: str) -> None:
    """Its files together are refused nothing, and the agent is told what the VM gets."""
    blocks = [text for _, text in snippets(TUTORIAL, "nix")]
    [host] = [text for text in blocks if "show-key" in text]
    arguments, given, source = PRODUCERS[producer]
    [publishing] = [text for text in blocks if text.startswith(f"{{ {arguments[0]}, ... }}:")]
    modules = [f"(import {_written(tmp_path, 'producer', publishing)} {given})"]
    if source != "/run/secrets":
        [elsewhere] = [text for text in blocks if f'source.path = "{source}"' in text]
        modules.append(str(_written(tmp_path, "elsewhere", elsewhere)))
        host = "".join(line for line in host.splitlines(keepends=True) if "oemSecretsFiles" not in line)
    modules.append(str(_written(tmp_path, "host", host)))
    report = nix.evaluate(f"t.report (t.host [ {' '.join(modules)} {GUEST} ])")
    assert report["failed"] == []
    assert report["guests"]["test-vm"]["failed"] == []
    assert report["settings"]["vms"]["test-vm"]["credentials"]["API_KEY"]["secret"] == "api-key"
    assert report["settings"]["source"]["path"] == source


def _written(directory: Path, name: str, text: str) -> Path:
    path = directory / f"{name}.nix"
    path.write_text(text)
    return path
