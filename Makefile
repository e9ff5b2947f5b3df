# Everything starts from a clone with Python 3.11+, git and make. uv is used where it is installed.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# the optional parts that tests need
EXTRAS := audio,detect,fast,heif,medical,onnx,satellite,text,tune
# a process a core, each with one thread
# an empty variable: what is compiled for the tests, shapes checked, is kept for the next time
TEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
.DEFAULT_GOAL := help

.PHONY: help env demo test test-all test-rest lint format clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

env: .venv/.installed ## Make the environment and install plusx into it

.venv/.installed: pyproject.toml
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) .venv && \
	  UV_COMPILE_BYTECODE=1 uv pip install --quiet --python $(BIN)/python --group dev --editable '.[$(EXTRAS)]' ; \
	else \
	  $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	  $(BIN)/python -m pip install --quiet --group dev --editable '.[$(EXTRAS)]' ; \
	fi
	@touch $@

demo: env ## Why skip connections matter, on real data, in about two minutes
	$(BIN)/plusx compare digits --out demo

test: env ## The quick tests (about two minutes on 2 cores)
	$(TEST) -m "not slow and not data and not gpu"

test-all: env ## Every test; PLUSX_DATA=DIR adds those on the public data sets
	$(TEST)

test-rest: env ## What `make test` leaves out of `make test-all`
	$(TEST) -m "slow or data or gpu"

lint: env ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: env ## Let ruff put the source in order
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## Remove the environment and every cache
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
