# SPDX-License-Identifier: MIT
"""What stands in for cloud-hypervisor's command: standard library only, as it is on a VM's boot path."""
