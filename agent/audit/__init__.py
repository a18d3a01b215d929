# SPDX-License-Identifier: MIT
"""The audit: facts written to the journal as one chain of records, and reports made from these records.

May import: `agent.store`, `agent.sealing`, `agent.digests`, `agent.untrusted`, `agent.printable`,
`agent.journald`, `agent.errors`, `launcher.handoff`.
Never: a decision about a VM, or a secret value.
"""
