# SPDX-License-Identifier: MIT
"""cloud-hypervisor's side: the grammar of its options, its releases, its API and its events.

May import: Python's standard library, `launcher.record`, `launcher.errors`.
Never: credentials: this room knows none.
"""
