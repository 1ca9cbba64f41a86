# Every target that needs .venv prepares it first. A stamp in .venv says what it holds;
# scripts/bootstrap.sh runs only when a stamp is missing or older than what it depends on.
.DEFAULT_GOAL := help
.PHONY: help serve cluster test check bench bench-http bench-security bench-cluster clean

# The stamps carry the folder's checksum: a .venv that was moved or copied does not work,
# nor does one whose interpreter is gone (then KEY is empty, and no stamp has that name).
KEY := $(shell test -x .venv/bin/python && pwd -P | cksum | cut -d' ' -f1)
BASE := .venv/.base-$(KEY)
DEV := .venv/.dev-$(KEY)
BENCH := .venv/.bench-$(KEY)

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

serve: $(BASE) ## Start the server (settings: environment or .env; PORT=8080 make serve)
	@exec .venv/bin/akm serve $(ARGS)

cluster: $(BASE) ## Start PostgreSQL, Redis and three nodes behind nginx (empty: ARGS=--fresh)
	@exec .venv/bin/python -m scripts.cluster $(ARGS)

test: $(DEV) ## Run the tests (some of them: make test ARGS="tests/unit -k window"; in one process: ARGS="-n 0")
	@exec .venv/bin/python -m pytest -n auto --dist worksteal $(ARGS)

check: $(DEV) ## Lint, format, types, layers
	@echo "ruff check" && .venv/bin/ruff check .
	@echo "ruff format" && .venv/bin/ruff format --check .
	@echo "mypy --strict" && .venv/bin/mypy --strict src
	@echo "lint-imports" && .venv/bin/lint-imports

bench: $(BENCH) ## Measure, beside the peers
	@exec .venv/bin/python -m benchmarks $(ARGS)

bench-http: $(BENCH) ## Measure over HTTP, beside nginx and others (needs nginx with Lua, and wrk)
	@exec .venv/bin/python -m benchmarks http $(ARGS)

bench-security: $(BENCH) ## Does the time of a refusal tell what was wrong? (quick: ARGS=--quick)
	@exec .venv/bin/python -m benchmarks.security $(ARGS)

bench-cluster: $(DEV) ## Measure a cluster: revocation, limits, scale, nodes, cold start
	@exec .venv/bin/python -m benchmarks cluster $(ARGS)

clean: ## Remove .venv, caches and build output (never data/)
	rm -rf .venv .venv.lock build dist htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BASE): pyproject.toml requirements.txt scripts/bootstrap.sh
	@scripts/bootstrap.sh base

$(DEV): pyproject.toml requirements-dev.txt scripts/bootstrap.sh
	@scripts/bootstrap.sh dev

$(BENCH): pyproject.toml requirements-dev.txt requirements-bench.txt scripts/bootstrap.sh
	@scripts/bootstrap.sh bench
