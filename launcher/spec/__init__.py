# SPDX-License-Identifier: MIT
"""A VM from a spec file, for hosts without microvm.nix, and what it needs on the host.

May import: Python's standard library, `launcher.trust`, `launcher.hypervisor`, `launcher.handoff`,
`launcher.record`, `launcher.errors`.
Never: the hand-over of credentials.
"""
