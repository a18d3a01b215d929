# SPDX-License-Identifier: MIT
"""The object paths of units, as systemd makes them."""

from __future__ import annotations

import pytest

from credferry.agent.bus.names import unit_path


@pytest.mark.parametrize(
    ("unit", "last"),
    [
        ("microvm@web.service", "microvm_40web_2eservice"),
        ("bench-light@v0.service", "bench_2dlight_40v0_2eservice"),
        ("-.mount", "_2d_2emount"),
        ("1st.service", "_31st_2eservice"),
        ("a1.service", "a1_2eservice"),
        ("a_b\\x2dc:.service", "a_5fb_5cx2dc_3a_2eservice"),
        ("", "_"),
    ],
)
def test_a_unit_s_object_path(unit: str, last: str) -> None:
    """Answers of systemd 252 to LoadUnit; the empty name by bus_label_escape()'s own rule."""
    assert unit_path(unit) == f"/org/freedesktop/systemd1/unit/{last}"
