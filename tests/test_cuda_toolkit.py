"""The CUDA toolkit that is found, and the GPUs that kernels are compiled for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oes_fast import _cuda_toolkit
from oes_fast._cuda_toolkit import Toolkit, ToolkitError, arch_flags, choose_archs, find_toolkit, runs_on

KNOWN = ("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")
TOOLKIT = Toolkit("/cuda/bin/nvcc", "13.0", "/cuda/include", "/cuda/lib64", KNOWN)

NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
--list-gpu-code) printf "sm_75\\nsm_80\\nsm_90\\nsm_100\\nsm_120\\n" ;;
-dryrun) printf '#$ TOP={home}/bin/..\\n#$ INCLUDES="-I{home}/bin/../include"  \\n' >&2 ;;
*) exit 1 ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit that CUDA_HOME names."""
    home = tmp_path / "cuda 13"
    for folder, name in (("include", "cuda_runtime.h"), ("lib64", "libcudart_static.a"), ("bin", "nvcc")):
        (home / folder).mkdir(parents=True)
        (home / folder / name).touch()
    program(home / "bin" / "nvcc", NVCC.format(home=home, version="13.0"))
    monkeypatch.setenv("CUDA_HOME", str(home))
    return home


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


class TestFinding:
    def test_what_cuda_home_names(self, home):
        nvcc = str(home / "bin" / "nvcc")
        archs = ("8.0", "9.0", "10.0", "12.0")
        assert find_toolkit() == (nvcc, "13.0", str(home / "include"), str(home / "lib64"), archs)

    def test_a_script_on_the_path_leads_to_the_toolkit(self, home, tmp_path, monkeypatch):
        expected = find_toolkit()
        monkeypatch.delenv("CUDA_HOME")
        monkeypatch.delenv("CUDA_PATH", raising=False)
        program(tmp_path / "nvcc", f'#!/bin/sh\nexec "{expected.nvcc}" "$@"\n')
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert find_toolkit() == expected

    def test_the_real_one(self):
        try:
            toolkit = find_toolkit()
        except ToolkitError as error:
            pytest.skip(str(error))
        assert Path(toolkit.include, "cuda_runtime.h").is_file()
        assert {"8.0", "9.0"} <= set(toolkit.archs)
        assert choose_archs(toolkit, None)[:2] == ("8.0", "9.0")
        assert choose_archs(toolkit, None)[-1].endswith("+PTX")

    def test_says_what_is_missing(self, home, monkeypatch):
        (home / "lib64" / "libcudart_static.a").unlink()
        with pytest.raises(ToolkitError, match=r"has no libcudart_static\.a; looked in .*/lib64"):
            find_toolkit()
        program(home / "bin" / "nvcc", NVCC.format(home=home, version="11.8"))
        with pytest.raises(ToolkitError, match=r"needs CUDA 12 or newer, .* found 11\.8"):
            find_toolkit()
        program(home / "bin" / "nvcc", "#!/bin/sh\necho broken >&2\nexit 3\n")
        with pytest.raises(ToolkitError, match=r"nvcc' --version fails \(broken\)"):
            find_toolkit()
        (home / "bin" / "nvcc").unlink()
        with pytest.raises(ToolkitError, match=r"CUDA_HOME is .* where there is no bin/nvcc"):
            find_toolkit()
        monkeypatch.delenv("CUDA_HOME")
        monkeypatch.setattr(_cuda_toolkit.shutil, "which", lambda name, path=None: None)
        with pytest.raises(
            ToolkitError, match=r"there is no nvcc; install the CUDA toolkit and set CUDA_HOME"
        ):
            find_toolkit()


class TestArchs:
    @pytest.mark.parametrize(
        ("asked", "chosen"),
        [
            (None, "8.0 9.0 10.0 12.0+PTX"),
            ("", "8.0 9.0 10.0 12.0+PTX"),
            ("8.0;9.0+PTX", "8.0 9.0+PTX"),
            ("9.0+PTX 8.6", "8.6 9.0+PTX"),
            ("9.0;9.0+PTX;9.0", "9.0+PTX"),
            ("9.0a;10.0a", "9.0a 10.0a"),
            ("Ampere", "8.0 8.6+PTX"),
            ("Hopper;Blackwell", "9.0+PTX 10.0 10.3 12.0 12.1+PTX"),
        ],
    )
    def test_syntax_of_pytorch(self, asked, chosen):
        assert choose_archs(TOOLKIT, asked) == tuple(chosen.split())

    @pytest.mark.parametrize(
        ("asked", "problem"),
        [
            ("sm_90", r"TORCH_CUDA_ARCH_LIST: expected compute capabilities .* got 'sm_90'"),
            ("Fermi", r"names out of .*Hopper.* got 'Fermi'"),
            ("7.5", r"are for 8\.0, .*, got 7\.5"),
            ("9.0;13.0+PTX", r"nvcc 13\.0 and these kernels are for .*, got 13\.0"),
        ],
    )
    def test_what_it_does_not_compile_for(self, asked, problem):
        with pytest.raises(ToolkitError, match=problem):
            choose_archs(TOOLKIT, asked)

    def test_an_older_toolkit(self):
        assert choose_archs(TOOLKIT._replace(archs=("8.0", "8.6", "9.0")), None) == ("8.0", "9.0+PTX")
        with pytest.raises(ToolkitError, match=r"compiles for none of 8\.0"):
            choose_archs(TOOLKIT._replace(archs=("13.0",)), None)

    def test_native_asks_for_the_gpus_here(self, tmp_path, monkeypatch):
        program(tmp_path / "nvidia-smi", "#!/bin/sh\nprintf '9.0\\n8.6\\n9.0\\n'\n")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert choose_archs(TOOLKIT, "native") == ("8.6", "9.0+PTX")
        program(tmp_path / "nvidia-smi", "#!/bin/sh\necho No devices were found\n")
        with pytest.raises(ToolkitError, match='"native" needs a GPU'):
            choose_archs(TOOLKIT, "native")

    def test_flags(self):
        assert arch_flags(("8.0", "9.0a", "12.0+PTX")) == [
            "-gencode=arch=compute_80,code=sm_80",
            "-gencode=arch=compute_90a,code=sm_90a",
            "-gencode=arch=compute_120,code=sm_120",
            "-gencode=arch=compute_120,code=compute_120",
        ]

    @pytest.mark.parametrize(
        ("archs", "runs", "does_not"),
        [
            (["8.0"], [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
            (["8.6", "9.0"], [(8, 6), (8, 9), (9, 0)], [(8, 0), (10, 0)]),
            (["9.0+PTX"], [(9, 0), (10, 0), (12, 1), (13, 0)], [(8, 9)]),
            (["9.0a"], [(9, 0)], [(10, 0), (8, 0)]),
            (["10.0f"], [(10, 0), (10, 3)], [(12, 0)]),
            (["9.0a+PTX"], [(9, 0)], [(10, 0)]),
            ([], [], [(9, 0)]),
        ],
    )
    def test_which_gpus_run_it(self, archs, runs, does_not):
        assert [runs_on(archs, capability) for capability in runs] == [True] * len(runs)
        assert [runs_on(archs, capability) for capability in does_not] == [False] * len(does_not)
