# The two commands of this project are `make demo` and `make test`. Both install what they need into .venv.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2
# The longest files first: what is left at the end is short, so that no worker waits for another's last one.
TESTS ?= tests/e2e tests/integration tests/contract tests/unit

.PHONY: help install demo test lint types unit test-slow format asyncapi kafka kafka-stop test-kafka clean

help:
	@echo 'make demo         install, then watch a classifier decay and recover (ARGS="--data FOLDER" for your own images)'
	@echo 'make test         install, then lint, types and all tests'
	@echo 'make test-slow    the long tests: processes killed over and over, the whole loop on PostgreSQL and Kafka'
	@echo 'make kafka        fetch and start a single-node Apache Kafka on this machine (Java 17, Maven)'
	@echo 'make test-kafka   the bus tests against that Kafka'

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or 3.12 is needed; name one with PYTHON=...'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=24'
	@echo 'installing (PyTorch is large: the first time takes a few minutes)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,postgres,demo,slack,teams,dev]'
	touch $@

demo: install
	$(BIN)/reclaim demo $(ARGS)

test: install lint types unit

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

unit: # compiled files are kept whatever the environment says: some 150 processes are started, and each would compile all anew
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow' $(TESTS) $(ARGS)

test-slow: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow $(ARGS)

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

asyncapi: install
	$(BIN)/python -m services.runtime.asyncapi docs/asyncapi.yaml

kafka:
	deploy/kafka/run.sh start

kafka-stop:
	deploy/kafka/run.sh stop

test-kafka: install
	deploy/kafka/run.sh stop
	rm -rf deploy/kafka/data # messages of an earlier run would be read again
	deploy/kafka/run.sh start
	RECLAIM_TEST_KAFKA_BOOTSTRAP=$$(deploy/kafka/run.sh address) $(BIN)/python -m pytest tests/integration -m 'not postgres' -k bus; \
	status=$$?; deploy/kafka/run.sh stop; exit $$status

clean:
	rm -rf $(VENV) .demo state build *.egg-info
