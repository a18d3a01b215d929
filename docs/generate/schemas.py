# SPDX-License-Identifier: MIT
"""The schemas of what verbs print with ``--json``, from the types by which they print it."""

from __future__ import annotations

import json

from credferry.agent.cli.documents import DOCUMENTS, schema


def schemas() -> dict[str, str]:
    """The content of each schema's file, by its path below the project's directory."""
    return {
        f"docs/schema/{verb.replace(' --', '-').replace(' ', '-')}.json": json.dumps(schema(verb), indent=2)
        + "\n"
        for verb in DOCUMENTS
    }
