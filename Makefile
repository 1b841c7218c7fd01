# Every target makes .venv first if it is missing, or older than what it is made from.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test lint check bench

quickstart: $(INSTALLED)  ## the whole recipe on a tiny model: base -> SFT -> reward model -> PPO -> report
	$(BIN)/triptych run recipes/quickstart.yaml --seed $(SEED)

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

bench: $(INSTALLED)  ## compare with TRL on the same work; results in benchmarks/results (PPO's needs --peer-python: see the file)
	$(BIN)/python benchmarks/kwise_speed.py
	$(BIN)/python benchmarks/sft_packing.py
	$(BIN)/python benchmarks/data_preparation.py

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("triptych needs Python 3.11 or newer; name one: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
