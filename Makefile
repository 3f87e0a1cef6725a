# Two commands: `make serve` and `make test`. Both set up everything they need, once.
CONFIG ?= configs/smollm2-cpu.yaml
PYTHON ?= python3.11
TIER = @.venv/bin/python -m tests.support.run

.PHONY: serve lint test-unit test test-full format lock
serve: .venv/serve.done
	@exec .venv/bin/starserve up $(CONFIG)

# Each tier holds the one before it: the loop of a change, what CI runs, everything.
lint: .venv/test.done
	$(TIER) lint

test-unit: .venv/test.done
	$(TIER) unit

test: .venv/test.done
	$(TIER) test

test-full: .venv/test.done
	$(TIER) full

format: .venv/test.done
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

lock: .venv/test.done
	requirements/compile

.venv/serve.done: requirements/cpu.txt pyproject.toml
	@PYTHON=$(PYTHON) scripts/setup cpu && touch $@

.venv/test.done: requirements/dev.txt pyproject.toml
	@PYTHON=$(PYTHON) scripts/setup dev && touch $@ .venv/serve.done
