# SPDX-License-Identifier: MIT
"""The published secrets: one consistent snapshot, the watches on the way to it, and settling.

May import: `sealing` for limits, `errors`.
Never: what a secret is for, or which VM uses it.
"""
