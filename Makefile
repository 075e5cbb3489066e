# `make demo` restores a real photograph, `make test` passes the tests; both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
COMPILER := $(if $(shell command -v $(CXX)),1,0)
EMULATION := $(if $(filter Linux,$(shell uname)),$(COMPILER),0)
CPP := $(shell find csrc tests/cuda_emulation -name '*.cpp' -o -name '*.cu' -o -name '*.h')

# Otherwise the hundreds of processes that tests start would each compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint docs tables sanitize emulate aot gpu setup clean

demo: setup
	mkdir -p $(DEMO)
	$(BIN)/oes-fast denoise skimage:astronaut --size 256 --sigma 0.1 --seed 0 --preset quick --restart -o $(DEMO)/astronaut.png

# Two workers of one thread each: several threads in each would wait for one another's cores. Each begins with half of
# the tests in order, so that what a file sets up is set up once, and takes over what the other has left at the end.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# What a pull request has to pass beside the tests; `ruff format .` and `clang-format -i` put most of it right.
lint: $(VENV)/.ready
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

# The API reference, from the docstrings; a warning is an error.
DOCS ?= build/docs
docs: setup
	$(BIN)/python -W error -m pdoc --docformat google --no-show-source --output-directory $(DOCS) \
		oes_fast '!oes_fast\.(?!analysis$$|baselines$$|batch$$|bench$$|comparison$$|functional$$|models$$|pruning$$)'

# The tables of README.md and docs/, from benchmarks/results/.
tables: setup
	$(BIN)/python -m benchmarks.tables

# The tests of the C++ kernels, the emulated CUDA kernels among them, for builds made for them alone; the usual build follows, whose objects are kept.
KERNELS := -k "not triton" -m
REBUILD := OES_EMULATE_CUDA=$(EMULATION) $(BIN)/python setup.py -q build_ext --inplace

# With AddressSanitizer and UBSan.
sanitize: setup
	OES_SANITIZE=1 $(REBUILD)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(KERNELS) "cpu_kernel or cuda_kernel"; \
		status=$$?; $(REBUILD) && exit $$status

# What is written for AVX-512, on a processor without it.
emulate: setup
	OES_EMULATE_AVX512=1 $(REBUILD)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(KERNELS) cpu_kernel; \
		status=$$?; $(REBUILD) && exit $$status

# The Triton kernels and, where there is nvcc, the CUDA kernels compile for all GPUs within their budget, in all
# configurations, of which `make test` checks some.
aot: setup
	OES_TEST_ALL_ARCHS=1 $(BIN)/python -m pytest tests/kernels/test_kernels_aot.py tests/cuda_kernels/test_cuda_aot.py

# On a machine with a GPU, in the environment whose torch and Triton see it: nothing is fetched. The CUDA kernels are
# compiled for this GPU alone; the time limit begins with that.
gpu:
	began=$$(date +%s) && \
		TORCH_CUDA_ARCH_LIST=native $(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable . && \
		$(PYTHON) -m benchmarks.gpu --began $$began

setup: $(VENV)/.built

# pip would compile all packages to bytecode, of which most is never imported: Python does it for what is.
$(VENV)/.ready: requirements-dev.txt constraints-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements-dev.txt
	touch $@

# With what is installed above, and the CUDA kernels emulated on the CPU beside it, for the tests. Where there is a
# compiler, an extension that cannot be built is an error.
$(VENV)/.built: $(VENV)/.ready pyproject.toml setup.py oes_fast/_extension.py oes_fast/_cuda_toolkit.py oes_fast/requirements.py $(CPP)
	OES_REQUIRE_EXT=$(COMPILER) OES_EMULATE_CUDA=$(EMULATION) $(BIN)/python -m pip install --quiet \
		--no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
