# Two commands: `make demo` and `make test`. Both set up .venv first, when pyproject.toml is newer.
VENV   ?= .venv
BIN    := $(VENV)/bin
# Megatron-Bridge needs 3.12: one on the path that runs, one of pyenv's, or one of uv's. Without it, everything else works on 3.11.
PYTHON312 ?= $(shell for p in python3.12 "$$(dirname "$$(command -v python3.12)")"/../versions/3.12*/bin/python3.12 \
  "$$(uv python find 3.12 2>/dev/null)"; do "$$p" -c 'import sys; assert sys.version_info[:2] == (3, 12)' 2>/dev/null && echo "$$p" && break; done)
PYTHON ?= $(or $(PYTHON312),$(shell for p in python3.11 python3; do \
  $$p -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null && echo $$p && break; done))
BRIDGE_VENV ?= .venv-bridge
# A machine that offers a CPU build of this release gets it; ask for another with make TORCH=...
TORCH  ?= torch==2.13.0
# On Python's path as a folder, so that a `configs` of the folder where somebody works is not taken for ours.
INSTALL = $(BIN)/python -m pip install --quiet --config-settings editable_mode=compat
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: bridge bridge-tests bridged demo test lint types unit models testbed integration covered benchmark architectures golden clean

# Where `make bridge` was run, the same by Megatron-Bridge.
demo: $(VENV)/.ready
	$(BIN)/nemo experiment run quantize_fp8 executor=local args.hf_model_id=tiny:qwen3 --yes
	test ! -e $(VENV)/.ready-bridge || $(BIN)/nemo experiment run quantize_fp8 executor=local engine=bridge args.hf_model_id=tiny:qwen3 --yes

test: lint types unit integration covered bridged

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/mypy

# One thread a process: JOBS of them share the cores, and two pools that spin on the same core take many times as long.
unit integration: export OMP_NUM_THREADS := 1

# Trained before the tests, each on a core of its own, as a user's first run would.
models: $(VENV)/.ready-dev
	printf '%s\n' tiny:qwen3 tiny:llama | OMP_NUM_THREADS=1 xargs -P 2 -I NAME $(BIN)/python -c \
	  'import sys; from scripts.tiny.model import *; ensure_tiny_model(sys.argv[1], default_cache_root())' NAME

# Each process begins with tests that stand together, so that what they share is made once, and steals at the end.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --cov --cov-report=

unit: $(VENV)/.ready-dev
	$(PYTEST) tests/unit

# A Slurm cluster, an SSH server and a Docker engine, for the tests that start private ones.
testbed:
	tests/testbed/install.sh

# They wait for schedulers, servers and time-outs more than they compute: one process more than there are cores.
integration: $(VENV)/.ready-dev models testbed
	$(PYTEST) -n $(shell expr $(JOBS) + 1) --cov-append tests/integration tests/gpu

# Lines, of both runs together.
covered: unit integration
	$(BIN)/python -m coverage report --fail-under=95

benchmark: $(VENV)/.ready-dev
	$(BIN)/python tests/benchmarks/calibration.py
	$(BIN)/python tests/benchmarks/startup.py
	$(BIN)/python tests/benchmarks/submission.py
	$(BIN)/python tests/benchmarks/engine.py
	$(BIN)/python tests/benchmarks/evidence.py
	$(BIN)/python tests/benchmarks/files.py
	$(BIN)/python tests/benchmarks/hashing.py
	$(BIN)/python tests/benchmarks/index.py

# Tries every architecture of transformers, tiny, in each format; half an hour on one core.
architectures: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.architectures

# Writes the scripts that the executors would submit anew, after a change that was meant.
golden: $(VENV)/.ready-dev
	$(BIN)/python -m tests.golden.regenerate

# Megatron-Bridge and lm-eval in .venv; without CUDA, without what only GPUs need. Its own `lm` commands of `nemo` would be imported by each
# of ours: its entry point is taken out.
bridge: PYTHON = $(or $(PYTHON312),$(error Megatron-Bridge needs Python 3.12, and none is here: uv python install 3.12))
bridge: $(VENV)/.ready-bridge

$(VENV)/.ready-bridge: pyproject.toml configs/bridge-without-cuda.txt
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -c 'import sys; v = sys.version_info; sys.exit(v[:2] != (3, 12) and f"$(VENV) has Python {v[0]}.{v[1]}, and Megatron-Bridge needs 3.12: make clean bridge")'
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --config-settings editable_mode=compat "$(TORCH)" -e ".[hf,bridge,eval]" \
	  $(if $(shell nvidia-smi -L 2>/dev/null),,--overrides configs/bridge-without-cuda.txt)
	$(BIN)/python -m scripts.engines.bridge.quiet_nemo
	touch $(VENV)/.ready $@

# The tests of the bridge engine, in an environment of their own: the releases that Megatron-Bridge takes are older.
bridged:
	$(if $(PYTHON312),$(MAKE) VENV=$(BRIDGE_VENV) bridge-tests,@echo "tests/bridge is left out: it needs Python 3.12, and none is here"; test -z "$$REQUIRE_TESTBED")

bridge-tests: bridge
	$(BIN)/uv pip install --quiet --python $(BIN)/python coverage hypothesis pytest pytest-timeout pytest-xdist
	REQUIRE_BRIDGE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/bridge

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(INSTALL) -e ".[hf]"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(INSTALL) -e ".[hf,dev]"
	$(BIN)/python -m pip uninstall --quiet --yes scikit-learn  # mlflow's server runs without; where it is, transformers takes 1.5 s of each job to import it
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage*
