# The one list of commands. Each prepares what it needs (tools/setup.sh); second runs start in seconds.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PY := .venv/bin/python
ARGS ?=

.PHONY: help setup setup-test demo demo-cluster test test-fast test-cluster chaos model sim sim-cluster coverage check lint format bench vectors lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## virtual environment, native module, system packages
	@tools/setup.sh base

setup-test:
	@tools/setup.sh test

demo: setup ## the live demonstration; ARGS="--quick --json out.json" passes arguments on
	@.venv/bin/jumpvpn demo $(ARGS)

demo-cluster: setup-test ## a download across a killed gateway: three etcd, two gateways; ARGS="--json out.json"
	@$(PY) -m jumpvpn.lab.cluster.demo $(ARGS)

test: setup-test ## all tests but those of real clusters: Rust, Python, network namespaces
	@cargo test --workspace --exclude jumpvpn-python --locked --quiet
	@$(PY) -m pytest --ignore=tests/cluster $(ARGS)

test-fast: setup-test ## tests that need no namespaces
	@$(PY) -m pytest --ignore=tests/cluster -m "not netns" $(ARGS)

test-cluster: setup-test ## real clusters under every fault, with progress; ARGS="-k owner_killed"
	@$(PY) -m pytest tests/cluster -v -p no:randomly $(ARGS)

chaos: setup-test ## clusters under random faults, 20 seeds or 10 minutes; ARGS="--seed 7" sees one again
	@$(PY) -m jumpvpn.lab.cluster.chaos $(ARGS)

model: setup-test ## explore the session's machine, try its mutants, check the TLA+ module; ARGS="--deep"
	@$(PY) -m jumpvpn.model $(ARGS)
	@$(PY) -m jumpvpn.tracecheck --model

sim: setup-test ## both engines in a simulated world, 2,000 seeds; ARGS="--seed 17" shows one
	@$(PY) -m jumpvpn.sim $(ARGS)

sim-cluster: setup-test ## the gateways' shell and both engines in simulated clusters, 500 seeds; ARGS="--mutants"
	@$(PY) -m jumpvpn.sim.cluster $(ARGS)

coverage: setup-test ## write docs/reference/coverage.md from exploration, simulation and the journals of real nodes
	@mkdir -p coverage-output
	@$(PY) -m jumpvpn.model --output coverage-output/model.json
	@$(PY) -m jumpvpn.sim --output coverage-output/sim.json
	@$(PY) -m pytest -q -m netns --audit-output=coverage-output/real.json
	@$(PY) tools/coverage.py coverage-output

check: setup-test ## format, lint, types, import contracts, clippy, licences
	@tools/check.sh

format: setup-test ## rewrite the sources in the project's format
	@.venv/bin/ruff check --fix --quiet . && .venv/bin/ruff format --quiet . && cargo fmt

bench: setup-test ## measurements in the lab, JSON on stdout; ARGS="--only recovery --rounds 5"
	@$(PY) -m bench $(ARGS)

vectors: ## write spec/vectors again
	@cargo run --quiet --locked -p jumpvpn-packet --example vectors

lock: ## resolve the dependencies again
	@.venv/bin/python -m pip install --quiet uv
	@.venv/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 \
	  --extra dev pyproject.toml -o requirements.lock
	@cargo update

clean: ## remove what the commands made
	@rm -rf target .venv .tools demo-output bench-output coverage-output chaos-output .mypy_cache .ruff_cache .pytest_cache .hypothesis
