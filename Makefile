# Two commands: `make serve` and `make test`. Both set up everything they need, once.
CONFIG ?= configs/smollm2-cpu.yaml
PYTHON ?= python3.11

.PHONY: serve test test-full format lock
serve: .venv/serve.done
	@exec .venv/bin/starserve up $(CONFIG)

test: .venv/test.done
	@scripts/test

test-full: .venv/test.done
	@scripts/test full

format: .venv/test.done
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

lock: .venv/test.done
	requirements/compile

.venv/serve.done: requirements/cpu.txt pyproject.toml
	@PYTHON=$(PYTHON) scripts/setup cpu && touch $@

.venv/test.done: requirements/dev.txt pyproject.toml
	@PYTHON=$(PYTHON) scripts/setup dev && touch $@ .venv/serve.done
