PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$python"; break; }; done)
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check sanitize parity bench docs clean

demo: $(READY)  ## pretrain a small model, fine-tune eight experts, merge, compare
	@$(BIN)/moesaic demo

test: $(READY)  ## every fast test
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 8 -m "not slow and not gpu"

check: $(READY)  ## format, lint, types, import contracts
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports

sanitize: $(READY)  ## the compiled functions under GCC's checkers of memory, undefined behaviour and races
	@$(BIN)/pytest -q -rs -m slow tests/kernels/test_sanitized.py

parity: $(READY)  ## compare with transformers, slow cases too
	@$(BIN)/pytest -q -m parity

bench: $(READY)  ## every benchmark in its quick form, on this machine
	@for script in benchmarks/[a-z]*.py; do \
	  $(BIN)/python -m "benchmarks.$$(basename "$$script" .py)" --quick || exit 1; done

docs: $(READY)  ## the documentation, in build/docs; any warning is an error
	@$(BIN)/sphinx-build -W --keep-going -q -b html -d build/docs-cache docs build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf .venv build dist docs/generated .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "moesaic needs Python 3.11 or newer; install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	@echo "making .venv (once; torch is a large download)" >&2
	@rm -rf .venv
	@"$(PYTHON)" -m venv .venv
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
