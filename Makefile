# Everything runs in .venv; the first target that needs it makes it. PYTHON must be 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

# What `make simulate` plays: SCHEDULES (for ever, if empty), one SEED with its trace, on which STORE (memory, sqlite).
STORE ?= memory

.PHONY: help demo test simulate lint bench drill peers matrix ranges clean

help:            ## what there is
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: .venv/demo ## a real agent against the bundled stand-in provider, no keys needed
	@$(BIN)/maestro demo

test: .venv/test ## all tests that this machine allows; the summary says what was skipped and why
	@$(BIN)/python -m pytest

simulate: .venv/test ## play schedules of processes that share a ledger: SCHEDULES=1000000, SEED=148 to replay one, STORE=sqlite
	@PYTHONPATH=tests PYTHONHASHSEED=0 $(BIN)/python -m simulation --store $(STORE) $(if $(SEED),--seed $(SEED)) $(if $(SCHEDULES),--schedules $(SCHEDULES))

lint: .venv/lint ## format, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: .venv/test ## measure: prices, ledger, handler; ratios are taken side by side in one run
	@for each in tests/benchmarks/bench_*.py; do echo "== $$each"; $(BIN)/python $$each || exit 1; done

drill: .venv/test ## kill, stop and starve workers while they make calls, for minutes, and compare with the true bill
	@for each in tests/drills/*.py; do echo "== $$each"; $(BIN)/python $$each || exit 1; done

peers: .venv/test ## prices beside genai-prices and litellm, spans beside other instrumentations, each in its own environment; needs the network
	@$(BIN)/python tests/peers/prices.py
	@$(BIN)/python tests/benchmarks/bench_routing.py --peers
	@$(BIN)/python tests/peers/telemetry.py
	@$(BIN)/python tests/peers/backends.py
	@$(BIN)/python tests/peers/metrics.py

matrix:          ## try every LangChain chat integration against a server on this machine; writes docs/providers.md
	@test -x .venv-matrix/bin/python || $(PYTHON) -m venv .venv-matrix
	@.venv-matrix/bin/python -m pip install -qq --upgrade 'pip>=25.1'
	@.venv-matrix/bin/python -m pip install -qq --editable . --group matrix
	@.venv-matrix/bin/python tests/matrix/providers.py

ranges:          ## the lowest versions of everything, each framework alone; LlamaIndex's other makers; needs the network; writes docs/ranges.md
	@test -x .venv-ranges/uv/bin/uv || { $(PYTHON) -m venv .venv-ranges/uv && .venv-ranges/uv/bin/python -m pip install -qq uv; }
	@PATH="$(CURDIR)/.venv-ranges/uv/bin:$$PATH" $(PYTHON) tests/ranges/run.py

clean:           ## forget the environment and all caches
	rm -rf .venv .venv-matrix .venv-peers .venv-ranges .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Maestro needs Python 3.11 or newer; run make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --upgrade 'pip>=25.1'
	@touch $@

.venv/demo: .venv/pip pyproject.toml
	@echo "installing Maestro and the LangChain clients into .venv (once, about half a minute) ..."
	@$(BIN)/python -m pip install -qq --editable '.[demo]'
	@touch $@

.venv/test: .venv/demo
	@echo "installing the test tools into .venv (once) ..."
	@$(BIN)/python -m pip install -qq --group test
	@touch $@

.venv/lint: .venv/test
	@$(BIN)/python -m pip install -qq --group lint
	@touch $@
