# make train   install, train the default model, print its word error rate
# make test    install, run the tests that take seconds
# make test-integration  whole commands, interrupted runs, exports, shipped models
# make test-slow  the tests that take minutes each
# make bench   timings against the peers
# make lint    style, unused code and types
# make docs    the documentation, into site/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

CHROMIUM = $(shell command -v chromium chromium-browser google-chrome | head -1)

.PHONY: train test test-integration test-slow test-page bench lint docs clean

# The stamp is as old as the installation; a changed setup.py installs again.
$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[train,synth]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

train: $(VENV)/installed
	$(BIN)/python train.py hparams/hyperconformer.yaml

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope

test-integration: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "integration and not slow" -n auto --dist loadscope

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

test-page: $(VENV)/installed-dev
	@test -n "$(CHROMIUM)" || { echo "needs Chromium: apt-get install chromium"; false; }
	npm ci --prefix tests/page --ignore-scripts --no-audit --no-fund
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/page -m "slow or not slow"

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build site *.egg-info .pytest_cache .ruff_cache .mypy_cache
