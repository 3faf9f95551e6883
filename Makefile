# Each target makes .venv if it is missing, then runs one command.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

$(VENV)/base: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; set PYTHON to a Python 3.11 or newer."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar=off --editable .
	touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/python -m pip install --quiet --progress-bar=off --editable ".[dev]"
	touch $@

demo: $(VENV)/base  ## the main job on the demo corpus: recogniser, German, report
	$(BIN)/python -m jaxmoe.launch --phase=all --config=configs/quickstart.py

test: $(VENV)/dev  ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

bench: $(VENV)/dev  ## speed beside other programs, into docs/speed.md; CLIPS=a CSV of real clips
	$(BIN)/python -m benchmarks.suite $(if $(CLIPS),--csv=$(CLIPS))

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
