# Two commands on a fresh machine: `make demo` and `make test`. Each does all its own set-up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= runs/demo
PORT   ?= 8000

.PHONY: help demo serve-demo eval-demo curate-demo talk-demo curriculum test test-fast test-browser test-versions lint fmt docs bench release doctor clean gpu gpu-first gpu-build gpu-verify \
        gpu-bench gpu-bench-rest gpu-bench-encoder gpu-bench-ranks gpu-sanitise gpu-train gpu-report $(foreach n,1 2 3 4,gpu-verify-$n gpu-bench-$n)

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo ## trains a small model on a synthetic world and lets it answer
	$(BIN)/afn demo --out $(RUN)

serve-demo: $(VENV)/.serve ## the small model behind a page and OpenAI's API: ask a recording, click a moment; PORT=
	test -f $(RUN)/config.json || $(MAKE) demo
	$(BIN)/afn serve --model $(RUN) --port $(PORT) --open

eval-demo: $(VENV)/.eval ## a few rows in the format of every benchmark, asked, scored and reported on
	$(BIN)/afn bench run --suite demo

curate-demo: $(VENV)/.curate ## recordings made, curated by every stage, checked and trained on; TRIALS=1 kills too
	$(BIN)/afn curate demo --out runs/curate $(if $(TRIALS),,--kills 0)

talk-demo: $(VENV)/.talk ## a small voice from nothing; the small model answers with it, aloud; a report with sounds
	test -f $(RUN)/config.json || $(MAKE) demo
	$(BIN)/afn train --curriculum talk-tiny --out runs/talk --set demo=$(RUN)

curriculum: $(VENV)/.demo ## all seven stages of training at a small scale, with a report
	$(BIN)/python -m afn_model.bootstrap.tiny_curriculum --out runs/curriculum
	$(BIN)/python -m bench.curriculum_report runs/curriculum --out runs/curriculum/report

# Tests run in an order of their own each time; `make test SEED=7` runs in the order that the command line shows as 7.
# A thread for each worker: OpenMP threads beyond the cores wait for each other.
WORKERS ?= 2
SEED    := $(or $(SEED),$(shell date +%s))
PYTEST   = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --shuffle $(SEED)

test: $(VENV)/.test ## every test, on a CPU: WORKERS=2, SEED= of the order
	$(PYTEST)

test-fast: $(VENV)/.test ## all but what is slow or long (tests/long.txt), for daily work
	$(PYTEST) -m "not slow and not long"

test-browser: $(VENV)/.test ## the server's page in a real browser: needs chromium on the path
	$(BIN)/pip install -q --disable-pip-version-check 'playwright>=1.48'  # [browser]
	AFN_BROWSER=1 $(BIN)/python -m pytest tests/browser

test-versions: $(VENV)/.test ## a wheel on the lowest, pinned and newest versions: SETS=, 5 GB each in turn
	$(BIN)/python -m tests.versions $(if $(SETS),--sets $(SETS))

lint: $(VENV)/.test ## formatting, layers, types, spelling: what else continuous integration runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	mkdir -p build/typing && ln -sfn ../../distributed build/typing/afn_distributed
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/codespell $$(git ls-files '*.py' '*.md' '*.cpp' '*.h' '*.cu' '*.cuh' '*.toml' Makefile)
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cuda/*.h' 'tests/cuda/*.cpp' 'tests/cuda/*.c')

fmt: $(VENV)/.test ## formats Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cuda/*.h' 'tests/cuda/*.cpp' 'tests/cuda/*.c')

docs: $(VENV)/.docs ## the documentation as a site in build/site; AFN_URL= is the address of the repository
	mkdir -p build/typing && ln -sfn ../../distributed build/typing/afn_distributed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/.test ## times what can be compared on a CPU, into runs/bench
	$(BIN)/python -m bench all

# On a machine with a GPU, its own PyTorch, Triton, pytest, pytest-benchmark and a compiler: no network, nothing installed
# but this checkout. `make gpu` does everything in order; a red test ends it before anything is timed. Each part by itself
# (gpu-verify-1 to -4, gpu-bench-1 to -3, gpu-bench-encoder, gpu-bench-ranks, gpu-report) stays below 8 minutes;
# gpu-bench-rest measures what the others had no time for. RESULTS=DIR writes to another folder than the GPU's own in
# bench/results. Training is measured apart, by `make gpu-train`, at most 8 minutes for each of its cases:
# `make gpu-train TRAIN=pre-1` runs one.
RESULTS   ?= $(shell $(PYTHON) -c "from bench.measure import results; print(results('cuda'))")
GPU_TESTS  = timeout --foreground 470 $(PYTHON) -m pytest --device cuda
PARALLEL   = $(shell $(PYTHON) -c "import xdist; print('-n 4')" 2>/dev/null)
PRODUCTS  := attention or linear or log_mel
PARTS     := 1 2 3
TRAIN     ?= pre-1 pre-2 full-8k full-24k full-128k

gpu: ## on a GPU: tests, then timings of every op
	$(MAKE) gpu-verify
	$(MAKE) gpu-bench

gpu-build: ## installs this checkout, without its dependencies, unless its machine code and packages are there
	@$(PYTHON) -m bench.first.built || $(PYTHON) -m pip install -q -e . --no-build-isolation --no-deps

# Certainty, then figures, within 590 s: no network, nothing installed. Build csrc/cuda before (pip install -e ., which
# finds nvcc) and bring afn_kernels/_binaries along. REHEARSE=1 needs no GPU. docs/benchmarking.md says how to read it.
OUT      ?= runs/first
REHEARSE ?=
gpu-first: ## ten minutes of a GPU: what is right, then how fast; OUT=, REHEARSE=1 on a CPU
	PYTHONPATH=. $(if $(REHEARSE),$(BIN)/python,timeout --foreground 590 $(PYTHON)) -m bench.first --out $(OUT) $(if $(REHEARSE),--rehearse)

gpu-verify: ## the kernel tests on a GPU
	$(MAKE) -k gpu-verify-1 gpu-verify-2 gpu-verify-3 gpu-verify-4
gpu-verify-1: gpu-build
	$(GPU_TESTS) $(PARALLEL) tests/kernels/test_every_op.py -k "not ($(PRODUCTS))"
gpu-verify-2: gpu-build
	$(GPU_TESTS) $(PARALLEL) tests/kernels/test_every_op.py -k "$(PRODUCTS)"
gpu-verify-3: gpu-build
	$(GPU_TESTS) tests/kernels --ignore tests/kernels/test_every_op.py --ignore tests/kernels/test_binaries.py
gpu-verify-4: gpu-build
	$(GPU_TESTS) tests/kernels/test_binaries.py

# Every CUDA kernel's tests under NVIDIA's checkers of memory and of races; slow.
gpu-sanitise: gpu-build ## CUDA kernels under NVIDIA's checkers
	for tool in memcheck racecheck; do \
	  timeout --foreground 470 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PYTHON) -m pytest --device cuda tests/kernels/test_every_op.py -k "cuda and within_budget" || exit 1; \
	done

gpu-bench: ## every op against its peers
	$(MAKE) -k $(PARTS:%=gpu-bench-%) gpu-bench-rest gpu-bench-encoder gpu-bench-ranks gpu-report
$(PARTS:%=gpu-bench-%): gpu-bench-%: gpu-build
	$(PYTHON) -m bench.run --device cuda --part $*/$(words $(PARTS)) --limit 380 --out $(RESULTS)/ops.jsonl
gpu-bench-rest: gpu-build
	$(PYTHON) -m bench.run --device cuda --missing --limit 380 --out $(RESULTS)/ops.jsonl
gpu-bench-encoder: gpu-build
	$(PYTHON) -m bench.encoder --device cuda --rounds 20 --out $(RESULTS)/encoder.jsonl
gpu-bench-ranks: gpu-build
	timeout --foreground 470 $(PYTHON) -m bench.virtual_ranks --device cuda --out $(RESULTS)/virtual_ranks.jsonl
gpu-train: gpu-build ## training, timed
	$(PYTHON) -m bench.train --device cuda --cases $(TRAIN) --out $(RESULTS)/train.jsonl
gpu-report: ## tables and plots of what was measured
	$(PYTHON) -m bench.report $(RESULTS)
	-$(PYTHON) -m bench.pictures $(RESULTS)

# Wheels for every Python of 3.10 to 3.13 that is here, each used in a clean environment; minutes, and a package index.
# `make release RELEASE=--rehearse` before there is a tag. docs/releasing.md.
release: ## builds and tries what a package index takes; uploads nothing
	$(PYTHON) -m tests.release $(RELEASE)

doctor: $(VENV)/.demo ## what this machine has and lacks
	$(BIN)/afn doctor

clean: ## removes what was built, runs and caches
	rm -rf build dist *.egg-info runs .pytest_cache .ruff_cache afn_kernels/*.so afn_kernels/_binaries
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

NATIVE := setup.py CMakeLists.txt pyproject.toml constraints.txt $(wildcard csrc/*/*.cpp csrc/*/*.cu csrc/*/*/*.h csrc/*/*/*.cuh)

PIP := PIP_NO_COMPILE=1 $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

# The kernels are compiled while PyTorch is unpacked. meeteval is built with Cython.
$(VENV)/.built: $(NATIVE) | $(VENV)/bin/python
	$(PIP) setuptools wheel pybind11 cmake ninja cython
	$(PIP) --no-build-isolation --no-deps -e . & kernels=$$!; $(PIP) 'torch>=2.8' numpy && wait $$kernels
	touch $@

$(VENV)/.demo:   NEEDS := -e '.[demo]'
$(VENV)/.test:   NEEDS := -e '.[demo,test]'
$(VENV)/.serve:  NEEDS := -e '.[demo,serve]'
$(VENV)/.eval:   NEEDS := -e '.[demo,eval]'
$(VENV)/.curate: NEEDS := -e '.[demo,curate]' 'pocketsphinx>=5.1'
$(VENV)/.talk:   NEEDS := -e '.[demo]' 'pocketsphinx>=5.1'
$(VENV)/.docs:   NEEDS := -e '.[demo,docs]'
$(addprefix $(VENV)/.,demo test serve eval curate talk docs): $(VENV)/.built
	$(PIP) --no-build-isolation $(NEEDS)
	touch $@
