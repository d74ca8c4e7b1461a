# Two verbs for a newcomer: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
KILLS ?= 200
SEED ?= 7

.PHONY: help demo test lint unit kafka pythons kernel faults mutants redteam bench soak docs clean
help:  ## what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv/.made: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	$(BIN)/python -m compileall -q core sdk plugins_builtin  # as pip does for what it copies
	touch $@

demo: .venv/.made  ## run the flights example and show its result
	cd examples/flights && ../../$(BIN)/dataflare run flights.yaml
	$(BIN)/python examples/flights/show.py

test: .venv/.made  ## everything that CI runs
	./tests/servers/debian.sh
	$(MAKE) --jobs 2 --output-sync=target lint pythons
	$(MAKE) unit

lint: .venv/.made  ## style, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

kafka:  ## fetch a Kafka broker with Maven, for the tests that only a broker can carry; without it they are skipped
	./tests/servers/kafka.sh

unit: .venv/.made  ## the test suite
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not soak" --durations 30 --durations-min 5

pythons: .venv/.made  ## the kernel and the main path on every other CPython that is here
	./tests/pythons.sh

kernel: .venv/.made  ## the kernel alone, in a bare environment
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/kernel ./core
	$(BIN)/python -m venv --clear build/kernel/venv
	build/kernel/venv/bin/python -m pip install --quiet build/kernel/dataflare-*.whl
	build/kernel/venv/bin/dataflare --help
	test '{"plugins":[]}' = "$$(build/kernel/venv/bin/dataflare plugin list --json)"

faults: .venv/.made  ## kill -9 again and again: make faults KILLS=200 SEED=7
	$(BIN)/python tests/faults/kill.py --kills $(KILLS) --seed $(SEED)

mutants: .venv/.made  ## break the runtime on purpose: a proof must catch each fault
	$(BIN)/python -m tests.mutants

redteam: .venv/.made  ## attack the sandbox: make redteam CASE=read-a-secret-file, or all of it
	$(BIN)/python -m tests.redteam $(if $(CASE),--case $(CASE))

bench: .venv/.made  ## measure side by side and write docs/benchmarks.md
	test -d .venv-bench || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check 'polars>=1.30' 'pandas>=2.2' 'dlt[duckdb,filesystem,parquet]>=1.10' 'bytewax>=0.21' sqlalchemy psycopg2-binary pyarrow
	$(BIN)/python -m tests.benchmarks

soak: .venv/.made  ## the long runs: 5 M and 50 M rows, 200 kills, on databases 2,600 and 700 other disturbances, an hour of messages
	DATAFLARE_TESTS_COLD=1 $(BIN)/python -m pytest -m soak --timeout 7200
	$(BIN)/python tests/faults/kill.py --kills 200 --seed 7
	$(BIN)/python tests/faults/kill.py --kills 200 --seed 5 --lanes windows
	$(BIN)/python -m tests.faults.changes --kills 2600 --each 50 --seed 7
	$(BIN)/python -m tests.faults.disturbed --times 600 --seed 7
	$(BIN)/python -m tests.faults.disturbed --times 100 --seed 8 --clock
	$(BIN)/python -m tests.faults.hour --minutes 60 --rate 2000 --seed 7
	$(MAKE) mutants

docs: .venv/.made  ## write the generated pages anew
	$(BIN)/python docs/generate.py

clean:  ## remove what was made
	rm -rf .venv .venv-* build dist
