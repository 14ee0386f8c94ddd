# Two commands: `make demo` (the method, end to end, on two cores) and `make test`.
# Both create .venv and install the locked versions first; a second call installs nothing.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
QUANT := $(VENV)/quant
# A file's tests stay together: they share what they set up. One thread each, or two get in the way.
PYTEST_ARGS ?= -n 2 --dist loadfile --durations=25
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test install clean

demo: $(INSTALLED)
	$(BIN)/diffdoctor demo --out runs/demo

test: $(INSTALLED) $(QUANT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

install: $(INSTALLED)

# No build isolation: the lock pins setuptools, so the build needs nothing else from outside.
$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 was not found: install it or say make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Apart: diffusers and peft import these wherever they are installed, and warn of their versions;
# and of one package only the lists of names are read, so it comes without what it asks for.
$(QUANT): requirements-quant.lock requirements-names.lock $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps \
		-r requirements-quant.lock -r requirements-names.lock
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
