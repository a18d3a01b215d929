# SPDX-License-Identifier: MIT
"""What credferry costs, beside what people would do instead and beside the least that can be done.

``python -m benchmarks`` (``make bench``) runs every measure on one throwaway host of the tests' own harness,
and writes ``benchmarks/results.json``, plots, and the tables of ``docs/performance.md``.
"""
