# SPDX-License-Identifier: MIT
# `exec`, so that a signal sent to make reaches the program itself and not a shell in front of it.

BOOTSTRAP = tests/support/bootstrap

.PHONY: help demo test test-unit check clean

help:
	@echo 'make demo       show the main job: a rotated secret reaches a booted guest (root)'
	@echo 'make test       check, then run every test: unit, property, host, guest (root)'
	@echo 'make test-unit  run the tests that need no root'
	@echo 'make check      ruff, ruff format and mypy'
	@echo 'make clean      remove what the above put into the cache'

demo:
	@exec $(BOOTSTRAP) full python -m tests.demo

test:
	@exec $(BOOTSTRAP) full
	@exec $(MAKE) --no-print-directory check
	@exec $(BOOTSTRAP) full python -m pytest

test-unit:
	@exec $(BOOTSTRAP) unit python -m pytest tests/unit tests/property

check:
	@exec $(BOOTSTRAP) unit ruff check
	@exec $(BOOTSTRAP) unit ruff format --check
	@exec $(BOOTSTRAP) unit mypy

clean:
	@exec $(BOOTSTRAP) clean
