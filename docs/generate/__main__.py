# SPDX-License-Identifier: MIT
"""Write all generated files."""

from __future__ import annotations

from docs.generate.files import ROOT, generated

for path, content in generated().items():
    (ROOT / path).write_text(content)
