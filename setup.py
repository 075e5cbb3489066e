"""Build of oes_fast: metadata is in pyproject.toml, what the extensions are built from in _extension.py.

The extension oes_fast._C is built where torch (2.10 or newer) and a compiler are there, also by pip and other
front ends that hide torch from a build. Without them the package installs all the same and runs on plain
PyTorch; OES_REQUIRE_EXT=1 makes that an error. oes_fast._C_cuda is built where that torch is one for CUDA and
nvcc is there, or with FORCE_CUDA=1, which makes it an error if it cannot be built and needs nvcc alone.
OES_EMULATE_CUDA=1 builds oes_fast._C_cuda_emulated as well, in place, for the tests.
"""

from __future__ import annotations

import copy
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
from oes_fast import _cuda_toolkit, _extension, requirements  # noqa: E402


def asked(name: str) -> bool:
    """Whether an environment variable is set, to something other than 0."""
    return os.environ.get(name, "0") not in ("", "0")


# The extensions to build, by name; CUDA runs on Linux, of the systems with these compilers.
DESCRIBED = {
    each.name: each
    for each, wanted in (
        (_extension.CPU, True),
        (_extension.CUDA, sys.platform == "linux"),
        (_extension.EMULATED_CUDA, asked(_extension.EMULATED_CUDA.required_by)),
    )
    if wanted
}
HIDES_TORCH = ("PYTHONPATH", "PYTHONNOUSERSITE")  # as pip sets them for an isolated build


class NotHere(Exception):
    """Something the extension needs is missing or does not work."""


class NotWanted(Exception):
    """The extension is of no use here."""


class Torch(NamedTuple):
    """An installed torch."""

    version: str
    folder: str  # of the package
    cuda: str | None  # the version of CUDA that it was built for


# Found, not imported: that takes seconds, and a build needs only the folders.
FIND_TORCH = """
import importlib.util, json, pathlib, runpy
spec = importlib.util.find_spec("torch")
found = {}
if spec is not None and spec.origin is not None:
    folder = pathlib.Path(spec.origin).parent
    said = runpy.run_path(str(folder / "version.py"))
    found = {"version": str(said["__version__"]), "folder": str(folder), "cuda": said.get("cuda")}
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
    """Builds the extensions, or says why it does not; compiles in parallel, and only what has changed."""

    def finalize_options(self) -> None:
        """Called by setuptools, once options are read."""
        super().finalize_options()
        if not self.inplace:  # what is installed holds nothing that is there for tests
            self.extensions = [each for each in self.extensions if each.name != _extension.EMULATED_CUDA.name]

    def build_extensions(self) -> None:
        """Called by setuptools, with the compiler made."""
        self.anew = bool(self.force)  # asked for by --force
        built = []
        for extension in self.extensions:
            described = DESCRIBED[extension.name]
            try:
                self.build_for(extension, described)
            except Exception as error:
                leftover = Path(self.get_ext_fullpath(extension.name))
                if leftover.is_file():  # of an earlier build; it would be packed
                    leftover.unlink()
                if isinstance(error, NotWanted):
                    continue
                variable = described.required_by
                if asked(variable):
                    raise SystemExit(
                        f"oes_fast: {variable}=1, but the {described.title} cannot be built: {error}"
                    ) from error
                line = "=" * 100
                print(
                    f"{line}\noes_fast: INSTALLING WITHOUT THE {described.title.upper()}: {error}\n"
                    f"{described.kernels} will be missing; oes_fast.backends() says what to run for them.\n"
                    f"{line}",
                    file=sys.stderr,
                )
            else:
                built.append(extension)
        self.extensions = built

    def build_for(self, extension: Extension, described: _extension.Extension) -> None:
        """Compile and link."""
        try:
            import pybind11
            from pybind11.setup_helpers import ParallelCompile
        except ImportError as error:
            raise NotHere(f"pybind11 cannot be imported ({error}); pip install pybind11") from None
        variants = [name for name in described.variants if asked(name)]
        way = find_way(described)
        # pybind11 first: some versions of torch ship a copy of it that refuses TORCH_TARGET_VERSION.
        extension.include_dirs = [*described.includes, pybind11.get_include(), *way.includes]
        extension.library_dirs, extension.libraries = way.library_dirs, way.libraries
        extension.extra_compile_args = [*described.compiler_flags(variants), "-MMD"]  # lists the files read
        extension.extra_link_args = described.linker_flags(variants)

        # Objects are kept for the next build, apart for all that is compiled in another way.
        compiler = cpp_command(self.compiler)
        told = [compiler, compiler_version(compiler[0]), described.compiler_flags(variants), way.includes]
        if described.kernel_flags:
            told += [way.nvcc, described.kernel_flags, way.archs]
        told += [sys.version, *way.built_with.values(), pybind11.__version__]
        digest = hashlib.sha256(repr(told).encode()).hexdigest()
        self.build_temp = os.path.join("build", f"objects-{sys.platform}-{digest[:12]}")
        os.makedirs(self.build_temp, exist_ok=True)
        if self.anew:
            shutil.rmtree(self.build_temp)
            os.makedirs(self.build_temp)
        identity = Path(self.build_temp, "identity.cpp")
        identity.write_text(described.identity(ROOT, variants, way.archs, **way.built_with))
        extension.sources = [*extension.sources, str(identity)]
        self.force = self.compiler.force = True  # setuptools sees no change of flags
        plain = self.compiler
        self.compiler = with_kernels(plain, described, variants, way)
        try:
            with ParallelCompile("MAX_JOBS", needs_recompile=outdated):
                self.build_extension(extension)
        finally:
            self.compiler = plain


class Way(NamedTuple):
    """What an extension is built with, beside pybind11 and the C++ compiler."""

    built_with: dict[str, str]  # versions, by name
    includes: list[str]
    library_dirs: list[str]
    libraries: list[str]
    nvcc: str = ""
    archs: tuple[str, ...] = ()


def find_way(described: _extension.Extension) -> Way:
    """Find what an extension needs.

    Raises:
        NotHere: something is missing.
        NotWanted: torch runs on no GPU of NVIDIA's, so that CUDA kernels would never be called.
    """
    if described is _extension.EMULATED_CUDA:
        return Way({}, [], [], [])
    if described is _extension.CPU:
        torch = find_torch()
        includes = [f"{torch.folder}/include", f"{torch.folder}/include/torch/csrc/api/include"]
        return Way({"torch": torch.version}, includes, [f"{torch.folder}/lib"], ["c10", "torch_cpu"])
    if not asked(described.required_by):
        try:
            without_gpu = find_torch().cuda is None
        except NotHere:
            without_gpu = True
        if without_gpu:
            raise NotWanted
    try:
        toolkit = _cuda_toolkit.find_toolkit()
        archs = _cuda_toolkit.choose_archs(toolkit, os.environ.get(_cuda_toolkit.ARCHS))
    except _cuda_toolkit.ToolkitError as error:
        raise NotHere(str(error)) from None
    libraries = ["cudart_static", "rt", "pthread", "dl"]
    return Way(
        {"nvcc": toolkit.version}, [toolkit.include], [toolkit.library], libraries, toolkit.nvcc, archs
    )


def with_kernels(compiler: Any, described: _extension.Extension, variants: list[str], way: Way) -> Any:
    """A copy of the compiler that takes .cu files too, which nvcc compiles where the build found it."""
    compiler = copy.copy(compiler)
    compiler.src_extensions = [*compiler.src_extensions, ".cu"]
    compile_cpp = compiler._compile
    host = next(word for word in cpp_command(compiler) if Path(word).name not in ("ccache", "sccache"))

    def compile_one(
        compiled: str, source: str, ending: str, flags: list[str], more: list[str], includes: list[str]
    ) -> None:
        if ending != ".cu":
            compile_cpp(compiled, source, ending, flags, more, includes)
            return
        options = described.flags_of_kernels(variants, way.archs)
        if way.nvcc:
            listed = str(Path(compiled).with_suffix(".d"))
            options += ["-ccbin", host, "-MMD", "-MF", listed]
            command = [way.nvcc, *includes, "-c", source, "-o", compiled, *options]
            if subprocess.run(command, check=False).returncode:
                raise NotHere(f"nvcc fails on {source}: {shlex.join(command)}")
        else:
            compile_cpp(compiled, source, ending, [*flags, "-x", "c++", *options], more, includes)

    compiler._compile = compile_one
    return compiler


def cpp_command(compiler: Any) -> list[str]:
    """The command of setuptools' compiler for C++."""
    return list(getattr(compiler, "compiler_so_cxx", None) or compiler.compiler_so)


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
    """The arguments of setup() for the extensions."""
    if sys.platform == "win32":  # the kernels need gcc or clang, which Windows builds of Python do not use
        return {}
    made = []
    for name, described in DESCRIBED.items():
        files = [str(path.relative_to(ROOT)) for path in described.sources(ROOT)]
        compiled = [path for path in files if path.endswith(".cu")]
        compiled += [path for path in files if path.endswith(".cpp")]  # see _extension.EMULATED_CUDA
        made.append(Extension(name, compiled, depends=files, language="c++"))
    return {"ext_modules": made, "cmdclass": {"build_ext": Build, "build_py": FreshModules}}


setup(
    license="MIT",
    packages=[*find_packages(include=["oes_fast", "oes_fast.*"]), "oes_fast.kernels"],
    package_dir={"oes_fast.kernels": "kernels"},
    package_data={"oes_fast": ["py.typed", "_C.pyi"], "oes_fast.pruning": ["layer_profile.json"]},
    **extensions(),
)
