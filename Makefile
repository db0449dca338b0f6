# Every target needs only Python >= 3.11 and make: the first one makes .venv. "make demo" is the main job, "make test" the checks.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NODES ?= 4
RUN_OPTIONS ?=

.PHONY: demo test lint format bench clean

demo: $(STAMP)
	$(BIN)/zpala launch examples/cartpole.toml -n $(NODES) --target-return 475 $(RUN_OPTIONS)

# Two workers, a file always whole in one of them: most tests wait for real processes to start.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Speed of one node on Pong without peers, in env_steps/s (SPS), on this machine, and where the time goes.
bench: $(STAMP)
	$(BIN)/zpala bench node examples/pong.toml $(RUN_OPTIONS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zpala needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tb,plot,dev]'
	touch $@
