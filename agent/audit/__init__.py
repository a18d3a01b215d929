# SPDX-License-Identifier: MIT
"""The audit: facts written to the journal as one chain of records, and what is told from them.

May import: `store` for the chain's head, `journald`, `errors`.
Never: a decision about a VM, or a secret value.
"""
