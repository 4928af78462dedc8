# Everything runs in .venv, which the first target that needs it makes. Nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# No usage statistics, and no copies of the environment per worker.
export RAY_USAGE_STATS_ENABLED := 0
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
export MLFLOW_DISABLE_TELEMETRY := true
# Where it is set, each worker process compiles PyTorch's modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-orchestrator test-run test-attacks test-floors test-long coverage lint docs clean

demo: $(READY)
	$(BIN)/fedveil sweep tune_configs/demo.yaml

# Four processes' worth of tests, side by side with `make -j4 test`: two of them wait for Ray, servers and processes that are
# to die for much of their time, so that two cores do for all.
test: test-orchestrator test-run test-attacks test-floors

# Ray gives its workers niceness 15: what runs beside them would go first, and the tests that wait for them end last.
test-orchestrator test-run: export RAY_worker_niceness := 0

test-orchestrator: $(READY)
	COVERAGE_FILE=.coverage.orchestrator $(BIN)/python -m pytest $(COUNTED) tests/orchestrator --ignore=tests/orchestrator/run

test-run: $(READY)
	COVERAGE_FILE=.coverage.run $(BIN)/python -m pytest $(COUNTED) tests/orchestrator/run

test-attacks: $(READY)
	COVERAGE_FILE=.coverage.attacks $(BIN)/python -m pytest $(COUNTED) tests/attacks

test-floors: $(READY)
	COVERAGE_FILE=.coverage.floors $(BIN)/python -m pytest $(COUNTED) --ignore=tests/orchestrator --ignore=tests/attacks

# Every kind of fault once, laws over more moments, sweeps that go on elsewhere: more of what the tests above are a sample of.
test-long: export RAY_worker_niceness := 0
test-long: $(READY)
	$(BIN)/python -m pytest -m long

# Which lines the tests run. Counting them takes up to as long again as the tests, so that CI does without.
coverage:
	$(MAKE) test COUNTED='--cov --cov-report='
	$(BIN)/coverage combine
	$(BIN)/coverage report --fail-under=85

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, read and never imported: build/site/index.html opens in a browser, without a server or a network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# One resolver run for all packages: torch and torchvision have to come from the same release.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "fedveil needs Python 3.11 or newer, this is %d.%d; make PYTHON=python3.12 ..." % v[:2])'
	@echo "Making .venv (about 6 GB with PyTorch; once) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --editable '.[dev,docs]'
	@touch $(READY)

clean:
	rm -rf .venv runs mlflow.db
