"""What nvcc makes of the CUDA kernels, without a GPU: registers, spills, and their loops in SASS.

    python -m benchmarks.sass [--arch 9.0] [--match conv]

prints what each kernel needs. SASS is the machine code of NVIDIA's GPUs. The unit is the multiply-accumulate
(mac) of one thread: an FFMA or DFMA is one, a tensor core's product of 16 x 8 x 8 is 32 for each of a warp's
threads.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from oes_fast._cuda_toolkit import Toolkit, ToolkitError, find_toolkit
from oes_fast._extension import CUDA, ROOT

DETAILED = "9.0"  # the GPU whose machine code is read; for the others what the assembler reports is enough
PRINTED = ("registers", "stack", "spills", "shared", "instructions")


@dataclass(frozen=True)
class Loop:
    """One loop's own instructions, without those of the loops inside it.

    Attributes:
        instructions: all of them.
        macs: multiply-accumulates.
        shared_loads: loads from shared memory.
        shared_bytes: that these load.
        global_loads: loads from global memory into registers.
        copies: from global into shared memory.
        barriers: of the block.
        special: exponentials, reciprocals and roots, which units of their own begin with.
    """

    instructions: int
    macs: int
    shared_loads: int
    shared_bytes: int
    global_loads: int
    copies: int
    barriers: int
    special: int

    @property
    def instructions_per_mac(self) -> float:
        """Instructions a multiply-accumulate."""
        return self.instructions / self.macs

    @property
    def loads_per_mac(self) -> float:
        """Loads from shared and global memory a multiply-accumulate."""
        return (self.shared_loads + self.global_loads) / self.macs


@dataclass(frozen=True)
class Kernel:
    """What a kernel needs on one kind of GPU.

    Attributes:
        registers: a thread.
        stack: bytes a thread.
        spills: bytes of registers a thread that are stored to the stack and loaded again.
        shared: bytes of shared memory a block, beside what a launch adds.
        instructions: of its machine code; 0 where that was not read.
        loops: in the order of their beginnings.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int = 0
    loops: tuple[Loop, ...] = ()

    @property
    def inner(self) -> Loop | None:
        """The loop of whose instructions multiply-accumulates are the largest share; None if none has any.

        The loop that has most of them may be another: one that activates, whose exponentials are polynomials.
        Loops with many :attr:`Loop.special` instructions are taken where there are no others, and so are
        those that load more from global memory than from shared, which normalise what they stage.
        """
        loops = [loop for loop in self.loops if loop.macs]
        plain = [loop for loop in loops if 32 * loop.special <= loop.macs]
        near = [loop for loop in plain if loop.shared_loads >= loop.global_loads]
        return max(near or plain or loops, key=lambda loop: loop.macs / loop.instructions, default=None)


def kernels(
    archs: Sequence[str] = (DETAILED,),
    *,
    root: Path = ROOT,
    cache: Path = ROOT / "build" / "sass",
    without: Sequence[str] = (),
) -> dict[str, dict[str, Kernel]]:
    """Every kernel of csrc/cuda by its name, such as "conv::tap_sum<float, 4>", for each compute capability.

    Files are compiled in parallel, with the flags of the extension, and not again while nothing changes.

    Args:
        archs: compute capabilities; loops are there for :data:`DETAILED` alone.
        root: of the sources.
        cache: the folder that keeps what was found.
        without: names of files that are not compiled, such as "tap_sum.cu".

    Raises:
        ToolkitError: there is no nvcc, or no tool that reads machine code, or a file does not compile.
    """
    toolkit = find_toolkit()
    cache.mkdir(parents=True, exist_ok=True)
    files = [path for path in CUDA.sources(root) if path.suffix == ".cu" and path.name not in without]
    jobs = [(arch, path) for path in files for arch in archs]
    with (
        FileLock(cache / "lock"),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):  # compiles in one process alone
        done = list(pool.map(lambda job: _of_file(toolkit, job[0], job[1], root, cache), jobs))
    found: dict[str, dict[str, Kernel]] = {arch: {} for arch in archs}
    for (arch, path), kernels_of_file in zip(jobs, done, strict=True):
        if twice := found[arch].keys() & kernels_of_file:
            raise ToolkitError(f"{path}: another file has a kernel of the name {', '.join(sorted(twice))}")
        found[arch].update(kernels_of_file)
    return found


def _of_file(toolkit: Toolkit, arch: str, source: Path, root: Path, cache: Path) -> dict[str, Kernel]:
    """The kernels of one file by their names."""
    number = arch.replace(".", "")
    flags = [*CUDA.flags_of_kernels(), f"-arch=sm_{number}", "-I", str(root / "csrc")]
    stem = f"{source.stem}-sm_{number}"
    way = fingerprint(source, root, (toolkit.nvcc, toolkit.version, flags))
    parsed = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    cubin, log, rows = (cache / f"{stem}-{way}{end}" for end in (".cubin", ".log", f"-{parsed}.json"))
    if not log.is_file():
        for old in cache.glob(f"{stem}-*"):  # of what the source was before
            old.unlink()
        log_text = _run(toolkit.nvcc, *flags, "-cubin", "-Xptxas", "-v", str(source), "-o", str(cubin))
        _write(log, log_text)
    if not rows.is_file():
        code = _run(find_tool("nvdisasm", toolkit), "-c", str(cubin)) if arch == DETAILED else ""
        found = {name: asdict(kernel) for name, kernel in described(log.read_text(), code).items()}
        _write(rows, json.dumps(found, indent=1))
    return {
        name: Kernel(**{**row, "loops": tuple(Loop(**loop) for loop in row["loops"])})
        for name, row in json.loads(rows.read_text()).items()
    }


def kernels_in(built: Path, arch: str = DETAILED) -> dict[str, Kernel]:
    """Every kernel of a built extension, or of an object file, by its name; takes seconds, and no compiler.

    Args:
        built: the file.
        arch: compute capability of the machine code that is read.

    Returns:
        As :func:`kernels`, with loops; spills are not known and 0.

    Raises:
        ToolkitError: a tool that reads machine code is not there, or the file holds none for ``arch``.
    """
    toolkit = find_toolkit()
    dump, disassemble = (find_tool(name, toolkit) for name in ("cuobjdump", "nvdisasm"))
    number = arch.replace(".", "")
    said = _run(dump, "-arch", f"sm_{number}", "-res-usage", str(built))
    with tempfile.TemporaryDirectory() as folder:
        _run(dump, "-arch", f"sm_{number}", "-xelf", "all", str(built.resolve()), folder=folder)
        cubins = sorted(Path(folder).glob("*.cubin"))
        if not cubins:
            raise ToolkitError(f"{built}: expected machine code for sm_{number}, found none")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            texts = pool.map(lambda cubin: _run(disassemble, "-c", str(cubin)), cubins)
            functions = dict(function for text in texts for function in _functions(text))
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", said)
    resources = {
        symbol: (int(registers), int(stack), 0, int(shared)) for symbol, registers, stack, shared in found
    }
    return _read(resources, functions)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def fingerprint(source: Path, root: Path, way: object) -> str:
    """Of a file, of all that it includes, and of how it is compiled."""
    digest = hashlib.sha256(repr(way).encode())
    for path in (source, *included(source, root)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def included(source: Path, root: Path) -> list[Path]:
    """The files of csrc that a file includes, or a file that it includes."""
    found: dict[Path, None] = {}
    todo = [source]
    while todo:
        for name in re.findall(r'^#include "([^"]+)"', todo.pop().read_text("utf-8"), re.MULTILINE):
            path = root / "csrc" / name
            if path.is_file() and path not in found:
                found[path] = None
                todo.append(path)
    return sorted(found)


def find_tool(name: str, toolkit: Toolkit) -> str:
    """One of CUDA's tools: the toolkit's own, or that in the Triton package.

    Raises:
        ToolkitError: it is nowhere.
    """
    places = [Path(toolkit.nvcc).parent]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = shutil.which(name, path=os.pathsep.join(map(str, places)))
    if found is None:
        raise ToolkitError(f"there is no {name}; the CUDA toolkit and the Triton package have it")
    return found


def _run(*command: str, given: str = "", folder: str | None = None) -> str:
    """What a program prints.

    Raises:
        ToolkitError: it fails.
    """
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, cwd=folder)
    except OSError as error:
        raise ToolkitError(f"{command[0]} does not run ({error})") from None
    except subprocess.CalledProcessError as error:
        raise ToolkitError(f"{' '.join(command)} fails:\n{error.stdout}{error.stderr}") from None
    return done.stdout + done.stderr


def described(said: str, code: str = "") -> dict[str, Kernel]:
    """Kernels by their names, from what ptxas -v says and the machine code as nvdisasm -c writes it."""
    return _read(dict(_resources(said)), dict(_functions(code)))


def _read(resources: dict[str, tuple[int, int, int, int]], texts: dict[str, str]) -> dict[str, Kernel]:
    """Kernels by name, from registers, stack, spills and shared memory and from machine code, by symbol."""
    names = dict(zip(resources, readable(resources), strict=True))
    found = {}
    for symbol, (registers, stack, spills, shared) in resources.items():
        lines = list(_instructions(texts.get(symbol, "")))
        places = {place for place, text in lines if text != "NOP"}
        found[names[symbol]] = Kernel(
            registers, stack, spills, shared, len(places), tuple(_loops(lines, texts.get(symbol, "")))
        )
    return found


def _resources(said: str) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Registers, stack, spills and shared memory by symbol."""
    for part in said.split("Compiling entry function '")[1:]:
        figures = [
            re.search(pattern, part)
            for pattern in (
                r"Used (\d+) registers",
                r"(\d+) bytes stack frame",
                r"(\d+) bytes spill stores",
                r"(\d+) bytes spill loads",
                r"(\d+) bytes smem",
            )
        ]
        registers, stack, stores, loads, shared = (int(found[1]) if found else 0 for found in figures)
        yield part.partition("'")[0], (registers, stack, stores + loads, shared)


def readable(symbols: Iterable[str]) -> list[str]:
    """Names of kernels without what all have in common: "conv::tap_sum<float, 4>".

    Raises:
        ToolkitError: c++filt, of the compiler's own tools, is not there.
    """
    return [without_namespaces(line) for line in _run("c++filt", given="\n".join(symbols)).splitlines()]


def without_namespaces(signature: str) -> str:
    """A function as a profiler shows it, without what ours have in common and without its arguments."""
    name = re.sub(r"_GLOBAL__N__\w+::|_INTERNAL_\w+::|\(anonymous namespace\)::", "", signature)
    name = re.sub(r"\boes::cuda::|\boes::", "", name).removeprefix("void ")
    depth = 0
    for place, letter in enumerate(name):  # up to the first bracket that stands outside of template arguments
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def _functions(code: str) -> Iterator[tuple[str, str]]:
    """Machine code by symbol."""
    parts = re.split(r"^\s*\.section\s+\.text\.([^,\s]+),.*$", code, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def _instructions(text: str) -> Iterator[tuple[int, str]]:
    """Address and text, without the predicate, of every instruction."""
    for place, instruction in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][^;]*?)\s*;", text):
        yield int(place, 16), instruction


def _loops(lines: list[tuple[int, str]], text: str) -> Iterator[Loop]:
    """The loops: from where a branch leads back to, up to the last branch that leads there."""
    found = re.findall(r"^(\.L\w+):\s*(?:\.\w+.*\n\s*)*/\*([0-9a-f]+)\*/", text, re.MULTILINE)
    labels = {label: int(place, 16) for label, place in found}
    spans: dict[int, int] = {}
    for place, instruction in lines:
        target = re.match(r"BRA\b.*`\((\.L\w+)\)", instruction)
        begin = labels.get(target[1], place) if target else place
        if begin < place:
            spans[begin] = max(place, spans.get(begin, 0))
    for begin, end in sorted(spans.items()):
        inside = [(b, e) for b, e in spans.items() if begin <= b and e <= end and (b, e) != (begin, end)]
        own = [
            instruction
            for place, instruction in lines
            if begin <= place <= end and not any(b <= place <= e for b, e in inside)
        ]
        yield _counted([instruction for instruction in own if instruction != "NOP"])


def _counted(instructions: list[str]) -> Loop:
    names = [instruction.split()[0] for instruction in instructions]
    shared = [name for name in names if re.match(r"LDS(\.|M|$)", name)]
    return Loop(
        instructions=len(names),
        macs=sum(map(_macs, names)),
        shared_loads=len(shared),
        shared_bytes=sum(16 if ".128" in name else 8 if ".64" in name else 4 for name in shared),
        global_loads=sum(bool(re.match(r"LDG?(\.|$)", name)) for name in names),
        copies=sum(name.startswith(("LDGSTS", "UBLKCP", "UTMALDG")) for name in names),
        barriers=sum(name.startswith("BAR.") for name in names),
        special=sum(name.startswith("MUFU") for name in names),
    )


def _macs(name: str) -> int:
    """Multiply-accumulates a thread of an instruction."""
    kind, _, rest = name.partition(".")
    if kind in ("FFMA", "DFMA"):
        return 1
    if kind == "FFMA2":  # two at once
        return 2
    if kind in ("HMMA", "DMMA") and (shape := re.match(r"(16|8)(8)(\d+)", rest)):
        return int(shape[1]) * int(shape[2]) * int(shape[3]) // 32
    return 0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default=DETAILED, help=f"compute capability; loops for {DETAILED} alone")
    parser.add_argument("--match", default="", help="only kernels with this in their names")
    given = parser.parse_args()
    for name, kernel in sorted(kernels([given.arch])[given.arch].items()):
        if given.match in name:
            said = [f"{figure} {getattr(kernel, figure)}" for figure in PRINTED]
            if kernel.inner:
                loop = kernel.inner
                said.append(
                    f"inner loop: {loop.macs} macs, {loop.instructions_per_mac:.2f} instructions and "
                    f"{loop.loads_per_mac:.3f} loads each, {loop.barriers} barriers"
                )
            print(f"{name}\n    {', '.join(said)}")


if __name__ == "__main__":
    main()
