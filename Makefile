# Everything one does with this repository. `make` alone lists it.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
CORE   := $(wildcard gotask/_core/*.h gotask/_core/*.pxd gotask/_core/*.pyx)
OURS   := gotask tests bench examples setup.py
ARGS   ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

run: $(STAMPS)/core ## set everything up and start a server and a worker (ARGS="-http-port=8000" adds flags)
	@exec $(BIN)/gotask up $(ARGS)

test: dev ## set everything up and run all tests (ARGS="-k name" picks some)
	@# once, and not by each of the hundreds of programs that tests start where PYTHONDONTWRITEBYTECODE is set
	$(BIN)/python -m compileall -q gotask tests
	$(BIN)/python -m pytest tests $(ARGS)

build: $(STAMPS)/core ## the package and its extension, in place

conformance: dev ## the suite every storage must pass (ARGS="--backend=package.module:open" for one of yours)
	$(BIN)/python -m pytest tests/conformance $(ARGS)

plans: dev ## how PostgreSQL finds ten jobs among five million
	PLANS_ROWS=5000000 $(BIN)/python -m pytest tests/conformance/test_postgres_plans.py --timeout 1800 $(ARGS)

core: dev ## the shared-memory ring: C programs and Python
	$(BIN)/python -m pytest tests/core $(ARGS)

crash: dev ## the long storm of kills
	CRASH_SCALE=10 $(BIN)/python -m pytest tests/crash --timeout 3600 $(ARGS)

chaos: dev ## lines, servers and machines that fail under load: whole, about an hour (root for pulled cables)
	CHAOS_SCALE=10 $(BIN)/python -m pytest tests/chaos --timeout 10800 $(ARGS)

tsan: dev ## the ring under the thread sanitizer, and weakened, which must be noticed
	$(BIN)/python -m pytest tests/core -k tsan $(ARGS)

asan: dev ## the ring and the extension under the address and undefined-behaviour sanitizers
	$(BIN)/python -m pytest tests/core -k asan $(ARGS)

sweep: dev ## a process killed after each single instruction of the ring
	RING_KILL=1 $(BIN)/python -m pytest tests/core -k sweep --timeout 900 $(ARGS)

bites: dev ## plants bugs one by one; every suite must notice its own
	$(BIN)/python -m tests.bites $(ARGS)

lint: dev ## ruff, and clang-format over the C headers
	$(BIN)/ruff check $(OURS)
	$(BIN)/ruff format --check $(OURS)
	$(BIN)/clang-format --dry-run --Werror $(wildcard gotask/_core/*.h tests/core/*.c)

types: dev ## mypy --strict on the package, pyright on the examples
	$(BIN)/mypy --strict gotask
	$(BIN)/pyright --pythonpath $(BIN)/python examples

gen: $(STAMPS)/core ## writes the generated pages of docs/
	$(BIN)/python -m gotask.states > docs/states.md
	$(BIN)/python -m gotask.cli.reference docs

verify: gen ## fails if a generated page is not what is committed
	git diff --exit-code -- docs

bench: dev ## measures speed beside peers and bare limits, and prints one table (ARGS="-k postgres"; BENCH_JOBS=... sets sizes)
	$(BIN)/python -m pytest bench -p no:cacheprovider --timeout 3600 -q --benchmark-quiet --benchmark-disable-gc --benchmark-json=build/bench.json $(ARGS)
	$(BIN)/python -m bench.table build/bench.json

peers: dev ## measures GoTask beside other queues on one server (ARGS="--store postgres --only oban,huey --rounds 1"; default: Redis)
	@.ci/need "command -v redis-server && command -v redis-cli" redis-server redis-tools
	$(BIN)/python -m bench.peers.driver $(ARGS)

wheel: dev ## a wheel and an sdist in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

clean: ## removes what was built; the virtual environment too
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks $(VENV)
	find gotask/_core -name '*.so' -delete -o -name 'ring.c' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

dev: $(STAMPS)/dev $(STAMPS)/core

# Set-up, each step once: a stamp says that it was done, and what it depends on when it must be done again.

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "GoTask needs Python 3.11 or later, and $(PYTHON) is older: name another with make PYTHON=python3.12." >&2; exit 1; }
	@.ci/need "$(PYTHON) -c 'import ensurepip, venv'" python3-venv
	@.ci/need "command -v cc" gcc libc6-dev
	@.ci/need "$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path(\"include\") + \"/Python.h\"))'" python3-dev
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(@D) && touch $@

$(STAMPS)/server: $(STAMPS)/venv pyproject.toml
	$(BIN)/python -m pip install -q 'setuptools>=77' 'cython>=3.1'
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[server,redis,postgres]'
	@touch $@

$(STAMPS)/core: $(STAMPS)/server setup.py $(CORE)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

$(STAMPS)/dev: $(STAMPS)/server
	@.ci/need "command -v curl" curl ca-certificates
	@.ci/need "command -v redis-server" redis-server
	@.ci/need "command -v postgres || ls /usr/lib/postgresql/*/bin/postgres" postgresql
	@.ci/need "command -v pgbouncer" pgbouncer
	@.ci/need "command -v openssl" openssl
	@.ci/need "command -v ip" iproute2
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

.PHONY: help run test build conformance plans core crash chaos tsan asan sweep bites lint types gen verify bench peers wheel clean dev
