# Each target makes the virtual environment it needs; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv

run: $(VENV)/run
	$(VENV)/bin/python -m tbmon

test: $(VENV)/dev
	$(VENV)/bin/python -m pytest

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy --strict tbmon.py aggregator.py tests

bench: $(VENV)/dev
	$(VENV)/bin/python tests/bench.py

soak: $(VENV)/dev
	$(VENV)/bin/python tests/bench.py --soak --only network

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || (echo "make: a virtual environment needs Python's venv: apt-get install python3-venv" >&2; rm -rf $(VENV); false)

$(VENV)/run: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@

.PHONY: run test lint bench soak
