# Everything runs from .venv, which is made on demand; nothing needs to be activated.
#
#   make PYTHON=/path/to/python3 setup    use that Python (3.11 or newer)
#   make ARGS="-k tag_cache" test         pass options on to the tool of the target

ARGS  ?=
BOARD ?= ulx3s-85f
JOBS  ?= 2
SECONDS ?= 60

# What the caller's shell sets for other Pythons must not reach this one.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONOPTIMIZE PYTHONWARNINGS
unexport PIP_USER PIP_TARGET PIP_PREFIX

BIN  := .venv/bin
# Two stages, so that the demo need not wait for the tools of the developers.
CORE := .venv/.core
FULL := .venv/.full

SUITABLE := -I -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
PYTHONS  := python3 python3.14 python3.13 python3.12 python3.11
FOUND     = $(firstword $(foreach python,$(or $(PYTHON),$(PYTHONS)),$(shell \
            $(python) $(SUITABLE) >/dev/null 2>&1 && echo $(python))))
NONE      = $(error no suitable Python among "$(or $(PYTHON),$(PYTHONS))": emte needs Python 3.11 \
            or newer with venv and pip (Debian and Ubuntu: package python3-venv); \
            name one with make PYTHON=/path/to/python3)

.PHONY: help setup demo test prove coverage soak bench fuzz verilog fpga fpga-report docs lint types clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(FULL)  ## make .venv with everything in it, .venv/bin/emte among it

demo: $(CORE)  ## three recorded programs through the hardware, checked against the golden model
	$(BIN)/emte demo $(ARGS)

test: $(FULL)  ## unit, system, formal and cocotb tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

prove: $(FULL)  ## every property of the hardware, also those too long for test; build/prove.json
	$(BIN)/python tests/formal/prove.py --jobs $(JOBS) $(ARGS)

coverage: $(FULL)  ## functional coverage of the cocotb regression, build/coverage/index.html
	$(BIN)/python tests/cocotb/coverage_run.py --jobs $(JOBS) $(ARGS)

soak: $(FULL)  ## 10 million random operations, the hardware against the golden model
	$(BIN)/python tests/soak.py $(ARGS)

bench: $(FULL)  ## what checking costs, and speed of the software: docs/results.md, build/*.json
	mkdir -p build
	$(BIN)/emte bench --jobs $(JOBS) --json build/costs.json --plots docs/results \
	    --page docs/results.md $(ARGS)
	$(BIN)/python tests/bench.py

fuzz: $(FULL)  ## the reader of operation streams with damaged files, for SECONDS (default: 60)
	$(BIN)/python tests/fuzz/fuzz_ops.py --seconds $(SECONDS) $(ARGS)

verilog: $(CORE)  ## TagPipeline as one file, build/tag_pipeline.v
	$(BIN)/python -m emte.rtl --preset default --out build/tag_pipeline.v $(ARGS)

fpga: $(FULL)  ## bitstream with the self-test for BOARD (its default: ulx3s-85f)
	$(BIN)/python -m emte.fpga build --board $(BOARD) --out build/fpga $(ARGS)

fpga-report: $(FULL)  ## area and clock on ECP5, also as build/fpga-report.json
	$(BIN)/python -m emte.fpga report --seeds 8 --out build/fpga-report.json $(ARGS)

docs: $(FULL)  ## this project's pages, build/docs/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

lint: $(FULL)  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(FULL) build/typing/emte  ## mypy over emte.rtl, emte.sim and emte.fpga
	MYPYPATH=build/typing $(BIN)/mypy -p emte

clean:  ## remove all that was made, except .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find rtl sim fpga tests docs -name __pycache__ -prune -exec rm -rf {} +

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(CORE): pyproject.toml
	$(or $(FOUND),$(NONE)) -m venv .venv
	@echo "Installing emte into .venv: about 50 MB to download."
	$(PIP) -e .
	touch $@

$(FULL): $(CORE)
	@echo "Installing the tools for tests, bitstreams and pages: about 260 MB to download."
	$(PIP) -e '.[bench,fpga,test,dev,docs]'
	touch $@

# mypy cannot see through the editable install; three links show it the packages by their names.
build/typing/emte:
	mkdir -p $@
	for part in rtl sim fpga; do ln -sfn ../../../$$part $@/$$part; done
