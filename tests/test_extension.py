"""What an extension says it was built from, which one is refused, and what setup.py builds with."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import setuptools
import torch
from conftest import REPO
from kernel_backends import require, run_python

import oes_fast as oes
from oes_fast import _extension
from oes_fast._extension import CPU

backends = importlib.import_module("oes_fast.backends")  # oes_fast.backends is the function

TORCH = "2.13.0+cpu"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A source folder with a kernel in it."""
    root = tmp_path / "source folder"
    (root / "csrc" / "cpu").mkdir(parents=True)
    (root / "setup.py").touch()
    (root / "csrc" / "cpu" / "kernel.cpp").write_text('#include "kernel.h"\n')
    (root / "csrc" / "cpu" / "kernel.h").write_text("#pragma once\n")
    return root


def build(root: Path, variants: list[str] | None = None, name: str = "_C.so") -> Path:
    """A file as the compiler would make it, with what the extension says of itself somewhere in it."""
    source = CPU.identity(root, variants or [], torch=TORCH)
    (said,) = re.findall(r'R"\((.*)\)"', source)
    path = root / name
    path.write_bytes(b"\x7fELF\0code\0" + said.encode() + b"\0more\0")
    return path


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py."""
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    return runpy.run_path(str(REPO / "setup.py"))


class TestIdentity:
    def test_is_read_out_of_the_file(self, checkout):
        assert _extension.read_identity(build(checkout, ["OES_SANITIZE"])) == {
            "sources": CPU.source_hash(checkout, ["OES_SANITIZE"]),
            "variants": ["OES_SANITIZE"],
            "built_with_torch": TORCH,
            "needs_torch": "2.10",
        }

    def test_of_the_real_one(self):
        require("cpu")
        from oes_fast import _C

        path = CPU.find()
        said = _extension.read_identity(path)
        assert _C.BUILD.endswith(json.dumps(said))
        assert Path(_C.__file__) == path
        if said["variants"] == []:
            assert path.stat().st_size < 8e6  # stripped

    @pytest.mark.parametrize("content", [b"", b"\x7fELF", b"OES_FAST_BUILD{broken\0", b"OES_FAST_BUILD{}\0"])
    def test_that_is_missing_or_damaged_is_none(self, tmp_path, content):
        path = tmp_path / "_C.so"
        path.write_bytes(content)
        assert _extension.read_identity(path) is None
        assert "does not say what it was built from" in CPU.refusal(path, TORCH, tmp_path)


class TestRefusal:
    @pytest.mark.parametrize("variants", [[], ["OES_SANITIZE"], ["OES_EMULATE_AVX512"], [*CPU.variants]])
    def test_of_none_that_was_built_from_the_sources(self, checkout, monkeypatch, variants):
        path = build(checkout, variants)
        monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libasan.so.8")
        assert CPU.refusal(path, TORCH, checkout) == ""
        assert CPU.refusal(path, "2.10.0", checkout) == ""
        assert CPU.refusal(path, "3.0.0a0+git12ab", checkout) == ""

    @pytest.mark.parametrize("change", ["content", "header", "new", "folder", "gone", "renamed", "moved"])
    def test_after_a_change_of_the_sources(self, checkout, change):
        path = build(checkout)
        folder = checkout / "csrc" / "cpu"
        if change == "content":
            (folder / "kernel.cpp").write_text('#include "kernel.H"\n')
        elif change == "header":
            (folder / "kernel.h").write_text("#pragma once\n\n")
        elif change == "new":
            (folder / "other.cpp").touch()
        elif change == "folder":
            (folder.parent / "common").mkdir()
            (folder.parent / "common" / "shared.h").touch()
        elif change == "moved":
            (folder / "kernel.h").rename(folder.parent / "kernel.h")
        elif change == "gone":
            (folder / "kernel.h").unlink()
        else:
            (folder / "kernel.h").rename(folder / "kernels.h")
        assert "stale: csrc or its flags have changed" in CPU.refusal(path, TORCH, checkout)

    def test_touching_changes_nothing(self, checkout):
        path = build(checkout)
        os.utime(checkout / "csrc" / "cpu" / "kernel.cpp")
        assert CPU.refusal(path, TORCH, checkout) == ""

    @pytest.mark.parametrize("flags", ["compile_flags", "link_flags"])
    def test_after_a_change_of_flags(self, checkout, flags):
        path = build(checkout)
        changed = dataclasses.replace(CPU, **{flags: [*getattr(CPU, flags), "-flto"]})
        assert "stale" in changed.refusal(path, TORCH, checkout)

    def test_of_a_variant_that_is_gone(self, checkout):
        path = build(checkout, ["OES_SANITIZE"])
        assert "stale" in dataclasses.replace(CPU, variants={}).refusal(path, TORCH, checkout)

    def test_of_a_sanitized_one_without_the_sanitizer(self, checkout, monkeypatch):
        monkeypatch.delenv("LD_PRELOAD", raising=False)
        path = build(checkout, ["OES_SANITIZE"])
        assert "built for `make sanitize`" in CPU.refusal(path, TORCH, checkout)

    def test_under_an_older_torch(self, checkout):
        said = "built for torch 2.10 or newer, found 2.9.1+cu128"
        assert said in CPU.refusal(build(checkout), "2.9.1+cu128", checkout)

    def test_installed_without_the_sources(self, checkout, tmp_path):
        path = build(checkout)
        assert CPU.refusal(path, TORCH, tmp_path) == ""
        assert "found 2.9.1" in CPU.refusal(path, "2.9.1", tmp_path)


class TestBackend:
    def probe(self, monkeypatch: pytest.MonkeyPatch, path: Path | None, root: Path) -> Any:
        def load(name: str) -> None:
            raise AssertionError(f"{name} was loaded")

        monkeypatch.setattr(_extension.Extension, "find", lambda extension: path)
        refusal = CPU.refusal
        monkeypatch.setattr(
            _extension.Extension, "refusal", lambda extension, path, torch: refusal(path, torch, root)
        )
        monkeypatch.setattr(backends.importlib, "import_module", load)
        status = backends._probe_cpu()
        monkeypatch.undo()
        real = backends._probe
        monkeypatch.setattr(
            backends, "_probe", lambda name, *others: status if name == "cpu" else real(name, *others)
        )
        monkeypatch.setattr(backends, "_warned", threading.Event())
        return status

    def test_stale_is_never_loaded(self, monkeypatch, checkout):
        path = build(checkout)
        (checkout / "csrc" / "cpu" / "kernel.h").write_text("changed")
        status = self.probe(monkeypatch, path, checkout)
        assert not status
        assert status.reason.startswith("the C++ extension is stale: ")
        assert status.reason.endswith(f"run: {CPU.build_command()}")
        with pytest.raises(oes.BackendError, match=r"'cpu' is not available: the C.. extension is stale"):
            backends.resolve("cpu", "cpu", ("cpu", "reference"))
        with pytest.warns(oes.OESWarning, match=r"the C.. extension is stale.* run: "):
            assert backends.resolve("auto", "cpu", ("cpu", "reference")) == "reference"

    def test_auto_warns_once_of_a_missing_one(self, monkeypatch, checkout):
        status = self.probe(monkeypatch, None, checkout)
        assert status.reason.startswith("the C++ extension was not built; with gcc or clang installed, run: ")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backends.resolve("torch", "cpu", ("cpu", "torch", "reference")) == "torch"
            assert backends.resolve("auto", "meta", ("cpu", "reference")) == "reference"
            assert backends.resolve("auto", "cpu", ("triton", "reference")) == "reference"
            with monkeypatch.context() as patch:
                patch.setenv("OES_FAST_DISABLE_BACKENDS", "cpu")
                assert backends.resolve("auto", "cpu", ("cpu", "reference")) == "reference"
        with pytest.warns(
            oes.OESWarning, match=r'"auto" runs on plain PyTorch, .* -m pip install .* run|run: '
        ):
            assert backends.resolve("auto", "cpu", ("cpu", "reference")) == "reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backends.resolve("auto", "cpu", ("cpu", "reference")) == "reference"


class TestCommand:
    def test_of_a_checkout(self, checkout, monkeypatch):
        monkeypatch.setattr(_extension, "_is_here", lambda module: module != "pybind11")
        command = CPU.build_command(checkout)
        assert command.startswith(f"OES_REQUIRE_EXT=1 {sys.executable} -m pip install --no-deps -e ")
        assert command.endswith(f"-e '{checkout}'")
        monkeypatch.setattr(_extension, "_is_here", lambda module: module != "pip")
        command = CPU.build_command(checkout)
        assert command.startswith(f"OES_REQUIRE_EXT=1 uv pip install --python {sys.executable} --no-deps ")
        assert "--no-build-isolation -e" in command

    @pytest.mark.parametrize(
        ("said", "origin"),
        [
            ({"url": "file:///a%20b/oes", "dir_info": {}}, "'/a b/oes'"),
            ({"url": "https://a/oes_fast-1.tar.gz"}, "--no-binary oes_fast https://a/oes_fast-1.tar.gz"),
            (
                {"url": "https://a/oes", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
                "--no-binary oes_fast git+https://a/oes@12ab",
            ),
            (None, "--no-binary oes_fast oes_fast"),
        ],
    )
    def test_of_an_installed_package(self, tmp_path, monkeypatch, said, origin):
        class Installed:
            def read_text(self, name: str) -> str | None:
                return said and json.dumps(said)

        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
        command = CPU.build_command(tmp_path)
        assert "pip install --no-deps" in command
        assert " --force-reinstall " in command
        assert command.endswith(origin)


class TestSetup:
    def test_finds_torch_that_pip_hides(self, setup_py, tmp_path, monkeypatch):
        here = Path(torch.__file__).parent
        found = setup_py["find_torch"]()
        assert found == (torch.__version__, str(here), torch.version.cuda)
        hide = 'import sys\nsys.path[:] = [path for path in sys.path if "site-packages" not in path]\n'
        (tmp_path / "sitecustomize.py").write_text(hide)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("PYTHONNOUSERSITE", "1")
        hidden = run_python("-c", "import importlib.util as i; print(i.find_spec('torch'))")
        assert hidden.stdout.strip() == "None", hidden.stderr
        assert setup_py["find_torch"]() == found

    def test_says_which_torch_it_lacks(self, setup_py, tmp_path, monkeypatch):
        python = tmp_path / "python"
        monkeypatch.setattr(sys, "executable", str(python))
        for said, problem in (
            ("{}", "there is no torch in the environment of "),
            (
                '{"version": "2.9.1", "folder": "/torch", "cuda": null}',
                "needs PyTorch 2.10 or newer, found 2.9.1",
            ),
        ):
            python.write_text(f"#!/bin/sh\necho '{said}'\n")
            python.chmod(0o755)
            with pytest.raises(setup_py["NotHere"], match=problem):
                setup_py["find_torch"]()

    def test_takes_the_callers_environment_in_a_front_ends_own(self, setup_py, tmp_path, monkeypatch):
        environments = setup_py["environments"]
        assert list(environments()) == [sys.executable]
        folder, arguments, variables = setup_py["caller"]()
        assert folder.is_dir()
        assert arguments
        assert "PATH" in variables

        given = {"arguments": [], "variables": {"PATH": ""}}
        called = environments.__globals__
        monkeypatch.setitem(called, "caller", lambda: (tmp_path, given["arguments"], given["variables"]))
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "build-env-x12"))
        given["arguments"] = [".venv/bin/python", "-m", "build"]
        assert list(environments())[:2] == [sys.executable, str(tmp_path / ".venv/bin/python")]
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "builds-v0" / ".tmp1"))
        given["arguments"] = ["/bin/uv", "pip", "install", "--python", "/there/bin/python3", "."]
        assert list(environments())[:2] == [sys.executable, "/there/bin/python3"]
        given["arguments"] = ["/bin/uv", "pip", "install", "."]
        given["variables"] = {"VIRTUAL_ENV": "/active", "PATH": ""}
        assert list(environments())[1] == "/active/bin/python"

    def test_compiles_what_has_changed(self, setup_py, tmp_path):
        compiled, source, header = (tmp_path / name for name in ("a b.o", "a.cpp", "a b.h"))
        outdated = setup_py["outdated"]
        source.touch()
        header.touch()
        assert outdated(str(compiled), str(source))  # there is none
        compiled.touch()
        assert outdated(str(compiled), str(source))  # and nothing says what it was compiled from
        escaped = str(header).replace(" ", "\\ ")
        compiled.with_suffix(".d").write_text(f"a.o: {source} \\\n {escaped}\n")
        os.utime(compiled, (2e9, 2e9))
        assert not outdated(str(compiled), str(source))
        os.utime(header, (2e9 + 1, 2e9 + 1))
        assert outdated(str(compiled), str(source))
        header.unlink()
        assert outdated(str(compiled), str(source))

    def test_builds_with_a_torch_that_ships_a_pybind11_of_its_own(self, tmp_path):
        if (
            shutil.which(shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0])
            is None
        ):
            pytest.skip("no C++ compiler")
        torch_folder = tmp_path / "torch"
        guarded = torch_folder / "include" / "pybind11" / "detail" / "common.h"
        guarded.parent.mkdir(parents=True)
        guarded.write_text('#ifdef TORCH_TARGET_VERSION\n#error "not with TORCH_TARGET_VERSION"\n#endif\n')
        (torch_folder / "lib").symlink_to(Path(torch.__file__).parent / "lib")
        source = tmp_path / "probe.cpp"
        source.write_text("#include <pybind11/detail/common.h>\nstatic_assert(PYBIND11_VERSION_MAJOR > 1);\n")
        # In a process of its own: another test may have loaded the distutils that setuptools replaces.
        program = tmp_path / "build.py"
        program.write_text(
            "import runpy, setuptools\n"
            "setuptools.setup = lambda **arguments: None\n"
            f"setup = runpy.run_path({str(REPO / 'setup.py')!r})\n"
            f"found = setup['Torch']({torch.__version__!r}, {str(torch_folder)!r}, None)\n"
            "setup['Build'].build_for.__globals__.update(find_torch=lambda: found)\n"
            "extension = setuptools.Extension('oes_fast._C', ['probe.cpp'], language='c++')\n"
            "command = setup['Build'](setuptools.Distribution({'ext_modules': [extension]}))\n"
            "command.build_lib = 'lib'\n"
            "command.ensure_finalized()\n"
            "command.run()\n"
        )
        done = subprocess.run(
            [sys.executable, "build.py"],
            cwd=tmp_path,
            env=os.environ | {"OES_REQUIRE_EXT": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / "lib" / "oes_fast").glob("_C*"))

    def test_modules_of_an_earlier_build_are_not_packed(self, tmp_path):
        stale = tmp_path / "oes_fast" / "zz_stale.py"
        stale.parent.mkdir()
        stale.touch()
        command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not stale.exists()
        assert (tmp_path / "oes_fast" / "kernels" / "philox.py").is_file()

    def test_without_a_compiler_the_package_installs(self, tmp_path):
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        leftover = tmp_path / "oes_fast" / f"_C{suffix}"  # of an earlier build; it would be packed
        leftover.parent.mkdir()
        leftover.touch()
        done = self.build(tmp_path)
        assert done.returncode == 0, done.stderr
        assert not leftover.exists()
        assert "INSTALLING WITHOUT THE C++ EXTENSION: the C++ compiler does not run" in done.stderr
        done = self.build(tmp_path, OES_REQUIRE_EXT="1")
        assert done.returncode == 1
        assert re.search("OES_REQUIRE_EXT=1, but .* install gcc or clang", done.stderr)

    def build(self, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)],
            cwd=REPO,
            env=os.environ | {"CC": "/no/compiler", "CXX": "/no/compiler"} | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_every_flag_is_part_of_the_hash(self, checkout):
        hashes = {
            CPU.source_hash(checkout, variants)
            for variants in ([], ["OES_SANITIZE"], ["OES_EMULATE_AVX512"], [*CPU.variants])
        }
        assert len(hashes) == 4
