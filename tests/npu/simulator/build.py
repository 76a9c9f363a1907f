"""Compile the simulator: a stub of CANN's libraries, and the host's arithmetic as torch kernels.

Run with the Python of the npu environment. The result is kept in a folder named after everything it
depends on, so a second run finds it and does nothing. Prints that folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
OUTPUT = REPOSITORY / "build" / "npu-simulator"
# libtorch_npu.so asks for these names; every function lies in the first.
MAIN_LIBRARY = "ascendcl"
OTHER_LIBRARIES = ("hccl", "acl_op_compiler", "ge_runner", "graph", "runtime", "acl_tdt_channel")
COMMON_FLAGS = ("-O1", "-fPIC", "-Wall")
# torch_npu refuses to be imported when ASCEND_HOME_PATH names a folder without these.
TOOLKIT_FOLDERS = ("runtime", "compiler", "opp")


class BuildError(Exception):
    """The simulator cannot be built here; the message is one line for the user."""


def build() -> Path:
    """Return the folder that holds the compiled simulator, compiling it if it is not there."""
    target = OUTPUT / _fingerprint()
    if target.is_dir():
        return target
    compiler = _compiler()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    # Built aside and renamed, so that an interrupted or a second, simultaneous build leaves nothing half-made.
    with tempfile.TemporaryDirectory(dir=OUTPUT) as scratch:
        aside = Path(scratch) / "result"
        for name in ("lib", *TOOLKIT_FOLDERS):
            (aside / name).mkdir(parents=True)
        _build_stub(compiler, aside / "lib")
        _build_kernels(compiler, Path(scratch), aside / "libnpu_sim.so")
        try:
            aside.rename(target)
        except OSError:  # another build was faster
            if not target.is_dir():
                raise
    return target


def _compiler() -> str:
    asked = os.environ.get("CXX", "c++")
    for name in (asked, "g++", "clang++"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise BuildError(f"no C++ compiler found ({asked}, g++, clang++): install g++ or set CXX to the path of one")


def _package(name: str) -> Path:
    # Not imported: importing torch takes seconds, and torch_npu needs what is built here.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise BuildError(f"{name} is not installed in {sys.prefix}: run tests/npu/environment.py setup")
    return Path(spec.origin).parent


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for path in sorted([*HERE.rglob("*.cpp"), *HERE.rglob("*.hpp"), Path(__file__)]):
        digest.update(path.relative_to(HERE).as_posix().encode() + path.read_bytes())
    versions = [importlib.metadata.version(name) for name in ("torch", "torch_npu")]
    for fact in (*versions, str(_package("torch")), platform.machine()):
        digest.update(fact.encode())
    return digest.hexdigest()[:16]


def _build_stub(compiler: str, folder: Path) -> None:
    headers = _package("torch_npu") / "include" / "third_party" / "acl" / "inc"
    sources = sorted(str(path) for path in (HERE / "cann").glob("*.cpp"))
    main = folder / f"lib{MAIN_LIBRARY}.so"
    shared = (compiler, *COMMON_FLAGS, "-std=c++17", "-shared")
    _run(*shared, "-isystem", str(headers), "-o", str(main), *sources)
    for name in OTHER_LIBRARIES:
        link = (f"-L{folder}", "-Wl,--no-as-needed", f"-l{MAIN_LIBRARY}", "-Wl,-rpath,$ORIGIN")
        _run(*shared, "-o", str(folder / f"lib{name}.so"), "-x", "c++", os.devnull, *link)


def _build_kernels(compiler: str, scratch: Path, library: Path) -> None:
    torch = _package("torch")
    folders = (torch / "include", torch / "include" / "torch" / "csrc" / "api" / "include")
    include = [flag for folder in folders for flag in ("-isystem", str(folder))]
    sources = sorted((HERE / "kernels").glob("*.cpp"))
    objects = [scratch / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, target: Path) -> None:
        _run(compiler, *COMMON_FLAGS, "-std=c++20", *include, "-c", "-o", str(target), str(source))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    libraries = (f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}")
    _run(compiler, "-shared", "-o", str(library), *map(str, objects), *libraries)


def _run(*command: str) -> None:
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        sys.stderr.write(outcome.stderr)
        raise BuildError(f"{command[0]} failed on {command[-1]} (exit status {outcome.returncode}), see above")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except BuildError as error:
        sys.exit(f"npu simulator: {error}")
