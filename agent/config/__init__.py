# SPDX-License-Identifier: MIT
"""The configuration: its keys, how it is read, and what is refused.

May import: `errors`, and limits of `launcher.handoff`.
Never: anything that looks at the host beyond the file.
"""
