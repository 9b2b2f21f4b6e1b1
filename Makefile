# Both `make demo` and `make test` set up everything they need in .venv on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# processes that share the tests; each takes one thread
TESTERS ?= 2

.PHONY: demo test slow docs clean

demo: $(VENV)/.installed
	$(BIN)/sgenas search --data digits --method darts --estimator sge --directions 10 --inner-steps 1 \
	    --channels 8 --layers 3 --epochs 12 --warmup-epochs 8 --alpha-lr 0.01 \
	    --log-every 1 --seed 0 --out runs/demo --overwrite
	@echo "Open runs/demo/report.html in a browser; watch runs live with $(BIN)/tensorboard --logdir runs"

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "sgenas needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	@echo "installing sgenas and what it needs into $(VENV); PyTorch is large, the first time takes minutes"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@
