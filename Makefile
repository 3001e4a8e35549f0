# Two commands do all set-up on a fresh machine: `make run` and `make test`.
VENV := .venv
PY := $(VENV)/bin/python
INPUT ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run demo build build-linux rootfs deploy test lint format bench chaos lock clean coverage

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup:
	@bash scripts/setup.sh run

setup-dev:
	@bash scripts/setup.sh dev

run: setup ## Set up, start Nova on 127.0.0.1:9000, deploy and call the examples, keep serving (INPUT=file: your own file)
	@$(VENV)/bin/nova up --demo $(if $(INPUT),--demo-input "$(INPUT)")

demo: setup ## The same on a throw-away directory and a free port; ends by itself
	@$(VENV)/bin/nova demo $(if $(INPUT),--input "$(INPUT)")

build: setup ## Set up and make bin/: the commands nova, comet, corona, nebula, aurora, zenith, orbit, nova-agent
	@bash scripts/build.sh

build-linux: build ## Pack what a Linux server needs into dist/; container images are made from it too
	@bash scripts/build-linux.sh

rootfs: setup ## Make the images of all runtimes, for containers and machines
	@$(VENV)/bin/nova runtime build all

deploy: ## Install dist/ on a server over ssh, with units for systemd (SERVER=user@host)
	@bash scripts/deploy.sh "$(SERVER)"

test: setup-dev ## Everything: lint, types, layers, tests with coverage, the store's tests on a second PostgreSQL
	@bash scripts/test.sh

lint: setup-dev ## Style, types, layers
	@bash scripts/lint.sh

format: setup-dev
	@$(VENV)/bin/ruff format src tests bench && $(VENV)/bin/ruff check --fix src tests bench

bench: setup-dev ## Measure Nova beside its peers; writes bench/results
	@$(PY) -m bench $(ARGS)

chaos: setup-dev ## Kill everything that events run on, under load, and see that nothing is lost (MINUTES=5 SEED=n RATE=50; as root)
	@$(PY) -m tests.chaos --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) $(if $(RATE),--rate $(RATE))

lock: setup-dev ## Resolve the dependencies again
	@bash scripts/lock.sh

clean: ## Remove what was built
	rm -rf bin build dist htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache src/*.egg-info
