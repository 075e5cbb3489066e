"""Build of oes_fast; the metadata is in pyproject.toml.

The C++ extension oes_fast._C is built where torch (2.10 or newer) and a compiler are there. Without them the
package installs all the same and runs on plain PyTorch; OES_REQUIRE_EXT=1 makes that an error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def asked(name: str) -> bool:
    """Whether an environment variable is set, to something other than 0."""
    return os.environ.get(name, "0") not in ("", "0")


REQUIRED = asked("OES_REQUIRE_EXT")
OLDEST_TORCH = (2, 10)  # the first whose stable ABI has parallel_for

COMPILE_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fno-math-errno",  # so that square roots vectorise
    "-fno-trapping-math",  # so that choices between two values vectorise
    "-ffp-contract=off",  # so that all instruction sets round alike
    "-fvisibility=hidden",
    "-Wall",
]
LINK_FLAGS = ["-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,--as-needed"]
if asked("OES_SANITIZE"):  # for `make sanitize`
    SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    COMPILE_FLAGS = [*(flag for flag in COMPILE_FLAGS if flag != "-O3"), "-O1", "-g", *SANITIZERS]
    LINK_FLAGS += SANITIZERS

if asked("OES_EMULATE_AVX512"):  # for `make emulate`
    COMPILE_FLAGS += ["-DOES_EMULATE_AVX512", "-Wno-psabi"]


def skip_extension(reason: object) -> None:
    """Say that the extension is not built, or fail where it is required."""
    if REQUIRED:
        raise SystemExit(f"oes_fast: OES_REQUIRE_EXT=1, but the C++ extension cannot be built: {reason}")
    line = "=" * 100
    print(
        f"{line}\noes_fast: INSTALLING WITHOUT THE C++ EXTENSION: {reason}\n"
        "The CPU kernels will be missing (oes_fast.backends() says so). Install torch first, then run\n"
        f"pip install --no-build-isolation -v .\n{line}",
        file=sys.stderr,
    )


def extension_arguments() -> dict[str, Any]:
    """The arguments of setup() that build the extension; empty where it cannot be built."""
    if sys.platform == "win32":
        skip_extension("the kernels need gcc or clang, which Windows builds of Python do not use")
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        skip_extension(f"torch cannot be imported here ({error}); pip's isolated builds hide it")
        return {}
    try:
        import pybind11
    except ImportError as error:
        skip_extension(f"pybind11 cannot be imported here ({error}); pip install pybind11")
        return {}
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        skip_extension(f"torch {torch.__version__} is older than {'.'.join(map(str, OLDEST_TORCH))}")
        return {}

    class Build(BuildExtension):  # type: ignore[misc]
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                skip_extension(error)
                self.extensions = []

    major, minor = OLDEST_TORCH
    extension = CppExtension(
        "oes_fast._C",
        [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/cpu/*.cpp"))],
        include_dirs=[pybind11.get_include()],
        depends=[str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/cpu/*.h"))],
        define_macros=[("TORCH_TARGET_VERSION", f"0x{major:02x}{minor:02x}000000000000")],
        extra_compile_args=COMPILE_FLAGS,
        extra_link_args=LINK_FLAGS,
        optional=not REQUIRED,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
    }


setup(
    packages=[*find_packages(include=["oes_fast", "oes_fast.*"]), "oes_fast.kernels"],
    package_dir={"oes_fast.kernels": "kernels"},
    package_data={"oes_fast": ["py.typed"]},
    **extension_arguments(),
)
