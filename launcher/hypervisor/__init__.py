# SPDX-License-Identifier: MIT
"""cloud-hypervisor's side: the grammar of its options, its releases, its API and its events.

May import: `launcher.errors`, `launcher.record`.
Never: credentials: this room knows none.
"""
