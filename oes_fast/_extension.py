"""The C++ extension: what it is built from, and whether the one that lies here may be loaded.

setup.py builds by what is written here, and writes into the extension what it was built from and for
(:func:`identity`). That is read out of the file, not by loading it: loading registers kernels with torch.

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
from pathlib import Path
from urllib.parse import unquote, urlsplit

from oes_fast.requirements import OLDEST, release, text

NAME = "oes_fast._C"
ROOT = Path(__file__).resolve().parents[1]  # of a checkout or an editable install; else site-packages
_MARK = b"OES_FAST_BUILD"

COMPILE_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",  # 31 MB of 34 otherwise, as Python's own flags ask for it
    "-fno-math-errno",  # so that square roots vectorise
    "-fno-trapping-math",  # so that choices between two values vectorise
    "-ffp-contract=off",  # so that all instruction sets round alike
    "-fvisibility=hidden",
    "-Wall",
    f"-DTORCH_TARGET_VERSION=0x{OLDEST['torch'][0]:02x}{OLDEST['torch'][1]:02x}000000000000",
]
LINK_FLAGS = (
    ["-Wl,-x", "-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,--as-needed", "-s"]
)
_SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
VARIANTS = {  # by the variable that asks for it: `make sanitize`, `make emulate`
    "OES_SANITIZE": ["-O1", "-g", *_SANITIZERS],
    "OES_EMULATE_AVX512": ["-DOES_EMULATE_AVX512", "-Wno-psabi"],
}


def compile_flags(variants: list[str]) -> list[str]:
    """The compiler's flags for a list of keys of :data:`VARIANTS`; of two that contradict the last counts."""
    return [*COMPILE_FLAGS, *(flag for variant in variants for flag in VARIANTS[variant])]


def link_flags(variants: list[str]) -> list[str]:
    """Flags of the linker; what is sanitized keeps its symbols, for the reports."""
    if "OES_SANITIZE" in variants:
        return [*(flag for flag in LINK_FLAGS if flag not in ("-s", "-Wl,-x")), *_SANITIZERS]
    return LINK_FLAGS


def sources(root: Path) -> list[Path]:
    """The files the extension is compiled from."""
    folders = (root / "csrc" / "common", root / "csrc" / "cpu")
    return sorted(path for folder in folders for ending in ("*.cpp", "*.h") for path in folder.rglob(ending))


def source_hash(root: Path, variants: list[str]) -> str:
    """SHA-256, in hexadecimal, of the sources under ``root`` and of the flags they are built with."""
    digest = hashlib.sha256(repr((compile_flags(variants), link_flags(variants))).encode())
    for path in sources(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def identity(root: Path, variants: list[str], torch: str) -> str:
    """C++ source with what the extension says of itself: sources, variants, torch built with and for."""
    said = {
        "sources": source_hash(root, variants),
        "variants": variants,
        "built_with_torch": torch,
        "needs_torch": text("torch"),
    }
    return (
        "// Written by setup.py.\nnamespace oes {\nextern const char build[];\n"
        f'const char build[] = R"({_MARK.decode()}{json.dumps(said)})";\n}} // namespace oes\n'
    )


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


def find() -> Path | None:
    """Where the extension for this Python lies; None if nowhere."""
    spec = importlib.util.find_spec(NAME)
    return None if spec is None or spec.origin is None else Path(spec.origin)


def is_checkout(root: Path) -> bool:
    """Whether the package is used from its source folder."""
    return (root / "setup.py").is_file() and (root / "csrc").is_dir()


def refusal(path: Path, torch: str, root: Path = ROOT) -> str:
    """Why the extension in the file may not be loaded; "" if it may.

    Args:
        path: the file.
        torch: the version that runs.
        root: the source folder it should have been built from; not compared where there is none.
    """
    said = read_identity(path)
    if said is None:
        return "the C++ extension does not say what it was built from, as those built by an older setup.py"
    needed = str(said["needs_torch"])
    if release(torch) < release(needed):
        return f"the C++ extension was built for torch {needed} or newer, found {torch}"
    if not is_checkout(root):
        return ""
    variants = said["variants"]
    if not isinstance(variants, list) or not set(variants) <= VARIANTS.keys():
        return "the C++ extension is stale: it was built in a way that is no longer known"
    if said["sources"] != source_hash(root, variants):
        return "the C++ extension is stale: csrc or its flags have changed since it was built"
    if "OES_SANITIZE" in variants and "asan" not in os.environ.get("LD_PRELOAD", ""):  # would end the process
        return "the C++ extension was built for `make sanitize`"
    return ""


def build_command(root: Path = ROOT) -> str:
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
    return f"OES_REQUIRE_EXT=1 {pip} {' '.join(options)}"


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
