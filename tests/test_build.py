"""What the build makes, and how it fails."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from curvkern import _runtime

ROOT = Path(__file__).parent.parent


def compiled_modules() -> list[str]:
    cuda_built = _runtime.build_info()["cuda"].startswith("built")
    return ["_cpu", *(["_cuda"] if cuda_built else [])]


@pytest.mark.parametrize("name", ["_cpu", "_cuda"])
def test_stub_tells_what_the_module_has(name: str) -> None:
    if name not in compiled_modules():
        pytest.skip(f"{name} is {_runtime.build_info()['cuda']}")
    module = importlib.import_module(f"curvkern.{name}")
    assert module.__file__ is not None
    stub = ast.parse(Path(module.__file__).with_name(f"{name}.pyi").read_text())
    promised = {
        node.name: [argument.arg for argument in node.args.args]
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    # The first line of a pybind11 docstring: name(v: object, x: object) -> None
    offered = {
        function: re.findall(r"[(,] ?(\w+): ", member.__doc__.splitlines()[0])
        for function, member in inspect.getmembers(module, inspect.isroutine)
        if not function.startswith("_")
    }
    assert promised == offered


def test_native_modules_link_no_framework() -> None:
    """One wheel serves every torch, and CUDA's runtime is inside."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    for name in compiled_modules():
        module = importlib.import_module(f"curvkern.{name}")
        dynamic = subprocess.check_output([readelf, "-d", module.__file__], text=True)
        needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
        assert needed
        assert not [
            library for library in needed if re.match("lib(torch|c10|cuda|g?omp)", library)
        ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("ON", "CURVKERN_CUDA=ON, but no working CUDA compiler was found"),
        ("on", "CURVKERN_CUDA: expected AUTO, ON or OFF, got on"),
        ("OFF", "curvkern: CUDA module not built: CURVKERN_CUDA=OFF"),
        ("AUTO", "curvkern: CUDA module not built: no CUDA compiler on PATH or in CUDACXX"),
    ],
)
def test_cuda_option(option: str, message: str, tmp_path: Path) -> None:
    """Without nvcc, AUTO says that it goes without and ON fails."""
    cmake, compiler = shutil.which("cmake"), shutil.which("c++") or shutil.which("g++")
    if cmake is None or compiler is None or not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("needs cmake, a C++ compiler and the source tree")
    project = tmp_path / "CMakeLists.txt"
    project.write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(option LANGUAGES CXX)\n"
        f"include({ROOT / 'csrc/cmake/cuda.cmake'})\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "CUDACXX"}
    directories = environment["PATH"].split(os.pathsep)
    environment["PATH"] = os.pathsep.join(
        directory for directory in directories if not Path(directory, "nvcc").exists()
    )
    configured = subprocess.run(
        [cmake, "-S", str(tmp_path), "-B", str(tmp_path / "build"),
         f"-DCURVKERN_CUDA={option}", f"-DCMAKE_CXX_COMPILER={compiler}"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    said = " ".join((configured.stdout + configured.stderr).split())
    assert message in said
    assert (configured.returncode == 0) == (option in ("OFF", "AUTO"))
