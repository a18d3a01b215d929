# SPDX-License-Identifier: MIT
# `exec`, so that a signal sent to make reaches the program itself and not a shell in front of it.

BOOTSTRAP = tests/support/bootstrap
# Much of what the tests do is waiting. Each worker has a throwaway host of its own, of some 300 MB.
WORKERS = 3

.PHONY: help bench docs package requirements release demo test test-unit check checked guests nightly mutants fuzz soak reliability clean

help:
	@echo 'make demo         show the main job: a rotated secret reaches a booted guest (root)'
	@echo 'make test         check, then run every test: unit, property, host, guest (root)'
	@echo 'make test-unit    run the tests that need no root'
	@echo 'make guests       build the guests that tests boot, once (root)'
	@echo 'make check        ruff, ruff format and mypy'
	@echo 'make nightly      20,000 histories of models, fleets of 1,000 hosts, killed pushes, guests, TPM hosts (root)'
	@echo 'make mutants      take each protection out, and change core modules: tests must notice (root)'
	@echo 'make fuzz         fuzz every parser of untrusted bytes for long'
	@echo 'make soak         rotate 10,000 times over 50 light VMs (root)'
	@echo 'make bench        measure credferry beside what people would do instead, and the limit (root)'
	@echo 'make reliability  write docs/reliability.md from the numbers of the last runs'
	@echo 'make package      build the Debian package, into dist/'
	@echo 'make requirements  pin the newest libraries for the Debian package, with their hashes'
	@echo 'make release      check, date, commit and tag a release: make release VERSION=X.Y.Z'
	@echo 'make docs         write completions, manual pages and the reference anew from the code'
	@echo 'make clean        remove what the above put into the cache'

demo:
	@exec $(BOOTSTRAP) demo python -m tests.demo

# Most of the time until the tests can begin is apt's, and that of building guests, which needs little of it.
test:
	@exec $(BOOTSTRAP) guests
	@exec $(MAKE) --no-print-directory --jobs=2 guests checked
	@exec $(BOOTSTRAP) full python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=25

guests:
	@exec $(BOOTSTRAP) guests /usr/bin/python3 -m tests.support.guest >/dev/null

checked:
	@exec $(BOOTSTRAP) full
	@exec $(MAKE) --no-print-directory check

test-unit:
	@exec $(BOOTSTRAP) unit python -m pytest tests/unit tests/property

check:
	@exec $(BOOTSTRAP) unit ruff check
	@exec $(BOOTSTRAP) unit ruff format --check
	@exec $(BOOTSTRAP) unit mypy

nightly:
	@CREDFERRY_FLEET_RUNS=10000 $(BOOTSTRAP) unit python -m pytest --timeout=0 tests/property/test_fleet_model.py
	@$(BOOTSTRAP) unit python -m tests.fleet
	@CREDFERRY_MODEL_RUNS=10000 $(BOOTSTRAP) unit python -m pytest --timeout=0 tests/property/test_model.py
	@CREDFERRY_NIGHTLY=1 CREDFERRY_RECEIVER_PUSHES=334 $(BOOTSTRAP) unit python -m pytest --timeout=0 tests/unit/test_receiver_kills.py tests/unit/test_receiver.py
	@CREDFERRY_PUSHES=1000 $(BOOTSTRAP) full python -m pytest --timeout=0 tests/host/test_push_kills.py
	@CREDFERRY_NIGHTLY=1 exec $(BOOTSTRAP) full python -m pytest --timeout=0 tests/guest tests/host/test_crash.py tests/host/test_rotation.py tests/host/test_fleet.py tests/host/test_tpm_host.py

mutants:
	@exec $(BOOTSTRAP) full python -m tests.mutants $(ARGUMENTS)

fuzz:
	@exec $(BOOTSTRAP) unit python -m tests.fuzz

soak:
	@exec $(BOOTSTRAP) full python -m tests.soak

bench:
	@exec $(BOOTSTRAP) full python -m benchmarks $(ARGUMENTS)

reliability:
	@exec $(BOOTSTRAP) unit python -m tests.reliability

package:
	@exec contrib/debian/build dist

requirements:
	@exec contrib/debian/renew-requirements

release:
	@exec $(BOOTSTRAP) unit python -m contrib.release $(VERSION)

docs:
	@exec $(BOOTSTRAP) unit python -m docs.generate

clean:
	@exec $(BOOTSTRAP) clean
