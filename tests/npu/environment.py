"""The npu environment: a virtual environment with torch_npu, the compiled simulator, and how to run in it.

    python tests/npu/environment.py setup          # create or complete it; does nothing when it is ready
    python tests/npu/environment.py run COMMAND …  # run a command in it, e.g. python -m hal
    python tests/npu/environment.py test [ARGS]    # pytest, on tests/npu unless ARGS name files

It is apart from the main environment because torch_npu without CANN breaks `import torch` there.
Needs nothing but Python and a C++ compiler. NPU_VENV names another folder than .venv-npu.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
VENV = Path(os.environ.get("NPU_VENV", REPOSITORY / ".venv-npu")).absolute()
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = HERE / "requirements.txt"
CONSTRAINTS = REPOSITORY / "constraints.txt"
USAGE_ERROR = 2


class SetupError(Exception):
    """The environment cannot be made here; the message is one line for the user."""


def setup() -> Path:
    """Make what is missing of the environment; returns the folder of the compiled simulator."""
    stamp = VENV / "complete"
    wanted = _fingerprint()
    if not stamp.is_file() or stamp.read_text() != wanted:
        if not PYTHON.exists():
            venv.create(VENV, with_pip=True)
        _install()
        stamp.write_text(wanted)
    return _build()


def _fingerprint() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in (REQUIREMENTS, CONSTRAINTS, REPOSITORY / "pyproject.toml"):
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    return digest.hexdigest()


def _install() -> None:
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pins = ["-c", str(CONSTRAINTS)] if CONSTRAINTS.is_file() else []
    outcome = subprocess.run([*pip, *pins, "-r", str(REQUIREMENTS)], cwd=REPOSITORY, check=False)
    if outcome.returncode != 0:
        raise SetupError(f"pip failed on {REQUIREMENTS} (exit status {outcome.returncode}), see above")


def _build() -> Path:
    # Without this, Python would start with the simulator that is about to be built.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(PYTHON), str(HERE / "simulator" / "build.py")]
    outcome = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=clean, check=False)
    if outcome.returncode != 0:
        raise SetupError("the simulator was not built, see above")
    return Path(outcome.stdout.strip())


def environment(build: Path) -> dict[str, str]:
    """The variables under which torch_npu finds the stub instead of CANN, and Python the simulator."""
    variables = dict(os.environ)
    variables.update(
        PATH=f"{VENV / 'bin'}{os.pathsep}{variables.get('PATH', os.defpath)}",
        VIRTUAL_ENV=str(VENV),
        LD_LIBRARY_PATH=str(build / "lib"),
        PYTHONPATH=str(HERE),
        NPU_SIM_LIBRARY=str(build / "libnpu_sim.so"),
        ASCEND_HOME_PATH=str(build),
        ASCEND_OPP_PATH=str(build / "opp"),
        # Kernels run on the calling thread: torch_npu's task queue would hide an error's origin.
        ASCEND_LAUNCH_BLOCKING="1",
        # torch_npu is imported when it is asked for, as on a machine where the project runs beside it.
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    return variables


def main(arguments: list[str]) -> int:
    """Run one of the three verbs; returns the exit status."""
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb not in ("setup", "run", "test") or (verb == "run" and not rest) or (verb == "setup" and rest):
        sys.stderr.write(__doc__ or "")
        return USAGE_ERROR
    variables = environment(setup())
    if verb == "setup":
        return 0
    return _replace_process(rest if verb == "run" else _pytest(rest), variables)


def _pytest(arguments: list[str]) -> list[str]:
    named = any(Path(argument.partition("::")[0]).exists() for argument in arguments)
    return ["python", "-m", "pytest", *([] if named else [str(HERE)]), *arguments]


def _replace_process(command: list[str], variables: dict[str, str]) -> int:
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, variables)  # noqa: S606 -- the user's own command, no shell wanted
    except OSError as error:
        raise SetupError(f"cannot run '{command[0]}' ({error.strerror}): give a command on the PATH") from error


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as error:
        sys.exit(f"npu environment: {error}")
