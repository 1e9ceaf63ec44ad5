# `make help` lists what can be done here.
PYTHON ?= python3.11
BLOCKS ?= 3
NODES ?= 4
POOLS ?= 2
MINERS ?= 3
DATA ?=
SPLIT ?= even
BIN := .venv/bin
SOURCES := core services node pool requester provider tools clients/python/src
# Torch comes first and from the processor-only index where one is given, so that no CUDA libraries are fetched.
TORCH_INDEX ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests and networks start hundreds of processes: each module is compiled once, whatever the caller's environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup check test e2e audit proto proto-release client testnet clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

setup: .venv/.installed ## create .venv and install everything, at the versions of constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the path: install Python 3.11, or run 'make setup PYTHON=/path/to/python3.11'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "$(PYTHON) is not Python 3.11: run 'make setup PYTHON=/path/to/python3.11'" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (Debian and Ubuntu: apt install python3.11-venv)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,data,figures,tracing,dev]'
	@touch $@

check: setup ## style, types, import rules, and that the stubs are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy $(SOURCES)
	PYTHONPATH=.:proto $(BIN)/lint-imports
	$(BIN)/python tools/generate_stubs.py --check
	$(BIN)/python tools/client_sync.py --check
	$(BIN)/python -m tools.proto_lint
	$(BIN)/python -m tools.proto_breaking

# A worker takes a whole file, so that what a file starts once is started once; those that start networks come first.
test: setup ## the tests, on two workers; say ARGS='-k name' to choose, ARGS='-n 0' for one process
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m 'not e2e' $(ARGS)

e2e: setup ## the longest tests: networks on real data, manifests with faults and liars, hosts, stock Flower, containers
	$(BIN)/python -m pytest -m e2e $(ARGS)

audit: setup ## are all dependencies pinned, and is a hole in one of them known (tools/audit.py)
	$(BIN)/python -m tools.audit

proto: setup ## write the stubs beside the contracts in proto/
	$(BIN)/python tools/generate_stubs.py

proto-release: setup ## these contracts are the release that later ones must not break (proto/released.binpb)
	$(BIN)/python -m tools.proto_breaking --release

client: setup ## dist/pofl_client-*.whl: stubs and a client for scripts, needs grpcio and protobuf only (docs/clients.md)
	$(BIN)/python tools/client_sync.py
	cd clients/python && ../../$(BIN)/python -m hatchling build -t wheel -d ../../dist

testnet: setup ## mine BLOCKS work blocks here with NODES, POOLS, MINERS in each pool; DATA=descriptor, SPLIT=key: your data
	$(BIN)/pofl testnet up --blocks $(BLOCKS) --nodes $(NODES) --pools $(POOLS) --miners $(MINERS) $(if $(DATA),--data $(DATA) --split $(SPLIT))

clean: ## remove caches and build output; keeps .venv and data
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find core services node pool requester provider tests tools proto clients -name __pycache__ -type d -prune -exec rm -rf {} +
