# Every target sets itself up in .venv; nothing outside this folder is written.
# Variables: PYTHON (3.11 or later), TORCH_INDEX_URL (empty: pip's own index), ARGS, IMAGE, DOCKER.

PYTHON ?= python3
TORCH_INDEX_URL ?=
DOCKER ?= docker
IMAGE ?= losseval:cpu
# Compose reads it, too.
export COMMIT ?= $(shell git rev-parse --short HEAD 2>/dev/null)
ARGS ?=

BIN := .venv/bin
READY := .venv/.installed
PIP_FLAGS := -qq --disable-pip-version-check
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

# Only an index that was asked for is handed on: unset, the Dockerfile's own default holds; an empty one means pip's.
IMAGE_TORCH := $(if $(filter file,$(origin TORCH_INDEX_URL)),,--build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL))

.DEFAULT_GOAL := help
.PHONY: help serve test reliability soak check check-deploy rules bench bench-cuda demo audit image up up-monitoring lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 24

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

check-deploy: $(READY) ## deploy/, Dockerfile and compose files: syntax, rules, metrics that exist
	@for tool in promtool:prometheus amtool:prometheus-alertmanager; do command -v $${tool%:*} >/dev/null \
	  || { echo "make check-deploy: no $${tool%:*}; Debian and Ubuntu have it in the package $${tool#*:}" >&2; exit 1; }; done
	REQUIRE_TOOLCHAINS=1 $(BIN)/pytest tests/deploy $(ARGS)

# The operator wants the rules inside a resource of its own. The comments stay.
rules: ## write deploy/kubernetes/prometheusrule.yaml anew from deploy/prometheus/rules
	@{ sed '/^  groups:/q' deploy/kubernetes/prometheusrule.yaml; \
	  sed -e '/^groups:/d' -e 's/^./  &/' deploy/prometheus/rules/*.yml; } >deploy/kubernetes/.rules
	@mv deploy/kubernetes/.rules deploy/kubernetes/prometheusrule.yaml

# matplotlib keeps a list of fonts, by default in the home directory.
bench bench-cuda demo test check-deploy: export MPLCONFIGDIR := .venv/matplotlib
bench: $(READY) ## speed, memory and accuracy beside the references
	@$(BIN)/python -m benchmarks $(ARGS)

bench-cuda: $(READY) ## the same for CUDA, where there is a GPU
	@$(BIN)/python -m benchmarks cuda $(ARGS)

# In an environment of its own: nothing else needs what it brings. Strict: what can't be looked up is a failure.
audit: ## known vulnerabilities of what constraints.txt pins; needs the network
	@test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install $(PIP_FLAGS) pip-audit; }
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

demo: $(READY) ## a model gets worse on purpose, and Alertmanager tells somebody (needs Debian's prometheus)
	@exec $(BIN)/python -m examples.pipeline $(ARGS)

# A recipe's first line where an engine is needed.
NEEDS_ENGINE = $(DOCKER) info >/dev/null 2>&1 || { echo "make $@: '$(DOCKER)' finds no running engine. Start one, or name" \
	  "another: make $@ DOCKER=podman" >&2; exit 1; }

image: ## build the container image, e.g. make image IMAGE=losseval:1.0
	@$(NEEDS_ENGINE)
	$(DOCKER) build $(IMAGE_TORCH) --build-arg COMMIT=$(COMMIT) --tag $(IMAGE) .

up: ## build and start the service in a container
	@$(NEEDS_ENGINE)
	$(DOCKER) compose up --detach --build --wait
	@echo "losseval      http://127.0.0.1:8000"

up-monitoring: ## the same beside Prometheus, Alertmanager and Grafana
	@$(NEEDS_ENGINE)
	$(DOCKER) compose --profile monitoring up --detach --build --wait
	@echo "losseval      http://127.0.0.1:8000"
	@echo "Grafana       http://127.0.0.1:3000"
	@echo "Prometheus    http://127.0.0.1:9090"
	@echo "Alertmanager  http://127.0.0.1:9093"

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
	rm -rf .venv .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist demo
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
