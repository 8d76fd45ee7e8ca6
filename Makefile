# Two commands for everyone: `make rollout` and `make test`. The rest is for those who change the code.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHECKED := worldkv cluster scheduler monitoring tests benchmarks

.PHONY: rollout test test-long check lint test-conformance format clean

rollout: $(VENV)/.installed  ## generate the demo worlds into runs/demo
	$(BIN)/worldkv rollout configs/demo.yaml --resume

test: $(VENV)/.installed-dev  ## the test suite
	$(BIN)/python -m pytest tests

test-long: $(VENV)/.installed-dev  ## what `test` leaves out: failures that take minutes to play through
	$(BIN)/python -m pytest -m long tests

check: lint  ## format, lint, types, architecture, unit tests: before every commit
	$(BIN)/python -m pytest tests/architecture tests/unit

lint: $(VENV)/.installed-dev  ## format, lint and types alone
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy

test-conformance:  ## dashboards against Grafana's schema; a dataset of ours with the real lerobot, in a venv of its own
	tests/conformance/grafana/check.sh
	tests/conformance/run.sh

format: $(VENV)/.installed-dev  ## what `check` asks for, done
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

clean:  ## forget the environments and all runs
	rm -rf $(VENV) .venv-conformance runs

# torch first and alone: with a range, installers may take a build with gigabytes of CUDA libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "worldkv needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another by: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
