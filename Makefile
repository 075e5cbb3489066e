# `make demo` restores a real photograph, `make test` passes the tests; both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test gpu setup clean

demo: setup
	mkdir -p $(DEMO)
	$(BIN)/oes-fast denoise skimage:astronaut --size 256 --sigma 0.1 --seed 0 --preset quick --restart -o $(DEMO)/astronaut.png

# Two workers of one thread each: several threads in each would wait for one another's cores.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# On a machine with a GPU, in the environment whose torch and Triton see it: nothing is fetched.
gpu:
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(PYTHON) -m benchmarks.gpu

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
