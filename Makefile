# The work is done by ops/stack.py, which runs on a bare Python 3.11; ARGS are passed on to it.
PYTHON ?= python3
STACK = $(PYTHON) ops/stack.py
COMPILE = .venv/bin/uv pip compile setup.cfg --extra test --extra dev --extra rootless \
	--universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' --quiet --output-file requirements.lock

# From the table of services; ops stands above it.
MEASURED = $(shell $(PYTHON) -c "from topology.services import SERVICES; print('topology shared', *(row.package for row in SERVICES if row.name != 'ops'))")
COVERAGE = .venv/bin/coverage
# Found by every process of the run, in whatever folder it works.
export COVERAGE_FILE = $(CURDIR)/.run/coverage

.PHONY: help demo up down restart status shell test test-long compose-test bench coverage check lock audit sbom upgrade-test clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## install, start everything, show orders on their way, stop
	@$(STACK) demo $(ARGS)

up: ## start everything and stay (Ctrl-C stops it); ARGS='--replicas 2'
	@$(STACK) up $(ARGS)

down: ## stop what `make up` runs
	@$(STACK) down

restart: ## start the services of `make up` again with the code as it is now; the servers stay
	@$(STACK) restart

status: ## every service and server, and what is wrong with it; ARGS=--json adds passwords and pids
	@$(STACK) status $(ARGS)

shell: ## a nameko shell on what `make up` runs; runs a script on standard input
	@$(STACK) exec python -m ops.cli.shell

test: ## all tests, on servers of their own; ARGS='-k words' or a path runs only what that needs
	@$(STACK) test $(ARGS)

test-long: ## the same tests at full size
	@$(STACK) test --long $(ARGS)

compose-test: ## deploy/README.md on a container engine, with what goes wrong there; needs Docker, or root on Debian 12
	@$(STACK) install
	@.venv/bin/python -m pytest -q --capture=sys --containers $(if $(filter tests/%,$(ARGS)),,tests/containers) $(ARGS)

upgrade-test: ## the last release and this code side by side under load, in some minutes
	@$(STACK) test --long --load-s 0 --orders-per-s 10 tests/upgrade/test_rolling.py $(ARGS)

bench: ## this project beside its peers and its floor, in 40 minutes; ARGS=--short takes 5
	@$(STACK) install
	@.venv/bin/python -m benchmarks $(ARGS)

coverage: ## line coverage by all tests; fails where a package is under 90 %
	@$(STACK) install
	@$(COVERAGE) erase
	@COVERAGE_PROCESS_START=$(CURDIR)/setup.cfg $(STACK) test $(ARGS)
	@$(COVERAGE) combine --quiet
	@$(COVERAGE) report
	@set -e; for package in $(MEASURED); do \
		printf '%-18s ' $$package; $(COVERAGE) report --include="$$package/*" --format=total; done

check: ## format, lint, types, import rules, and whether this can run beside the last release
	@$(STACK) check

lock: ## bring requirements.lock up to setup.cfg; ARGS=--upgrade takes the newest of everything
	@$(STACK) install
	@$(COMPILE) $(ARGS)

audit: ## look up every package of requirements.lock among the known faults; 1 found some, 3 could not ask
	@$(STACK) install
	@.venv/bin/python deploy/audit.py

sbom: ## write sbom.cdx.json: the packages of the image with versions and hashes, as CycloneDX
	@$(STACK) install
	@$(PYTHON) deploy/requirements.py setup.cfg requirements.lock > .run/runtime.txt
	@.venv/bin/cyclonedx-py requirements .run/runtime.txt --output-reproducible --output-file sbom.cdx.json

.PHONY: image scan sign release

image: ## build ecom:VERSION-BUILD with docker or podman; BUILD=... instead of the commit
	@$(PYTHON) deploy/supply.py image

scan: ## look for known faults in the image, the operating system's too, with trivy or grype
	@$(PYTHON) deploy/supply.py scan

sign: ## sign IMAGE=host/ecom@sha256:... with cosign and COSIGN_KEY, and attest sbom.cdx.json
	@$(PYTHON) deploy/supply.py sign

release: ## VERSION=1.2.3: close the changelog, freeze docs/releases, commit, and a tag signed by SSH
	@$(STACK) install
	@.venv/bin/python -m ops.release.making '$(VERSION)'

clean: ## stop everything and delete its data and logs
	@$(STACK) clean
