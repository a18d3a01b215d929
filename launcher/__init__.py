# SPDX-License-Identifier: MIT
"""What stands in for cloud-hypervisor's command: standard library only, as it is on a VM's boot path.

And little of that: `dataclasses`, `typing` and `pathlib` would double what a start takes. Types are for type
checkers alone (hence ``TYPE_CHECKING = False``); what one way alone needs is imported there.
tests/host/test_counts.py counts.
"""
