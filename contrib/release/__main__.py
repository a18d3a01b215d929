# SPDX-License-Identifier: MIT
"""``python -m contrib.release VERSION``: make a release of this checkout. Pushes nothing."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from contrib.release.release import ReleaseError, release

_USAGE = 2

if len(sys.argv) != _USAGE or not sys.argv[1]:
    sys.exit("usage: make release VERSION=X.Y.Z")
try:
    tag = release(Path(__file__).resolve().parents[2], sys.argv[1], datetime.now(UTC).date())
except ReleaseError as error:
    sys.exit("\n".join(f"release: {each}" for each in error.problems))
sys.stdout.write(f"{tag} is tagged. To publish it: git push origin main {tag}\n")
