"""The extensions: what each is built from, and whether the one that lies here may be loaded.

setup.py builds by what is written here, and writes into an extension what it was built from and for
(:meth:`Extension.identity`). That is read out of the file, not by loading it: loading registers kernels with
torch.

setup.py imports this module as well, without torch: it takes nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from oes_fast._cuda_toolkit import arch_flags
from oes_fast.requirements import OLDEST, release, text

ROOT = Path(__file__).resolve().parents[1]  # of a checkout or an editable install; else site-packages
_MARK = b"OES_FAST_BUILD"

_LINK_FLAGS = (
    ["-Wl,-x", "-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,--as-needed", "-s"]
)
_SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
_RACES = "-fsanitize=thread"  # calls for every access to memory, which tests/cuda_emulation answers
_SANITIZE = {"OES_SANITIZE": ["-O1", "-g", *_SANITIZERS]}  # `make sanitize`


@dataclass(frozen=True)
class Extension:
    """One extension of the package.

    Attributes:
        name: of the module.
        title: what messages call it.
        kernels: what messages call what it holds.
        required_by: the variable that makes it an error if it cannot be built.
        sources_in: patterns of where its sources lie.
        includes: folders that its sources include from, beside what they are built with.
        compile_flags: of the C++ compiler.
        link_flags: of the linker.
        variants: further flags of the C++ compiler, by the variable that asks for them.
        kernel_flags: of nvcc for .cu files; where they are compiled as C++, added to ``compile_flags``.
    """

    name: str
    title: str
    kernels: str
    required_by: str
    sources_in: tuple[str, ...]
    compile_flags: Sequence[str]
    link_flags: Sequence[str]
    includes: tuple[str, ...] = ("csrc",)
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kernel_flags: Sequence[str] = ()

    def compiler_flags(self, variants: Sequence[str]) -> list[str]:
        """The C++ compiler's flags for keys of ``variants``; the last of two that contradict counts."""
        return [*self.compile_flags, *(flag for variant in variants for flag in self.variants[variant])]

    def flags_of_kernels(self, variants: Sequence[str] = (), archs: Sequence[str] = ()) -> list[str]:
        """The flags for .cu files."""
        flags = [*self.kernel_flags, *arch_flags(archs)]
        # Of two sanitizers compilers take one.
        return [flag for flag in flags if flag != _RACES] if "OES_SANITIZE" in variants else flags

    def linker_flags(self, variants: Sequence[str]) -> list[str]:
        """Flags of the linker; what is sanitized keeps its symbols, for the reports."""
        if "OES_SANITIZE" in variants:
            return [*(flag for flag in self.link_flags if flag not in ("-s", "-Wl,-x")), *_SANITIZERS]
        return list(self.link_flags)

    def sources(self, root: Path) -> list[Path]:
        """The files it is compiled from."""
        found = {path for pattern in self.sources_in for path in root.glob(pattern)}
        return sorted(path for path in found if path.suffix in (".cpp", ".cu", ".h"))

    def source_hash(self, root: Path, variants: Sequence[str], archs: Sequence[str] = ()) -> str:
        """SHA-256, in hexadecimal, of the sources under ``root`` and of the flags they are built with."""
        flags: list[object] = [self.compiler_flags(variants), self.linker_flags(variants)]
        if self.kernel_flags:
            flags += [self.kernel_flags, list(archs)]
        digest = hashlib.sha256(repr(tuple(flags)).encode())
        for path in self.sources(root):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)} ".encode() + content)
        return digest.hexdigest()

    def identity(
        self, root: Path, variants: Sequence[str], archs: Sequence[str] = (), **built_with: str
    ) -> str:
        """C++ source with what the extension says of itself: what it was built from, with and for."""
        said = {
            "sources": self.source_hash(root, variants, archs),
            "variants": variants,
            **{f"built_with_{tool}": version for tool, version in built_with.items()},
            "needs_torch": text("torch"),
            **({"archs": archs} if archs else {}),
        }
        return (
            "// Written by setup.py.\nnamespace oes {\nextern const char build[];\n"
            f'const char build[] = R"({_MARK.decode()}{json.dumps(said)})";\n}} // namespace oes\n'
        )

    def find(self) -> Path | None:
        """Where the extension for this Python lies; None if nowhere."""
        spec = importlib.util.find_spec(self.name)
        return None if spec is None or spec.origin is None else Path(spec.origin)

    def refusal(self, path: Path, torch: str, root: Path = ROOT) -> str:
        """Why the extension in the file may not be loaded; "" if it may.

        Args:
            path: the file.
            torch: the version that runs.
            root: the source folder it should have been built from; not compared where there is none.
        """
        said = read_identity(path)
        if said is None:
            return (
                f"the {self.title} does not say what it was built from, as those built by an older setup.py"
            )
        needed = str(said["needs_torch"])
        if release(torch) < release(needed):
            return f"the {self.title} was built for torch {needed} or newer, found {torch}"
        if not is_checkout(root):
            return ""
        variants = said["variants"]
        if not isinstance(variants, list) or not set(variants) <= self.variants.keys():
            return f"the {self.title} is stale: it was built in a way that is no longer known"
        if said["sources"] != self.source_hash(root, variants, archs_of(said)):
            return f"the {self.title} is stale: csrc or its flags have changed since it was built"
        if "OES_SANITIZE" in variants and "asan" not in os.environ.get(
            "LD_PRELOAD", ""
        ):  # would end the process
            return f"the {self.title} was built for `make sanitize`"
        return ""

    def build_command(self, root: Path = ROOT) -> str:
        """The command that builds the extension for the Python that runs, or says why it cannot."""
        python = shlex.quote(sys.executable or "python3")
        pip = f"{python} -m pip install" if _is_here("pip") else f"uv pip install --python {python}"
        options = ["--no-deps"]
        if _is_here("setuptools") and _is_here("wheel") and _is_here("pybind11"):
            options.append("--no-build-isolation")  # nothing needs to be fetched
        if is_checkout(root):
            options += ["-e", shlex.quote(str(root))]
        else:
            options += ["--force-reinstall", *_origin()]
        return f"{self.required_by}=1 {pip} {' '.join(options)}"


CPU = Extension(
    name="oes_fast._C",
    title="C++ extension",
    kernels="The CPU kernels",
    required_by="OES_REQUIRE_EXT",
    sources_in=("csrc/common/**/*", "csrc/cpu/**/*"),
    compile_flags=[
        "-std=c++20",
        "-O3",
        "-g0",  # 31 MB of 34 otherwise, as Python's own flags ask for it
        "-fno-math-errno",  # so that square roots vectorise
        "-fno-trapping-math",  # so that choices between two values vectorise
        "-ffp-contract=off",  # so that all instruction sets round alike
        "-fvisibility=hidden",
        "-Wall",
        f"-DTORCH_TARGET_VERSION=0x{OLDEST['torch'][0]:02x}{OLDEST['torch'][1]:02x}000000000000",
    ],
    link_flags=_LINK_FLAGS,
    variants={**_SANITIZE, "OES_EMULATE_AVX512": ["-DOES_EMULATE_AVX512", "-Wno-psabi"]},  # `make emulate`
)
_CUDA_SOURCES = ("csrc/common/**/*", "csrc/cuda/**/*")
_CUDA_FLAGS = ["-std=c++20", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]  # those of nvcc
CUDA = Extension(
    name="oes_fast._C_cuda",
    title="CUDA extension",
    kernels="The CUDA kernels",
    required_by="FORCE_CUDA",
    sources_in=_CUDA_SOURCES,
    compile_flags=[*_CUDA_FLAGS, "-O3", "-DOES_MODULE=_C_cuda"],
    link_flags=[*_LINK_FLAGS, "-Wl,--exclude-libs,ALL"],  # the runtime library stays the extension's own
    kernel_flags=["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden"],
)
# The same sources as C++, for tests on a machine without a GPU; never part of an installation. Objects of
# kernels are linked first: of an inline function that other files compile as well, the linker keeps the first
# copy, and the race detector is to see what kernels do in it.
EMULATED_CUDA = Extension(
    name="oes_fast._C_cuda_emulated",
    title="emulated CUDA extension",
    kernels="The emulated CUDA kernels",
    required_by="OES_EMULATE_CUDA",
    sources_in=(*_CUDA_SOURCES, "tests/cuda_emulation/*"),
    includes=("csrc", "tests/cuda_emulation"),
    compile_flags=[
        *_CUDA_FLAGS,
        "-O1",
        "-ffp-contract=off",
        "-DOES_EMULATE_CUDA",
        "-DOES_MODULE=_C_cuda_emulated",
    ],
    link_flags=_LINK_FLAGS,
    variants=_SANITIZE,
    kernel_flags=[_RACES],
)


def archs_of(said: Mapping[str, object] | None) -> list[str]:
    """The GPUs that an extension was compiled for, from what it says of itself."""
    archs = (said or {}).get("archs", [])
    return [str(arch) for arch in archs] if isinstance(archs, list) else []


def read_identity(path: Path) -> dict[str, object] | None:
    """What the extension in the file says of itself; None where it says nothing.

    Raises:
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    start = content.find(_MARK + b"{")
    if start < 0:
        return None
    said = content[start + len(_MARK) : content.find(b"\0", start)]
    try:
        found = json.loads(said)
    except ValueError:
        return None
    return found if {"sources", "variants", "needs_torch"} <= found.keys() else None


def is_checkout(root: Path) -> bool:
    """Whether the package is used from its source folder."""
    return (root / "setup.py").is_file() and (root / "csrc").is_dir()


def _is_here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _origin() -> list[str]:
    """What pip is to install again to build the package that is installed here."""
    try:
        said = json.loads(importlib.metadata.distribution("oes_fast").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        said = {}
    url = str(said.get("url", ""))
    if url.startswith("file:"):
        return [shlex.quote(unquote(urlsplit(url).path))]
    built_here = ["--no-cache-dir", "--no-binary", "oes_fast"]  # not a wheel that pip has kept
    if "vcs_info" in said:
        return [*built_here, shlex.quote(f"{said['vcs_info']['vcs']}+{url}@{said['vcs_info']['commit_id']}")]
    return [*built_here, shlex.quote(url) if url else "oes_fast"]
