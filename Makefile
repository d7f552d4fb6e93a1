# Everything a person or a script does with this repository. Each target does its own set-up in .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo up test scenario-update soak-board soak-board-users soak-scenarios soak-scenario-mutants soak-store check fmt fmt-check lint type arch proto proto-check crds crds-check docs-check lock bench soak docs clean

help: ## List the targets
	@grep -hE '^[a-z-]+[a-z%-]*:.*?## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*?## "} {printf "  \033[36m%-16s\033[0m %s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv with everything that is locked

$(STAMP): requirements/dev.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP) ## From one manifest to tokens: start everything, roll out a real model, check every step
	@$(BIN)/rkfleet demo

up: $(STAMP) ## Start a fleet on this machine (controller, registry, gateway, one CPU board, sample models)
	@$(BIN)/rkfleet up --data-dir .rkfleet --samples

test: $(STAMP) ## All tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

scenario-update: $(STAMP) ## Write the transcripts in tests/scenario (sessions, fleets) anew; review the difference
	@RKFLEET_UPDATE=1 $(BIN)/python -m pytest -q tests/scenario/test_session_transcripts.py tests/scenario/test_fleets.py

check: fmt-check lint type arch proto-check crds-check docs-check test ## Everything that CI checks

fmt: $(STAMP) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet .

fmt-check: $(STAMP)
	@$(BIN)/ruff format --check --quiet .

lint: $(STAMP) ## Lint the code
	@$(BIN)/ruff check --quiet .
	@$(BIN)/buf lint

type: $(STAMP) ## Check the types
	@$(BIN)/mypy

arch: $(STAMP) ## Check the floors of the house
	@$(BIN)/lint-imports --no-logo

proto: $(STAMP) ## Generate the gRPC stubs
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/rkfleet/v1/agent.proto

proto-check: $(STAMP)
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out="$$out" --pyi_out="$$out" --grpc_python_out="$$out" proto/rkfleet/v1/agent.proto && \
	for f in agent_pb2.py agent_pb2.pyi agent_pb2_grpc.py; do cmp "$$out/rkfleet/v1/$$f" "rkfleet/v1/$$f" || { echo "run: make proto"; exit 1; }; done

crds: $(STAMP) ## Write the CRD YAML from the kinds
	@$(BIN)/python -m controller.api.crds manifests/crds

crds-check: $(STAMP)
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(BIN)/python -m controller.api.crds "$$out" && \
	diff -r "$$out" manifests/crds || { echo "run: make crds"; exit 1; }

docs: $(STAMP) ## Write the pages that follow from code
	@$(BIN)/python docs/generate.py

docs-check: $(STAMP)
	@$(BIN)/python docs/generate.py --check

lock: ## Lock the requirements with uv (hashes, no index host); UPGRADE=--upgrade takes the newest of everything
	@command -v uv > /dev/null || { echo "make lock needs uv on PATH"; exit 1; }
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header $(UPGRADE) --extra dev pyproject.toml -o requirements/dev.txt
	@for extra in all agent; do uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header $(UPGRADE) -c requirements/dev.txt --extra $$extra pyproject.toml -o requirements/$$extra.txt || exit 1; done
	@for set in controller gateway cpu:agent; do uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header -c requirements/all.txt $$(printf -- ' --extra %s' $${set//:/ }) pyproject.toml -o requirements/$${set%%:*}.txt || exit 1; done
	@sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header -c requirements/dev.txt - -o requirements/build.txt

bench: $(STAMP) ## Run every benchmark; exits 1 if a goal is missed
	@missed=0; for script in bench/[a-z]*.py; do \
	  case $$script in bench/report.py) ;; *) $(BIN)/python -m bench.$$(basename $$script .py) || missed=1;; esac; done; exit $$missed

bench-%: $(STAMP) ## Run one benchmark, for example bench-store
	@$(BIN)/python -m bench.$*

soak: $(STAMP) ## Run every long campaign
	@$(BIN)/python -m pytest -m "soak or processes" --override-ini timeout=0 --soak 10

SOAK ?= 25
SEEDS ?= 200
FIRST ?= 1000

soak-scenarios: $(STAMP) ## Play whole fleets by chance, SEEDS of them (from FIRST on); SEED=n plays one and prints its transcript
	@$(BIN)/python -m tests.support.scenario.soak $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --first $(FIRST))

soak-scenario-mutants: $(STAMP) ## Put known faults into the code and search a seed that catches each
	@$(BIN)/python -m tests.support.scenario.mutants

soak-board: $(STAMP) ## Kill a board in every step it knows, SOAK times each (2,750 kills in 25 minutes)
	@$(BIN)/python -m pytest -s -m processes --override-ini timeout=0 --soak $(SOAK) tests/e2e/test_board_kills.py

SECONDS_PLAYED = $(if $(filter environment command,$(firstword $(origin SECONDS))),$(SECONDS),60)

soak-board-users: $(STAMP) ## Fifty users of one board for SECONDS (60) while everything fails that can, by SEED
	@env SECONDS=$(SECONDS_PLAYED) USERS=$(or $(USERS),50) $(if $(SEED),SEED=$(SEED)) $(BIN)/python -m pytest -s --override-ini timeout=0 tests/e2e/test_board_users.py

soak-store: $(STAMP) ## Kill servers and databases in a hundred histories each, and try the store for longer; SEED=n plays one history
	@$(if $(SEED),env SEED=$(SEED)) $(BIN)/python -m pytest -s -m "soak or processes" --override-ini timeout=0 --soak 10 \
	  $(if $(SEED),tests/integration/test_store_histories.py -k keeps,-k "(store or sqlite) and not restore")

soak-%: $(STAMP) ## Run one long campaign, for example soak-kill
	@$(BIN)/python -m pytest -m "soak or processes" --override-ini timeout=0 --soak 10 -k $*

clean: ## Remove what the targets made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
