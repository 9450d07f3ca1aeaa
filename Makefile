PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := .venv-extras
INSTALL := python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-deploy test test-extras lint oracles bench docs clean

demo: $(VENV)/installed
	$(BIN)/plures compare har --rounds 10 --every 5 --tune-rounds 2 --processes 2 --out runs/demo

case-%: $(VENV)/installed
	$(BIN)/plures case $* --processes 2

demo-deploy: $(VENV)/flower
	$(BIN)/plures deploy demo --out runs/demo-deploy

test: $(VENV)/developing
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder

test-extras: $(EXTRAS)/ready
	$(EXTRAS)/bin/python -m pytest -n 2 -m extra -rs

lint: $(VENV)/developing
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/mypy

oracles: $(VENV)/developing
	$(BIN)/python -m tools.coverage --check

docs: $(VENV)/developing
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/developing
	$(BIN)/python -m benchmarks.speed --out benchmarks/results/speed
	$(BIN)/python -m benchmarks.har --out benchmarks/results/har
	$(BIN)/python -m benchmarks.families --out benchmarks/results/families
	$(BIN)/python -m benchmarks.hostile --out benchmarks/results/hostile
	$(BIN)/python -m benchmarks.protection --out benchmarks/results/protection
	$(BIN)/python -m benchmarks.schools --out benchmarks/results/schools
	$(BIN)/python -m benchmarks.bucketing --out benchmarks/results/bucketing --minutes 60
	$(BIN)/python -m benchmarks.protocols --out benchmarks/results/protocols
	$(BIN)/python -m benchmarks.tcga --out benchmarks/results/tcga
	$(BIN)/plures study benchmarks/studies/reduced.toml --processes 2 --out runs/reduced
	cp runs/reduced/report.html benchmarks/results/reduced.html
	$(BIN)/python -m benchmarks.advice
	$(BIN)/python -m benchmarks.failures --out benchmarks/results/failures
	$(BIN)/python -m benchmarks.rivals --out benchmarks/results/rivals
	$(BIN)/python -m benchmarks.population --out benchmarks/results/population
	$(BIN)/python -m benchmarks.scale --out benchmarks/results/scale
	$(BIN)/python -m benchmarks.lazy --out benchmarks/results/lazy
	$(BIN)/python -m benchmarks.wire --out benchmarks/results/wire
	$(BIN)/python -m benchmarks.warm --out benchmarks/results/warm

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/$(INSTALL) --editable ".[pool]"
	touch $@

$(VENV)/flower: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/$(INSTALL) --editable ".[flower,pool]"
	touch $(VENV)/installed $@

$(VENV)/developing: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/$(INSTALL) --editable ".[dev]"
	touch $(VENV)/installed $@

$(EXTRAS)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EXTRAS)
	$(EXTRAS)/bin/$(INSTALL) --editable ".[dev,hf,mlflow,mobile,parquet,ray,wandb]"
	touch $@

clean:
	rm -rf $(VENV) $(EXTRAS) runs .mypy_cache .ruff_cache .pytest_cache
