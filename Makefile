# Every target builds .venv from the pinned constraints when it is missing.
PYTHON ?= python3.11
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO := 0

.PHONY: demo test chaos fuzz check bench real clean

.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt hatchling editables
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch .venv

demo: .venv
	$(BIN)/geobatch demo

# Two at a time: each has a Ray cluster of its own, and half of the tests wait for processes.
test: .venv
	$(BIN)/python -m pytest -n 2 --dist loadfile

chaos: .venv
	$(BIN)/python -m pytest tests -m chaos --timeout 3600

# Fuzzing guided by coverage, 200,000 executions per reader.
fuzz: .venv
	$(BIN)/pip install --quiet --constraint constraints.txt atheris
	for target in $$($(BIN)/python tests/fuzz/run.py --list); do $(BIN)/python tests/fuzz/run.py $$target || exit 1; done

check: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

# Each prints JSON on its last line and stores it under benchmarks/results. BENCH_OPTIONS go to the first.
bench: .venv .rivals
	$(BIN)/python benchmarks/score.py $(BENCH_OPTIONS)
	$(BIN)/python benchmarks/dispatch.py
	$(BIN)/python benchmarks/forecast.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python benchmarks/tune.py

# The rivals that benchmarks measure, each in an environment of its own.
.rivals: .venv benchmarks/rivals/setup.sh
	benchmarks/rivals/setup.sh .venv .rivals
	touch .rivals

# Ingests, scores with the demo's bundle, exports and pictures the real surveys under GEOBATCH_TEST_DATA.
real: .venv
	GEOBATCH=$(BIN)/geobatch jobs/score_real_surveys.sh "$(GEOBATCH_TEST_DATA)" demo-output/real

clean:
	rm -rf .venv .rivals demo-output dist build
