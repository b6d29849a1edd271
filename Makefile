# `make train` and `make test` are all the set-up there is. Both need only python3 (>= 3.11) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NPROC ?= 2
# Unit tests by file on two workers; the others start processes of their own and run one at a time.
UNIT := -n 2 --dist loadfile tests/unit

.PHONY: help install train test test-slow golden check format lint types docs site bench lock clean

help:
	@echo "make train      install, make a small JPEG data set, train on $(NPROC) processes, show the result"
	@echo "make test       install, run the tests"
	@echo "make test-slow  also those that take minutes each"
	@echo "make golden     rewrite the losses in tests/golden (review the diff)"
	@echo "make check      format, lint, types, tests: what CI runs"
	@echo "make docs       write docs/configuration.md and docs/recipes.md"
	@echo "make site       the documentation as a site, in site/"
	@echo "make bench      measure loaders and step on this machine"
	@echo "make clean      remove the environment"

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml tools/install.sh
	bash tools/install.sh "$(PYTHON)" "$(VENV)"
	@touch $(STAMP)

train: $(STAMP)
	$(BIN)/resnet-dist train --nproc $(NPROC)

test: $(STAMP)
	$(BIN)/python -m pytest $(UNIT)
	$(BIN)/python -m pytest --ignore tests/unit

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "" $(UNIT)
	$(BIN)/python -m pytest -m "" --ignore tests/unit

golden: $(STAMP)
	$(BIN)/python -m tests.golden

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

site: $(STAMP)
	$(BIN)/mkdocs build --strict -q
	@echo "site/index.html"

docs: $(STAMP)
	$(BIN)/python -m resnet_dist.config.help.page > docs/configuration.md
	$(BIN)/python -m resnet_dist.recipes --markdown > docs/recipes.md

bench: $(STAMP)
	$(BIN)/resnet-dist bench

lock: $(STAMP)
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile -q pyproject.toml --extra dev \
		--generate-hashes --python-version 3.11 --upgrade -o requirements.lock

clean:
	rm -rf $(VENV) .uv build *.egg-info
