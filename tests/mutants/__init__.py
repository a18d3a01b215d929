# SPDX-License-Identifier: MIT
"""Mutation runs: take protections out, and change core modules at random; the named tests must notice.

``protections`` is the table of SECURITY.md's protections, ``takeout`` takes each out of a copy of the tree.
``core`` has mutmut change core modules, one small change at a time. ``survivors.toml`` lists the changes
that no fast test notices, each with a reason. ``make mutants`` runs both.
"""
