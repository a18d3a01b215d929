# SPDX-License-Identifier: MIT
"""A model of all that is around the agent's real `Service`: a host that can fail in every way."""
