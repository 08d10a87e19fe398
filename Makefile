# make chat    set everything up in .venv, fetch the starter model (once), then talk to it
# make test    set everything up in .venv, then run the tests
# make lint    format, lint, types, import contracts
# make stress  kill, damage and deceive it, and press any key, for half an hour, and count
# make check   all of it: what must pass before a commit

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := chat
.PHONY: chat test lint stress check pin

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

test: .venv/.installed-dev
	@$(BIN)/python -m pytest $(ARGS)

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
