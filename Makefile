# make train     train on the embedded digits; ARGS="model=vgg data=mnist" is passed on
# make test      the fast tests;  make test-all: the slow ones too;  make check: lint, types and fast tests, what CI runs
# make test-lowest  the fast tests with the lowest versions that pyproject.toml admits, in .venv-lowest
# make bench     the benchmarks against other loaders and loops, in benchmarks/results.json and docs/benchmarks.md; ARGS="root=DIR": your photographs
# make docs      the pages of docs/ as a web site in site/;  make docs-serve: shown while they are edited
# make test-slurm  on a SLURM cluster of two nodes that it starts on this machine, and ends; needs root
# make gpu      on a machine with a GPU: the tests that need one, and benchmarks/gpu.py; PYTHON=python3 WHEELS=FOLDER
# Each target sets up what it needs in .venv the first time and starts at once the next.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help train bench test test-all test-lowest test-slurm gpu prove-resume prove-remote check lint types format docs docs-serve tensorboard wheel clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
PEERS := .venv-bench
ARGS ?=
# One process per core, one torch thread each: networks this small gain nothing from a second thread. Plugins by name: of those
# that it finds, Hydra's and three more, pytest would rewrite all asserts. Bytecode is kept, as tests start many processes.
PLUGINS := --disable-plugin-autoload -p xdist.plugin -p _hypothesis_pytestplugin
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PLUGINS) -n auto --dist loadfile

help:
	@sed -n 's/^# //p' Makefile | head -8

train: $(VENV)/installed
	$(BIN)/python -m imgrec.train model=resnet optim=adam $(ARGS)

test: $(VENV)/installed-dev
	$(PYTEST)

test-all: $(VENV)/installed-dev
	$(PYTEST) -m "not slurm" --hypothesis-profile=all

# Last run: 2026-11-27, Python 3.11.7, one process: 3,545 passed, 5 skipped, with torch 2.11.0, torchvision 0.26.0, Lightning 2.6.4,
# numpy 2.2.0, scikit-learn 1.8.0 and the other floors.
test-lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist loadfile $(ARGS)

# The fixture starts tests/slurm/cluster and ends it; one process, as the nodes share this machine's cores.
test-slurm: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm -v --durations=0 -rs tests/slurm $(ARGS)

# With the Python that has torch for this card, not with .venv, which a machine without a network cannot make.
gpu:
	PYTHON=$(PYTHON) tests/gpu/run.sh

check: lint types test

bench: $(VENV)/installed-dev $(PEERS)/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/all.py $(ARGS)

prove-resume: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/prove_resume.py $(ARGS)

prove-remote: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/prove_remote.py $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)/installed-docs
	$(BIN)/mkdocs serve

tensorboard: $(VENV)/installed
	@$(BIN)/python launch/open_tensorboard runs

wheel: $(VENV)/installed-dev
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Debian ships venv's pip apart from Python; root may fetch it, others are told what to type.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11. Type: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } \
	  || { echo "$(PYTHON) has no venv. Type: sudo apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch and torchvision come in one call, so that pip chooses a matching pair.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/installed-docs: pyproject.toml $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

# uv resolves to the floors; what they need in turn comes in the newest version that fits. In an empty environment each time, as
# uv keeps an installed version that is above a floor.
$(LOWEST)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[dev]'
	@touch $@

# The other loaders that benchmarks compare with, each line of the list by itself, as not every one can be installed everywhere. They
# find torch in .venv, but nothing in .venv finds them. FFCV is compiled: apt-get install libopencv-dev libturbojpeg0-dev pkg-config
$(PEERS)/installed: benchmarks/peers.txt $(VENV)/installed-dev
	$(BIN)/python -m venv --clear $(PEERS)
	echo $(CURDIR)/$(VENV)/lib/python*/site-packages > $$(echo $(PEERS)/lib/python*/site-packages)/torch.pth
	while read -r line; do $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$line || echo "not installed: $$line"; done < $<
	@touch $@
