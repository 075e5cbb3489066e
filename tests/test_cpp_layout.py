"""The C++ files: folders as floors, includes downwards only, one rule for a family's files, one format."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

CSRC = REPO / "csrc"
PLATFORM = CSRC / "cuda" / "core" / "platform.h"  # the one file that knows of the emulation
WITHOUT_NAMESPACE = ("cuda/module.cpp", "cuda/core/device_names.h")  # the module alone, names of CUDA's
EMULATION = REPO / "tests" / "cuda_emulation"
FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
# From the top to the bottom; those of one floor do not know each other.
FLOORS = (("module",), ("chain",), ("conv", "join"), ("norm", "mask"), ("core",), ("common",))
HEIGHT = {name: height for height, floor in enumerate(reversed(FLOORS)) for name in floor}


def floor_of(path: str) -> str:
    """Name of the floor of a file, given from csrc: "conv" of "cpu/conv/winograd/tiles.h"."""
    parts = path.split("/")
    if parts[0] == "common":
        return "common"
    return "module" if parts[1] == "module.cpp" else parts[1]


def name_of(path: Path) -> str:
    return path.relative_to(CSRC).as_posix()


def includes(path: Path) -> list[str]:
    """What a file includes of csrc, by directive or as loops for each instruction set."""
    found = re.findall(r'^#(?:include|define OES_ISA_FILE) "([^"]+)"', path.read_text(), re.MULTILINE)
    return [target for target in found if target != "cuda_emulation.h" or path != PLATFORM]


def allowed(source: str, target: str) -> bool:
    """Whether a file may include another, both given from csrc; cpu and cuda have common alone in common."""
    above, below = floor_of(source), floor_of(target)
    same_engine = below == "common" or source.split("/")[0] == target.split("/")[0]
    return same_engine and (above == below or HEIGHT[above] > HEIGHT[below])


def test_includes_go_downwards():
    found = [(name_of(path), target) for path in FILES for target in includes(path)]
    assert [f"{source} includes {target}" for source, target in found if not allowed(source, target)] == []
    assert ("cpu/conv/conv_input.h", "cpu/norm/prologue.h") in found  # the pattern sees them
    assert ("cuda/conv/tap_sum.cu", "cuda/conv/tap_sum.h") in found


def test_the_rule_forbids_something():
    assert not allowed("cpu/norm/batch_norm_act.h", "cpu/conv/conv_input.h")
    assert not allowed("cpu/norm/batch_norm_act.h", "cpu/mask/relaxed_mask.h")
    assert not allowed("common/tap_offsets.h", "cpu/core/simd.h")
    assert not allowed("cpu/conv/winograd/tiles.h", "cpu/chain/chain.h")
    assert not allowed("cuda/core/platform.h", "cuda/norm/prologue.h")
    assert not allowed("cuda/conv/tap_sum.cu", "cpu/core/border.h")
    assert allowed("cuda/conv/tap_sum.cu", "cuda/norm/prologue.h")
    assert allowed("cpu/module.cpp", "cpu/chain/bindings.h")
    assert allowed("cpu/chain/chain.h", "common/chain_specs.h")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_keep_the_rules(path: Path):
    name, text = name_of(path), path.read_text()
    floor = floor_of(name)
    for target in includes(path):
        assert (CSRC / target).is_file(), f"{target}: expected a path from csrc"
        if path.name.endswith("_isa.h") or f'OES_ISA_FILE "{target}"' in text:
            continue
        assert not target.endswith("_isa.h"), f"{target} is to be compiled once for each instruction set"
    # Namespace = folder; core and common, which all others stand on, are the engine's, the CPU's oes itself.
    namespaces = set(re.findall(r"^namespace (oes[\w:]*) \{", text, re.MULTILINE))
    engine = "oes::cuda" if name.startswith("cuda/") else "oes"
    folder = "::".join(name.split("/")[1:-1])
    expected = engine if floor in ("core", "common", "module") else f"{engine}::{folder}"
    if path.name.endswith("_isa.h") or path.name == "isa_variants.h":  # included inside a family's namespace
        assert namespaces == set()
    else:
        assert namespaces <= {expected, "oes::emulated"}, f"expected {expected}"
        assert namespaces or name in WITHOUT_NAMESPACE
    if path.suffix == ".cu":
        assert not path.with_suffix(".cpp").exists(), "both would be compiled to one file"
    assert ("STABLE_TORCH_LIBRARY_IMPL" in text) == path.name.endswith("_op.cpp")
    if floor == "common" or engine == "oes::cuda":
        assert "torch" not in re.sub(r"//.*", "", text)
    if engine == "oes::cuda" and name != "cuda/core/platform.h":
        assert "cuda_runtime" not in text, "the platform has what is needed, emulated as well"


def reached(path: Path) -> set[str]:
    """Files of csrc that a file includes, or a file that it includes."""
    found: set[str] = set()
    todo = includes(path)
    while todo:
        target = todo.pop()
        if target not in found:
            found.add(target)
            todo += includes(CSRC / target)
    return found


def test_a_header_is_shared_or_declares_what_its_source_defines():
    """What one source alone includes belongs into it."""
    compiled = [reached(path) for path in FILES if path.suffix in (".cpp", ".cu")]
    headers = [path for path in FILES if path.suffix == ".h" and not path.name.endswith("_isa.h")]
    lone = [
        name_of(path)
        for path in headers
        if not any(path.with_suffix(ending).exists() for ending in (".cpp", ".cu"))
        and sum(name_of(path) in files for files in compiled) < 2
    ]
    assert lone == []


def test_format():
    wanted = re.search(r"^clang-format==(\S+)", (REPO / "requirements-dev.txt").read_text(), re.MULTILINE)
    assert wanted is not None
    try:
        found = importlib.metadata.version("clang-format")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("clang-format is not installed")
    if found != wanted[1]:
        pytest.skip(f"needs clang-format {wanted[1]}, found {found}")
    command = [
        sys.executable,
        "-c",
        "import clang_format; clang_format.clang_format()",
        "--dry-run",
        "--Werror",
    ]
    emulation = [path for path in EMULATION.rglob("*") if path.suffix in (".h", ".cpp", ".cu")]
    files = map(str, [*FILES, *emulation])
    done = subprocess.run([*command, *files], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
