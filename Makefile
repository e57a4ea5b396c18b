# Two commands on a fresh machine: `make demo` and `make test`. Each does all its own set-up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= runs/demo

.PHONY: demo test lint fmt bench gpu gpu-verify gpu-bench doctor clean

demo: $(VENV)/.demo
	$(BIN)/afn demo --out $(RUN)

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h')

fmt: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h')

bench: $(VENV)/.test
	$(BIN)/python -m bench.log_mel --out bench/results/cpu/log_mel.jsonl
	$(BIN)/python -m bench.encoder --out bench/results/cpu/encoder.jsonl
	$(BIN)/python -m bench.cpu_attention --out bench/results/cpu/attention.jsonl

# On a machine with a GPU, its own PyTorch and a compiler: no network, nothing installed but this checkout.
gpu: gpu-verify gpu-bench

gpu-verify:
	$(PYTHON) -m pip install -q -e . --no-build-isolation --no-deps
	$(PYTHON) -m pytest tests/kernels --device cuda

gpu-bench:
	$(PYTHON) -m bench.encoder --device cuda --out bench/results/gpu/encoder.jsonl --rounds 20

doctor: $(VENV)/.demo
	$(BIN)/afn doctor

clean:
	rm -rf build dist *.egg-info runs .pytest_cache .ruff_cache afn_kernels/*.so
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

NATIVE := setup.py CMakeLists.txt pyproject.toml constraints.txt $(wildcard csrc/*/*.cpp csrc/*/*/*.h csrc/*/*.h)

$(VENV)/.demo: $(NATIVE) | $(VENV)/bin/python
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel pybind11 cmake ninja
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[demo,test]'
	touch $@
