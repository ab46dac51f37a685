# Everything a newcomer types. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help serve test test-all bench lint clean

PY := .venv/bin/python
SERVE_ARGS ?=
BENCH_ARGS ?= all
PYTEST_ARGS ?=

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: ## Start a cache on this machine (SERVE_ARGS="--listen HOST:PORT --max-size 50GB ...")
	@scripts/environment
	@exec $(PY) -m cachesrv serve $(SERVE_ARGS)

lint: ## Format, lint and types; shell scripts and deploy/ too
	@scripts/environment test,lint
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/shellcheck scripts/* .ci/run
	.venv/bin/hadolint deploy/Containerfile
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml

test: lint ## Lint, then every test that PyPI and npm packages suffice for
	@scripts/install-npm-clients
	$(PY) -m pytest $(PYTEST_ARGS)

test-all: ## The same with every client installed (apt, as root or with sudo); no skip is allowed
	@scripts/install-system-clients
	@$(MAKE) --no-print-directory lint
	@scripts/install-npm-clients
	CACHESRV_NO_SKIPS=1 $(PY) -m pytest $(PYTEST_ARGS)

bench: ## Measure speed and memory, as ratios against named references (BENCH_ARGS="get --quick")
	@scripts/environment test,lint,bench
	@scripts/install-npm-clients
	@exec $(PY) -m benchmarks $(BENCH_ARGS)

clean: ## Remove the environment, installed clients and caches of tools
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/clients/npm/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
