# Everything works on a fresh clone with Python >= 3.11, make and git: each target makes .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install check test demo clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Files in their order: the long ones of tests/integration go first, the many short ones of tests/unit fill up the end.
test: install
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

demo: install
	$(BIN)/hilander demo

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
