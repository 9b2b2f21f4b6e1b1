# Both `make demo` and `make test` set up everything they need in .venv on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# processes that share the tests, each with one thread
TESTERS ?= 2

LOWEST := .venv-lowest
AUDIT := .venv-audit

.PHONY: demo test slow docs lowest coverage audit clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --run-dir runs/demo

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 GOMP_SPINCOUNT=10000 $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

# the tests with the lowest versions that pyproject.toml allows
lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n $(TESTERS) --dist worksteal \
	    -W ignore::DeprecationWarning -W ignore::FutureWarning

coverage: $(VENV)/.installed-coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(TESTERS) --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# looks up known vulnerabilities; a package that cannot be looked up counts as a failure
audit: $(VENV)/.installed-test
	test -x $(AUDIT)/bin/pip-audit || ($(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet 'pip-audit>=2.7')
	$(BIN)/python -m pip freeze --exclude-editable | \
	    $(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip -r /dev/stdin

clean:
	rm -rf $(VENV) $(LOWEST) $(AUDIT) build dist site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "sgenas needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	@echo "installing sgenas and what it needs into $(VENV); PyTorch is large, the first time takes minutes"
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	@touch $@

# one installation, which serves `make demo` too; --no-compile: Python compiles what is imported, at first use
$(VENV)/.installed-test: pyproject.toml $(VENV)/bin/python
	@echo "installing sgenas and its tests into $(VENV); PyTorch is large, the first time takes minutes"
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test,lint]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-coverage: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable '.[coverage]'
	@touch $@

# uv, since pip cannot ask for the lowest versions; indirect dependencies are the newest that fit
$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	    --editable '.[test,ray]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@
