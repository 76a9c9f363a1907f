"""An environment for each serving or training engine: a virtual environment with exactly the releases of its
constraints file, and how to run in it.

    python tests/engines/environment.py ENGINE setup          # create or complete it; does nothing when it is ready
    python tests/engines/environment.py ENGINE run COMMAND …  # run a command in it, e.g. python -m srdd
    python tests/engines/environment.py ENGINE test [ARGS]    # pytest, on tests/engines/ENGINE unless ARGS name files

ENGINE is vllm, verl or trl. Each is apart from the main environment, and from the others, because they pin torch,
transformers and numpy differently. Needs nothing but Python. ENGINE_VENVS names another folder than the repository for
.venv-ENGINE.
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
ENGINES = ("vllm", "verl", "trl")
USAGE_ERROR = 2

# What the engines need of their surroundings on a machine without accelerator and without network.
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Two ranks would be bound to the same cores where there are few.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class SetupError(Exception):
    """The environment cannot be made here; the message is one line for the user."""


class Environment:
    """The virtual environment of one engine."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.folder = Path(os.environ.get("ENGINE_VENVS", REPOSITORY)).absolute() / f".venv-{engine}"
        self.constraints = REPOSITORY / f"constraints-{engine}.txt"

    def setup(self) -> None:
        """Make what is missing of it."""
        stamp = self.folder / "complete"
        wanted = self._fingerprint()
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        if not (self.folder / "bin" / "python").exists():
            venv.create(self.folder, with_pip=True)
        # The file names every package, so none is resolved: some of these releases were never declared to go together,
        # and some dependencies (torchvision's builds for other torches, compilers of kernels) only do harm.
        self._pip("-r", str(self.constraints))
        self._pip("-e", str(REPOSITORY))
        stamp.write_text(wanted)

    def variables(self) -> dict[str, str]:
        """The surroundings in which its commands run."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**VARIABLES, **os.environ, "PATH": path, "VIRTUAL_ENV": str(self.folder)}

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(sys.version.encode())
        for path in (self.constraints, REPOSITORY / "pyproject.toml"):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _pip(self, *arguments: str) -> None:
        pip = [str(self.folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        outcome = subprocess.run([*pip, "--no-deps", *arguments], cwd=REPOSITORY, check=False)
        if outcome.returncode != 0:
            raise SetupError(f"pip failed on {' '.join(arguments)} (exit status {outcome.returncode}), see above")


def main(arguments: list[str]) -> int:
    """Run one of the three verbs; returns the exit status."""
    engine, verb, *rest = [*arguments, "", ""][: max(2, len(arguments))]
    if engine not in ENGINES or verb not in ("setup", "run", "test") or (verb == "run" and not rest):
        sys.stderr.write(__doc__ or "")
        return USAGE_ERROR
    environment = Environment(engine)
    environment.setup()
    if verb == "setup":
        return 0
    return _replace_process(rest if verb == "run" else _pytest(engine, rest), environment.variables())


def _pytest(engine: str, arguments: list[str]) -> list[str]:
    named = any(Path(argument.partition("::")[0]).exists() for argument in arguments)
    return ["python", "-m", "pytest", *([] if named else [str(HERE / engine)]), *arguments]


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
        sys.exit(f"{sys.argv[1]} environment: {error}")
