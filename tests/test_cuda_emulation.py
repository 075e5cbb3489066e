"""The emulation of CUDA that the kernels of csrc/cuda are tested on: it runs them right and finds faults."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import REPO
from filelock import FileLock

EMULATION = REPO / "tests" / "cuda_emulation"
FLAGS = ["-std=c++20", "-O0", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-DOES_EMULATE_CUDA"]
FLAGS += [f"-I{REPO / 'csrc'}", f"-I{EMULATION}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
HEADERS = [*EMULATION.rglob("*.h"), *(REPO / "csrc" / "cuda" / "core").rglob("*.h")]
VARIANTS = {  # flags of kernels, of the emulation and of the linker
    "races": (["-O1", "-fsanitize=thread"], [], []),
    "sanitized": (["-g1", *SANITIZERS], ["-g1", *SANITIZERS], SANITIZERS),
    "ucontext": (["-O1", "-fsanitize=thread"], [], []),  # and a flag for one file
}

Run = Callable[..., str]


def build(variant: str) -> Path:
    """The program of tests/cuda_emulation/self_test; what was compiled before of the same files is taken."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    of_kernels, of_emulation, of_linker = VARIANTS[variant]
    flags = dict.fromkeys(EMULATION.glob("*.cpp"), of_emulation)
    flags |= dict.fromkeys((EMULATION / "self_test").glob("*.c*"), of_kernels)
    if variant == "ucontext":
        flags[EMULATION / "fibers.cpp"] = ["-DOES_EMULATION_UCONTEXT"]
    headers = b"".join(path.read_bytes() for path in sorted(HEADERS))
    folder = REPO / "build" / "cuda_emulation"
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(path: Path) -> Path:
        command = [compiler, *FLAGS, *flags[path], "-x", "c++", "-c", str(path), "-o"]
        digest = hashlib.sha256(repr(command).encode() + headers + path.read_bytes()).hexdigest()
        return made(folder / f"{path.name}-{digest[:16]}", command)

    with FileLock(folder / "lock"), ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, flags))
        names = [str(path) for path in objects]
        digest = hashlib.sha256(repr(sorted(names)).encode()).hexdigest()
        return made(folder / f"{variant}-{digest[:16]}", [compiler, *of_linker, *names, "-o"])


def made(target: Path, command: list[str]) -> Path:
    """The file that a command, which ends with its name, makes."""
    if not target.exists():
        new = target.with_name("new-" + target.name)
        done = subprocess.run([*command, str(new)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        new.rename(target)
    return target


def runner(variant: str) -> Run:
    program = build(variant)

    def run(case: str, seed: int = 0) -> str:
        environment = os.environ | {"OES_EMULATION_SEED": str(seed), "ASAN_OPTIONS": "detect_leaks=0"}
        environment.pop("LD_PRELOAD", None)
        done = subprocess.run(
            [str(program), case], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def races() -> Run:
    return runner("races")


@pytest.fixture(scope="session")
def sanitized() -> Run:
    return runner("sanitized")


FINE = [
    "barriers",
    "most_threads",
    "after_a_failure",
    "indices",
    "shuffles",
    "masks",
    "living_lanes",
    "products",
    "exchange",
    "exchange_of_bytes",
    "exchange_of_doubles",
    "lanes_of_a_warp",
    "blocks_have_their_own_shared_memory",
    "launches_in_a_row",
    "ticket",
    "ticket_with_fences_by_all",
]
FAULTS = {
    "missing_barrier": r"sum_kernel: race: .* shared memory, which thread .* since the last barrier",
    "exited_threads": r"block \(\d, 0, 0\): 128 of 256 threads wait at __syncthreads.*128 threads have",
    "divergent_barriers": r"63 of 64 threads wait at __syncthreads.*1 of the lanes of warp 0 at __syncwarp",
    "throwing": r"throwing_kernel.*: a thread threw: thrown on purpose; thread \(3, 0, 0\)",
    "nested_launch": r"indices_kernel: launched by another kernel",
    "mask_without_caller": r"__shfl_xor_sync: the lanes 0x55555555 lack the caller's, thread",
    "lanes_apart": r"at __shfl_down_sync of lanes 0xffffffff, thread .* at __shfl_xor_sync",
    "lanes_apart_once_one_left": r"\(1, 0, 0\) at __shfl_down_sync .* \(2, 0, 0\) at __shfl_xor_sync",
    "shared_counter": r"atomicAdd\(\): expected the address of an unsigned in device memory",
    "standard_counter": r"kernels have no atomics but atomicAdd\(\) of unsigned numbers; thread",
    "read_too_early": r"not initialised: .* reads 4 bytes .* shared memory|race: .* reads 4 bytes",
    "byte_read_too_early": r"not initialised: .* reads 1 byte .* shared memory|race: .* reads 1 byte",
    "write_too_early": r"race: .* (writes|reads) .* which thread .* (read|wrote) since the last barrier",
    "read_across_warps": r"race: .* reads 4 bytes .* which thread .* wrote since|not initialised",
    "shared_overrun": r"write_kernel.*: out of bounds: .* offset 40 of the 40 bytes of shared memory",
    "shared_underrun": r"out of bounds: .* offset -4 of the 40 bytes of shared memory",
    "device_overrun": r"out of bounds: thread \(0, 0, 0\) .* offset 40 of the 40 bytes of an allocation",
    "device_underrun": r"out of bounds: .* offset -4 of the 40 bytes of an allocation",
    "shared_not_initialised": r"not initialised: thread \(3, 0, 0\) .* offset 16 of the 40 bytes of shared",
    "device_not_initialised": r"not initialised: thread \(3, 0, 0\) .* offset 16 of the 40 bytes of an alloc",
    "released_memory": r"released: .* writes 4 bytes at offset 0",
    "copy_overrun": r"44 bytes at offset 0 of the 40 bytes",
    "two_blocks_write": r"race: .* writes .* which thread .* wrote in the same launch",
    "block_reads_of_another": r"race: .* block \(\d, 0, 0\) (reads|writes) .* in the same launch",
    "block_writes_over_another": r"race: .* block \(\d, 0, 0\) (reads|writes) .* in the same launch",
    "ticket_without_fence": r"race: .* reads .* an allocation, which thread .* wrote in the same launch",
    "ticket_before_fence": r"race: .* reads .* an allocation, which thread .* wrote in the same launch",
    "ticket_without_last_fence": r"race: .* reads .* in the same launch, without __threadfence\(\), atom",
    "ticket_without_barrier": r"race: .* (writes|reads) .* which thread .* in the same launch",
    "counter_reset_by_all": r"race: .* the 4 bytes of an allocation, which thread .* in the same launch",
}
PRINTING = ["order", "shapes", "tf32"]


def test_every_case_is_listed(races: Run):
    listed = subprocess.run([str(build("races"))], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == sorted([*FINE, *FAULTS, *PRINTING])


@pytest.mark.parametrize("case", FINE)
def test_right_kernels_run(races: Run, case: str):
    for seed in range(4):
        assert races(case, seed) == "fine\n"


@pytest.mark.parametrize("case", FAULTS)
def test_planted_faults_are_found(races: Run, case: str):
    for seed in range(4):
        found = races(case, seed)
        assert re.match(rf"raised: .*({FAULTS[case]})", found), found


def test_launches_that_hardware_refuses(races: Run):
    *refused, last = races("shapes").splitlines()
    assert len(refused) == 8
    assert all(line.startswith("kernel indices_kernel: expected ") for line in refused)
    assert refused[-1].endswith("shared memory, found 232449; grid (1, 1, 1), block (1, 1, 1)")
    assert last == "fine"


def test_orders_are_shuffled_and_reproducible(races: Run):
    first, again, other = races("order", 1), races("order", 1), races("order", 2)
    assert first == again
    assert first != other
    for text in (first, other):
        turns, blocks = ([int(word) for word in line.split()] for line in text.splitlines()[:2])
        threads = list(range(40))
        assert sorted(turns[:40]) == sorted(turns[40:]) == threads
        assert threads != turns[:40] != turns[40:] != threads  # a new order after the barrier
        assert sorted(blocks) == list(range(50)) != blocks


def test_conversion_to_tf32(races: Run):
    *lines, last = races("tf32").splitlines()
    assert last == "fine"
    for line in lines:
        bits, rounded = (int(word, 16) for word in line.split())
        if bits & 0x7F800000 != 0x7F800000:
            bits += 0x1000  # half of the last place that is kept; a tie goes away from zero
        assert rounded == bits & 0xFFFFE000, line
    assert "3f801000 3f802000" in lines
    assert "3f800fff 3f800000" in lines


@pytest.mark.parametrize("case", FINE)
def test_right_kernels_run_sanitized(sanitized: Run, case: str):
    assert sanitized(case) == "fine\n"


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("shared_overrun", "heap-buffer-overflow"),
        ("shared_underrun", "heap-buffer-overflow"),
        ("device_overrun", "heap-buffer-overflow"),
        ("released_memory", "heap-use-after-free"),
        ("exited_threads", "128 threads have returned"),
    ],
)
def test_planted_faults_are_found_sanitized(sanitized: Run, case: str, kind: str):
    assert kind in sanitized(case)


def test_it_runs_on_other_processors():
    """The slower change of stacks, which every Unix has."""
    run = runner("ucontext")
    assert {case: run(case) for case in FINE} == dict.fromkeys(FINE, "fine\n")
    assert "128 threads have returned" in run("exited_threads")
    assert run("order") == runner("races")("order")
