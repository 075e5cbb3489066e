"""The CUDA toolkit that the CUDA extension is compiled with, and the GPUs that it is compiled for.

A GPU is given by its compute capability, "9.0" for one of Hopper's; the compiler calls its machine code sm_90
and PTX, which drivers translate for later GPUs, compute_90. setup.py imports this without torch: it takes
nothing but the standard library.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ARCHS = "TORCH_CUDA_ARCH_LIST"  # the variable: PyTorch's own, in its syntax
# One for each generation: machine code runs on the later GPUs of its generation as well (8.0 on 8.6 and 8.9,
# 10.0 on 10.3, 12.0 on 12.1), and each costs the time of compiling everything once more.
USUAL = ("8.0", "9.0", "10.0", "12.0")
OLDEST = (8, 0)  # with tensor cores for TF32 and copies past the registers
NAMED = {  # as PyTorch names them
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}


class ToolkitError(Exception):
    """There is no toolkit to compile with, or not for what was asked."""


class Toolkit(NamedTuple):
    """An installed CUDA toolkit."""

    nvcc: str  # the compiler itself, not a script that calls it
    version: str
    include: str  # the folder with cuda_runtime.h
    library: str  # the folder with libcudart_static.a
    archs: tuple[str, ...]  # compute capabilities that it compiles for, the oldest first


def find_nvcc() -> str:
    """The compiler of CUDA_HOME or CUDA_PATH, else that on the PATH, else that of /usr/local/cuda.

    Raises:
        ToolkitError: there is none.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            nvcc = Path(home, "bin", "nvcc")
            if not nvcc.is_file():
                raise ToolkitError(f"{variable} is {home}, where there is no bin/nvcc")
            return str(nvcc)
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise ToolkitError("there is no nvcc; install the CUDA toolkit and set CUDA_HOME to its folder")
    return found


def find_toolkit() -> Toolkit:
    """The toolkit of :func:`find_nvcc`; where that is a script, the one that the script calls.

    Raises:
        ToolkitError: there is none, it is too old, or a part of it is missing.
    """
    nvcc = find_nvcc()
    said = _run(nvcc, "--version")
    version = re.search(r"release (\d+)\.(\d+)", said)
    if version is None:
        raise ToolkitError(f"{nvcc} --version does not say which one it is")
    if int(version[1]) < 12:
        raise ToolkitError(
            f"needs CUDA 12 or newer, whose nvcc compiles C++20, found {version[1]}.{version[2]}"
        )
    plan = _run(nvcc, "-dryrun", "-c", "none.cu")  # what it would do, without doing it
    home = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    top = Path(os.path.normpath(home[1].strip())) if home else Path(nvcc).resolve().parents[1]
    return Toolkit(
        nvcc=str(top / "bin" / "nvcc") if (top / "bin" / "nvcc").is_file() else nvcc,
        version=f"{version[1]}.{version[2]}",
        include=_folder_with("cuda_runtime.h", [*_folders(plan, "-I"), top / "include"]),
        library=_folder_with("libcudart_static.a", [*_folders(plan, "-L"), top / "lib64", top / "lib"]),
        archs=tuple(sorted(_known(_run(nvcc, "--list-gpu-code")), key=capability_of)),
    )


def _run(*command: str) -> str:
    """What a program prints.

    Raises:
        ToolkitError: it does not run.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        raise ToolkitError(f"{shlex.join(command)} fails ({error.stderr.strip()})") from None
    except OSError as error:
        raise ToolkitError(f"{command[0]} does not run ({error})") from None
    return done.stdout + done.stderr


def _folders(plan: str, option: str) -> Iterator[Path]:
    """The folders that nvcc's plan gives by an option."""
    for line in re.findall(r"^#\$ (?:INCLUDES|LIBRARIES)=(.*)$", plan, re.MULTILINE):
        for word in shlex.split(line):
            if word.startswith(option):
                yield Path(os.path.normpath(word.removeprefix(option)))


def _folder_with(name: str, folders: Iterable[Path]) -> str:
    looked = list(dict.fromkeys(folders))
    for folder in looked:
        if (folder / name).is_file():
            return str(folder)
    raise ToolkitError(f"the CUDA toolkit has no {name}; looked in {', '.join(map(str, looked))}")


def _known(listed: str) -> Iterator[str]:
    for number in re.findall(r"^sm_(\d+)$", listed, re.MULTILINE):
        arch = f"{number[:-1]}.{number[-1]}"
        if capability_of(arch) >= OLDEST:
            yield arch


def capability_of(arch: str) -> tuple[int, int]:
    """Major and minor number of a compute capability: (9, 0) of "9.0", "9.0a" and "9.0+PTX"."""
    major, minor = re.sub(r"[a-z]|\+PTX", "", arch).split(".")
    return int(major), int(minor)


def choose_archs(toolkit: Toolkit, asked: str | None) -> tuple[str, ...]:
    """What to compile for, such as ("8.0", "9.0+PTX"): what was asked, else what is usual.

    Args:
        toolkit: to compile with.
        asked: in PyTorch's syntax, the value of TORCH_CUDA_ARCH_LIST: compute capabilities or names of
            generations, separated by semicolons or blanks, with "+PTX" where PTX is wanted as well, or
            "native" for those of the GPUs that are here; None or empty for one of each generation that the
            toolkit knows, and PTX of the newest.

    Raises:
        ToolkitError: something else was asked, or the toolkit does not compile for it.
    """
    if not asked or not asked.strip():
        usual = [arch for arch in USUAL if arch in toolkit.archs]
        if not usual:
            raise ToolkitError(f"nvcc {toolkit.version} compiles for none of {', '.join(USUAL)}")
        return (*usual[:-1], usual[-1] + "+PTX")
    found: dict[str, str] = {}
    for name in asked.replace(" ", ";").split(";"):
        archs = _native() if name == "native" else NAMED.get(name.removesuffix("+PTX"), name)
        for arch in filter(None, archs.split(";")):
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
                raise ToolkitError(
                    f'{ARCHS}: expected compute capabilities such as "8.0;9.0+PTX", "native" or names out of '
                    f"{', '.join(NAMED)}, got {name!r}"
                )
            plain = arch.removesuffix("+PTX")
            if re.sub("[af]", "", plain) not in toolkit.archs:
                raise ToolkitError(
                    f"{ARCHS}: nvcc {toolkit.version} and these kernels are for "
                    f"{', '.join(toolkit.archs)}, got {plain}"
                )
            found[plain] = max(found.get(plain, ""), arch)
    return tuple(found[plain] for plain in sorted(found, key=capability_of))


def _native() -> str:
    """Compute capabilities of the GPUs that are here, in PyTorch's syntax."""
    said = _run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    archs = sorted(set(re.findall(r"^\d+\.\d$", said, re.MULTILINE)), key=capability_of)
    if not archs:
        raise ToolkitError(f'{ARCHS}: "native" needs a GPU, and nvidia-smi names none')
    return ";".join(archs) + "+PTX"


def arch_flags(archs: Iterable[str]) -> list[str]:
    """nvcc's flags for what :func:`choose_archs` gives."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether what was compiled for ``archs`` runs on a GPU: as it is, or by its PTX."""
    for arch in archs:
        major, minor = capability_of(arch)
        if arch[-1] == "a" or "a+" in arch:  # with what this one GPU alone has
            if (major, minor) == capability:
                return True
        elif (major == capability[0] and minor <= capability[1]) or (
            arch.endswith("+PTX") and "f" not in arch and (major, minor) <= capability
        ):
            return True
    return False
