# Two commands: `make demo` (the method, end to end, on two cores) and `make test`.
# A third, `make test-system`, holds our formats against the annotation tools' own packages, spreads
# pseudo-labelling over a local Ray, runs the job service on PostgreSQL, SLURM and Ray, and walks
# through its dashboard in Chromium (of Debian: installed where it is missing, as root).
# All create .venv and install the locked versions first; a second call installs nothing.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
QUANT := $(VENV)/quant
# Environments of their own: what the annotation tools ask for is not what we ask for.
LABEL_STUDIO := .venv-label-studio
CVAT := .venv-cvat
RAY := .venv-ray
BROWSER := .venv-browser
CHROMIUM := /usr/bin/chromium
# A file's tests stay together: they share what they set up. One thread each, or two get in the way.
# Three, for two cores: tests of the service and of several processes wait as much as they compute.
PYTEST_ARGS ?= -n 3 --dist loadfile --durations=25
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Other programs may be late once: what has failed is run again by itself, and has failed if it fails
# then. (Without a failed test there is nothing to run again, which is a failure too.)
AGAIN := --last-failed --last-failed-no-failures none
TWICE = export OMP_NUM_THREADS=1; $(1) || $(1) $(AGAIN)

# Of Debian; the tests start and stop what they contain themselves.
PACKAGES := postgresql slurm-wlm munge
APT := apt-get install -y --no-install-recommends

.PHONY: demo test test-system install clean packages

demo: $(INSTALLED)
	$(BIN)/diffdoctor demo --out runs/demo

test: $(INSTALLED) $(QUANT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-system: packages $(CHROMIUM) $(INSTALLED) $(LABEL_STUDIO)/installed $(CVAT)/installed \
		$(RAY)/joined $(BROWSER)/installed
	$(call TWICE,$(BIN)/python -m pytest tests/system -m system --durations=5 \
		--ignore=tests/system/test_ray_jobs.py)
	$(call TWICE,$(RAY)/bin/python -m pytest tests/system/test_ray_jobs.py -m system --durations=5)

install: $(INSTALLED)

packages:
	@dpkg -s $(PACKAGES) >/dev/null 2>&1 || { apt-get update && $(APT) $(PACKAGES); } || { echo \
		"make test-system needs these packages of Debian, which root installs: $(PACKAGES)"; exit 1; }

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

.venv-%/installed: requirements-%.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 was not found: install it or say make PYTHON=..."; exit 1; }
	test -x $(@D)/bin/python || "$(PYTHON)" -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --no-deps -r $<
	touch $@

# Ray works on our own code, so its environment also has what ours has, and ourselves.
$(RAY)/joined: $(RAY)/installed $(INSTALLED)
	$(BIN)/python -c 'import site; print(*site.getsitepackages(), "$(CURDIR)", sep="\n")' > $(RAY)/ours.txt
	cp $(RAY)/ours.txt "$$($(RAY)/bin/python -c 'import site; print(site.getsitepackages()[0])')/ours.pth"
	touch $@

$(CHROMIUM):
	@{ apt-get update && $(APT) chromium; } || { echo \
		"make test-system needs $@, of Debian's package chromium, which root installs"; exit 1; }

clean:
	rm -rf $(VENV) $(LABEL_STUDIO) $(CVAT) $(RAY) $(BROWSER) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
