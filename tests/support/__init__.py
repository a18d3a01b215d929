# SPDX-License-Identifier: MIT
"""What tests stand on: a throwaway host, guests, a producer of secrets, and a stand-in hypervisor."""
