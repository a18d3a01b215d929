# SPDX-License-Identifier: MIT
"""Generations of sealed credentials on disk, small records beside them, and durable writes.

May import: `sealing`, `errors`.
Never: a decision, or a call to systemd.
"""
