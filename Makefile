# Every target makes what it needs first; `make` alone shows them.
.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV ?= .venv
# The newest Python that works; name another with `make PYTHON=python3.12 …`.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# Tests wait for servers and deadlines more than they compute; each process has servers of its own.
JOBS ?= 4

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(STAMP) ## Watch events travel, on servers of its own (ARGS="--events 2000 …")
	$(BIN)/cos-events demo $(ARGS)

.PHONY: test
test: $(STAMP) ## Run all tests, with coverage (ARGS="-k name …": some, without)
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),-n $(JOBS) --dist worksteal --cov --cov-report=term:skip-covered)

.PHONY: check
check: lint types security ## Lint, types and security scan

.PHONY: lint
lint: $(STAMP) ## Style (ruff), and the directions of imports (import-linter)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

.PHONY: types
types: $(STAMP) ## Types (mypy --strict)
	$(BIN)/mypy

.PHONY: security
security: $(STAMP) ## Security scan (bandit)
	$(BIN)/bandit -q -r cos_events workers celeryconfig.py -c pyproject.toml

.PHONY: dist-check
dist-check: $(STAMP) ## Build wheel and sdist, install them elsewhere, run the demo from there
	$(BIN)/python ops/dist_check.py

.PHONY: compose-smoke
compose-smoke: ## Bring docker-compose.yml up, put rows through it, take it down (needs Docker)
	ops/compose-smoke.sh

.PHONY: servers
servers: ## Install the servers that tests start themselves: PgBouncer, RabbitMQ (Debian and its kin; sudo)
	sudo ops/install-servers.sh

.PHONY: constraints
constraints: $(STAMP) ## Resolve all versions anew into constraints.txt (needs uv)
	uv pip compile --universal --no-header --no-annotate --no-emit-index-url --python-version 3.11 \
	  --all-extras --group dev pyproject.toml -o constraints.txt

.PHONY: clean
clean: ## Remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage* dist

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: install one, or name it with PYTHON=…"; exit 1; }
	@if command -v uv >/dev/null; then \
	  uv venv -q --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[all]' --group dev; \
	else \
	  { $(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }; } && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -U 'pip>=25.1' && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[all]' --group dev; \
	fi
	@touch $(STAMP)
