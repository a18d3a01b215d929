# SPDX-License-Identifier: MIT
"""A VM from a spec file, for hosts without microvm.nix, and what it needs on the host.

May import: `hypervisor`, `launcher.handoff`, `launcher.errors`.
Never: the hand-over of credentials.
"""
