"""Build of oes_fast: metadata is in pyproject.toml, what the C++ extension is built from in _extension.py.

The extension oes_fast._C is built where torch (2.10 or newer) and a compiler are there, also by pip and other
front ends that hide torch from a build. Without them the package installs all the same and runs on plain
PyTorch; OES_REQUIRE_EXT=1 makes that an error.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

if "oes_fast" not in sys.modules:  # its __init__ imports torch; what is needed here does without
    package = types.ModuleType("oes_fast")
    package.__path__ = [str(ROOT / "oes_fast")]
    sys.modules["oes_fast"] = package
from oes_fast import _extension, requirements  # noqa: E402


def asked(name: str) -> bool:
    """Whether an environment variable is set, to something other than 0."""
    return os.environ.get(name, "0") not in ("", "0")


REQUIRED = asked("OES_REQUIRE_EXT")
HIDES_TORCH = ("PYTHONPATH", "PYTHONNOUSERSITE")  # as pip sets them for an isolated build


class NotHere(Exception):
    """Something the extension needs is missing."""


class Torch(NamedTuple):
    """An installed torch."""

    version: str
    folder: str  # of the package


# Found, not imported: that takes seconds, and a build needs only the folders.
FIND_TORCH = """
import importlib.util, json, pathlib, runpy
spec = importlib.util.find_spec("torch")
found = {}
if spec is not None and spec.origin is not None:
    folder = pathlib.Path(spec.origin).parent
    found = {"version": str(runpy.run_path(str(folder / "version.py"))["__version__"]), "folder": str(folder)}
print(json.dumps(found))
"""


def find_torch() -> Torch:
    """The torch of the environment that the build is for.

    Raises:
        NotHere: there is none, or it is too old.
    """
    plain = {name: value for name, value in os.environ.items() if name not in HIDES_TORCH}
    places = [(sys.executable, dict(os.environ)), *((python, plain) for python in environments())]
    for python, environment in places:
        try:
            done = subprocess.run(
                [python, "-c", FIND_TORCH],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            said = json.loads(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            continue
        if said:
            problem = requirements.lack("torch", said["version"])
            if problem:
                raise NotHere(f"it {problem}")
            return Torch(**said)
    raise NotHere(f"there is no torch in the environment of {sys.executable}")


def environments() -> Iterator[str]:
    """Interpreters whose torch may be built with, beside the one that runs as it runs.

    Within pip's isolated build the interpreter is that of the environment, and only variables hide what is
    installed there. `python -m build` and uv run a build in an environment of its own: the one they were
    called from is that of the calling process, or one that it was given, or else the active one.
    """
    yield sys.executable
    prefix = Path(sys.prefix)
    if not (
        prefix.name.startswith("build-env-") or any(part.startswith("builds-v") for part in prefix.parts)
    ):
        return
    folder, arguments, variables = caller()
    named = [value for option, value in itertools.pairwise(arguments) if option in ("--python", "-p")]
    for name in [*arguments[:1], *named]:
        if "python" in Path(name).name:
            yield str(folder / name) if "/" in name else name
    for active in (variables.get("VIRTUAL_ENV"), folder / ".venv", variables.get("CONDA_PREFIX")):
        if active:
            yield str(Path(active) / "bin" / "python")
    for place in variables.get("PATH", "").split(os.pathsep):
        found = shutil.which("python", path=place or os.defpath)
        if found:
            yield found


def caller() -> tuple[Path, list[str], dict[str, str]]:
    """Folder, arguments and variables of the process that started this one; of this one without /proc."""
    process = Path("/proc") / str(os.getppid())
    try:
        arguments = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
        variables = os.fsdecode((process / "environ").read_bytes()).split("\0")
        pairs = dict(variable.partition("=")[::2] for variable in variables if variable)
        return (process / "cwd").resolve(), arguments, pairs
    except OSError:
        return Path.cwd(), [], dict(os.environ)


def outdated(compiled: str, source: str) -> bool:
    """Whether one of the files that were read while compiling, as the compiler listed them, is newer."""
    try:
        listed = Path(compiled).with_suffix(".d").read_text().split(":", 1)[1].replace("\\\n", " ")
        built = os.stat(compiled).st_mtime_ns
        return any(os.stat(path).st_mtime_ns > built for path in [source, *shlex.split(listed)])
    except (OSError, ValueError, IndexError):
        return True


class FreshModules(build_py):
    """Collects the modules, and none that an earlier build has left and the sources no longer have."""

    def run(self) -> None:
        """Called by setuptools, before the extension is built."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "oes_fast"), ignore_errors=True)
        super().run()


class Build(build_ext):
    """Builds the extension, or says why it does not; compiles in parallel, and only what has changed."""

    def build_extensions(self) -> None:
        """Called by setuptools, with the compiler made."""
        (extension,) = self.extensions
        try:
            self.build_for(extension, find_torch())
        except Exception as error:
            leftover = Path(self.get_ext_fullpath(extension.name))
            if not self.inplace and leftover.is_file():  # of an earlier build; it would be packed
                leftover.unlink()
            if REQUIRED:
                raise SystemExit(
                    f"oes_fast: OES_REQUIRE_EXT=1, but the C++ extension cannot be built: {error}"
                ) from error
            line = "=" * 100
            print(
                f"{line}\noes_fast: INSTALLING WITHOUT THE C++ EXTENSION: {error}\n"
                "The CPU kernels will be missing; oes_fast.backends() says what to run for them.\n"
                f"{line}",
                file=sys.stderr,
            )
            self.extensions = []

    def build_for(self, extension: Extension, torch: Torch) -> None:
        """Compile and link."""
        try:
            import pybind11
            from pybind11.setup_helpers import ParallelCompile
        except ImportError as error:
            raise NotHere(f"pybind11 cannot be imported ({error}); pip install pybind11") from None
        variants = [name for name in _extension.VARIANTS if asked(name)]
        includes = [f"{torch.folder}/include", f"{torch.folder}/include/torch/csrc/api/include"]
        # pybind11 first: some versions of torch ship a copy of it that refuses TORCH_TARGET_VERSION.
        extension.include_dirs = ["csrc", pybind11.get_include(), *includes]
        extension.extra_compile_args = [*_extension.compile_flags(variants), "-MMD"]  # lists the files read
        extension.library_dirs = [f"{torch.folder}/lib"]
        extension.libraries = ["c10", "torch_cpu"]
        extension.extra_link_args = _extension.link_flags(variants)

        # Objects are kept for the next build, apart for all that is compiled in another way.
        compiler = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so
        told = [compiler, compiler_version(compiler[0]), _extension.compile_flags(variants), includes]
        way = hashlib.sha256(repr([*told, sys.version, torch.version, pybind11.__version__]).encode())
        self.build_temp = os.path.join("build", f"objects-{sys.platform}-{way.hexdigest()[:12]}")
        os.makedirs(self.build_temp, exist_ok=True)
        if self.force:  # asked for by --force
            shutil.rmtree(self.build_temp)
            os.makedirs(self.build_temp)
        identity = Path(self.build_temp, "identity.cpp")
        identity.write_text(_extension.identity(ROOT, variants, torch.version))
        extension.sources = [*extension.sources, str(identity)]
        self.force = self.compiler.force = True  # setuptools sees no change of flags
        with ParallelCompile("MAX_JOBS", needs_recompile=outdated):
            super().build_extensions()


def compiler_version(compiler: str) -> str:
    """What a compiler says of itself.

    Raises:
        NotHere: it does not run.
    """
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NotHere(f"the C++ compiler does not run ({error}); install gcc or clang") from None


def extensions() -> dict[str, Any]:
    """The arguments of setup() for the extension."""
    if sys.platform == "win32":  # the kernels need gcc or clang, which Windows builds of Python do not use
        return {}
    files = [str(path.relative_to(ROOT)) for path in _extension.sources(ROOT)]
    compiled = [path for path in files if path.endswith(".cpp")]
    return {
        "ext_modules": [Extension(_extension.NAME, compiled, depends=files, language="c++")],
        "cmdclass": {"build_ext": Build, "build_py": FreshModules},
    }


setup(
    license="MIT",
    packages=[*find_packages(include=["oes_fast", "oes_fast.*"]), "oes_fast.kernels"],
    package_dir={"oes_fast.kernels": "kernels"},
    package_data={"oes_fast": ["py.typed", "_C.pyi"]},
    **extensions(),
)
