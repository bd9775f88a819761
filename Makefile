# Every target sets itself up in .venv; nothing outside this folder is written.
# Variables: PYTHON (3.11 or later), TORCH_INDEX_URL (empty: pip's own index), ARGS, IMAGE, DOCKER.

PYTHON ?= python3
TORCH_INDEX_URL ?=
DOCKER ?= docker
IMAGE ?= losseval:cpu
ARGS ?=

BIN := .venv/bin
READY := .venv/.installed
PIP_FLAGS := -qq --disable-pip-version-check
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

# Only an index that was asked for is handed on: unset, the Dockerfile's own default holds; an empty one means pip's.
IMAGE_TORCH := $(if $(filter file,$(origin TORCH_INDEX_URL)),,--build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL))

.DEFAULT_GOAL := help
.PHONY: help serve test reliability soak check bench bench-cuda image lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 18

serve: $(READY) ## start the service, e.g. make serve ARGS="--port 9000"
	@exec $(BIN)/python -m service $(ARGS)

test: $(READY) ## all tests with branch coverage, e.g. make test ARGS="-k batcher"
	$(BIN)/pytest --cov --cov-report=term $(ARGS)

reliability: $(READY) ## hostile input, overload, faults: every scenario and its figures (half an hour)
	$(BIN)/pytest tests/reliability -m "not soak" $(ARGS)

soak: $(READY) ## minutes of everything at once, and a leak that must be found
	$(BIN)/pytest tests/reliability -m soak $(ARGS)

check: $(READY) ## lint, format, types, layers, dependencies; reports sizes
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry service
	@$(BIN)/python .ci/sizes.py

# matplotlib keeps a list of fonts, by default in the home directory.
bench bench-cuda: export MPLCONFIGDIR := .venv/matplotlib
bench: $(READY) ## speed, memory and accuracy beside the references
	@$(BIN)/python -m benchmarks $(ARGS)

bench-cuda: $(READY) ## the same for CUDA, where there is a GPU
	@$(BIN)/python -m benchmarks cuda $(ARGS)

image: ## build the container image, e.g. make image IMAGE=losseval:1.0
	@$(DOCKER) info >/dev/null 2>&1 || { echo "make image: '$(DOCKER)' finds no running engine. Start one, or name" \
	  "another: make image DOCKER=podman" >&2; exit 1; }
	$(DOCKER) build $(IMAGE_TORCH) --tag $(IMAGE) .

# Results are compared bit for bit, so torch moves only when its line is edited; everything else moves to its newest.
lock: ## write constraints.txt anew with the newest versions (torch stays)
	@echo "resolving the newest versions …"
	@rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock
	@$(if $(TORCH_INDEX_URL),.venv/lock/bin/pip install $(PIP_FLAGS) --no-deps --index-url $(TORCH_INDEX_URL) '$(TORCH)')
	@.venv/lock/bin/pip install $(PIP_FLAGS) '$(TORCH)' '.[dev]' './clients/python[cli,plot]'
	@{ sed -n '/^#/p' constraints.txt; .venv/lock/bin/pip freeze --all --exclude pip --exclude losseval --exclude losseval-service \
	  | sed 's/+[a-z0-9]*$$//'; } >.venv/lock/constraints.txt
	@mv .venv/lock/constraints.txt constraints.txt && rm -rf .venv/lock

clean: ## remove the virtual environment and everything generated
	rm -rf .venv .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml clients/python/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed (PYTHON=…)")'
	@echo "setting up .venv: some minutes, mostly for torch (CUDA build: gigabytes; see TORCH_INDEX_URL in the README) …"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(if $(TORCH_INDEX_URL),$(BIN)/pip install $(PIP_FLAGS) --no-deps --index-url $(TORCH_INDEX_URL) '$(TORCH)')
	@$(BIN)/pip install $(PIP_FLAGS) --constraint constraints.txt hatchling
	@$(BIN)/pip install $(PIP_FLAGS) --constraint constraints.txt --no-build-isolation --editable '.[dev]' \
	  --editable 'clients/python[cli,plot]'
	@touch $@
