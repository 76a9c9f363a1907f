"""An accelerator added by an installed plug-in works like a built-in one, and a broken plug-in harms nothing.

The example is installed by pip into a folder of its own, and everything runs in child processes that have
that folder on their search path, as a user's would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import hal
from tests.conftest import random_model

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "third_party_backend"

# Runs one `python -m` command after another in one process: importing torch takes longer than most of them.
DRIVER = """
import contextlib, io, json, runpy, sys, traceback

def run(module, *arguments):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [module, *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as exit:
            code = exit.code
        except Exception:
            code = "traceback"
            traceback.print_exc()
    return [code, out.getvalue(), err.getvalue()]

print(json.dumps([run(*command) for command in json.loads(sys.argv[1])]))
"""

# Largest error of each operator as a share of what rounding explains, by dtype and operator.
OPERATORS = """
import json
import hal
from hal.ops import CATALOGUE, SampleSpec, as_tensors, error_bound

backend = hal.get_backend("toy", "toy:1")
excess = {}
for dtype in backend.dtypes:
    for name in ("rms_norm", "matmul", "linear", "softmax", "silu"):
        op = CATALOGUE[name]
        arguments = op.sample(SampleSpec(dtype=dtype, size="odd", seed=3))
        moved = [value.to(backend.device) if hasattr(value, "to") else value for value in arguments]
        results, references = as_tensors(backend.ops.get(name)(*moved)), as_tensors(op.reference(*arguments))
        bounds = error_bound(op, arguments, dtype)
        excess[f"{name} {dtype}"] = max(
            float(((result.double() - reference).abs() / bound).max())
            for result, reference, bound in zip(results, references, bounds, strict=True)
        )
try:
    backend.ops.bmm
except hal.UnsupportedError as error:
    refusal = str(error)
native = [name for name in CATALOGUE if backend.ops.is_native(name)]
own = backend.ops.rms_norm.__module__
print(json.dumps({"excess": excess, "refusal": refusal, "native": native, "own": own, "device": str(backend.device)}))
"""


class Result(NamedTuple):
    code: int | str
    out: str
    err: str


def python(*arguments: str, path: list[Path]) -> str:
    """Standard output of a child process with `path` in front of its search path."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    child = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout


def run_commands(commands: list[list[str]], path: list[Path]) -> list[Result]:
    return [Result(*result) for result in json.loads(python("-c", DRIVER, json.dumps(commands), path=path))]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """Where pip installed the example, from a copy: a build leaves files in its source folder."""
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "toy")
    target = tmp_path_factory.mktemp("installed")
    pip = ["-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    python(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target), str(source), path=[])
    return target


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """An installed plug-in whose module raises, as one built for another release of its runtime does."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "acme_backend.py").write_text("raise ImportError('libacme.so.3: cannot open shared object file')\n")
    info = folder / "acme_backend-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-backend\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text("[hal]\nacme = acme_backend\n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    random_model("qwen2", layers=3).save_pretrained(directory)
    return directory


INJECTIONS = {
    "healthy": [],
    "dead_zone": ["--inject", "dead_zone@1:magnitude=0.3"],
    "bias_in_a_tenth": ["--inject", "bias@2:magnitude=0.5,sparsity=0.1"],
}


REFUSED = {
    "dtype": ["--dtype", "float16"],
    "device": ["--device", "2"],
    "stranger": ["--device", "npu:0"],
}
BACKENDS = ("toy", "cpu-reference")


class Session(NamedTuple):
    """What every command printed, by its name, and what every scan wrote, by backend and injection."""

    results: dict[str, Result]
    reports: dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def session(toy, model, tmp_path_factory) -> Session:
    """All commands on the toy, in one child process."""
    folder = tmp_path_factory.mktemp("reports")
    scan = ["srdd", "--level", "quick", "--quiet", "--model", str(model), "--backend"]
    commands = {"doctor": ["hal"], "doctor json": ["hal", "--json"]}
    commands |= {name: [*scan, "toy", *options] for name, options in REFUSED.items()}
    files = {(backend, case): folder / f"{backend}-{case}.json" for backend in BACKENDS for case in INJECTIONS}
    for (backend, case), file in files.items():
        commands[f"{backend} {case}"] = [*scan, backend, *INJECTIONS[case], "--json", str(file)]
    results = dict(zip(commands, run_commands(list(commands.values()), [toy]), strict=True))
    return Session(results, {case: json.loads(file.read_text()) for case, file in files.items() if file.is_file()})


def test_doctor_shows_the_backend_as_it_describes_itself(session):
    table, plain = session.results["doctor"], session.results["doctor json"]
    assert (table.code, table.err, plain.code) == (0, "", 0)
    assert "toy-backend 1.0.0" in table.out
    assert "0: Toy 0, 1: Toy 1" in table.out
    entry = next(entry for entry in json.loads(plain.out)["backends"] if entry["name"] == "toy")
    assert (entry["status"], entry["available"], entry["devices"]) == ("experimental", True, 2)
    assert entry["reason"] == "toy driver 1.0"
    assert entry["plugin"] == "toy-backend 1.0.0"
    assert entry["details"]["versions"]["toy_driver"] == "1.0"
    assert entry["details"]["native_operators"] == ["rms_norm"]
    assert entry["details"]["unsupported_operators"] == {"bmm": "the toy's compiler has no batched product: use matmul"}
    assert entry["problems"] == []


def test_operators_agree_with_their_float64_references(toy):
    result = json.loads(python("-c", OPERATORS, path=[toy]))
    assert len(result["excess"]) == 10
    assert {name: excess for name, excess in result["excess"].items() if not excess <= 1} == {}
    assert result["native"] == ["rms_norm"]
    assert result["own"] == "toy_backend"
    assert result["refusal"].endswith("'bmm': the toy's compiler has no batched product: use matmul")
    assert result["device"] == "cpu"


@pytest.mark.parametrize("case", INJECTIONS)
def test_scan_gives_the_verdict_of_the_reference(session, case):
    own, host = (session.results[f"{backend} {case}"] for backend in BACKENDS)
    assert own.err == host.err == ""
    assert (own.code, own.out) == (host.code, host.out)
    report, expected = (session.reports[backend, case] for backend in BACKENDS)
    assert (report["backend"], expected["backend"]) == BACKENDS
    assert report["environment"]["device_name"] == "Toy 0"
    assert report["verdict"] == expected["verdict"]
    assert [(f["layer"], f["site"], f["kind"]) for f in report["findings"]] == [
        (f["layer"], f["site"], f["kind"]) for f in expected["findings"]
    ]


def test_scan_finds_the_injected_faults_and_nothing_else(session):
    codes = {case: session.results[f"toy {case}"].code for case in INJECTIONS}
    layers = {case: [found["layer"] for found in session.reports["toy", case]["findings"]] for case in INJECTIONS}
    assert codes == {"healthy": 0, "dead_zone": 1, "bias_in_a_tenth": 1}
    assert layers == {"healthy": [], "dead_zone": [1], "bias_in_a_tenth": [2]}
    assert session.reports["toy", "dead_zone"]["findings"][0]["kind"] == "dead_zone"


def test_refusals_of_the_backend_reach_the_user_in_one_line(session):
    assert session.results["dtype"] == (
        2,
        "",
        "error: backend 'toy' does not support dtype float16; it declares float32, bfloat16\n",
    )
    assert session.results["device"] == (
        3,
        "",
        "error: device 2 of backend 'toy' does not exist: this machine has 2 (indices 0 to 1)\n",
    )
    stranger = session.results["stranger"]
    assert stranger.code == 2
    assert stranger.err.startswith("error: device 'npu:0' does not belong to backend 'toy'")


def test_bundled_model_is_scanned_too(toy, tmp_path):
    file = tmp_path / "report.json"
    common = ["srdd", "--backend", "toy", "--level", "quick", "--quiet", "--json", str(file)]
    clean, faulty = run_commands([common, [*common, "--device", "1", "--inject", "dead_zone@5:magnitude=0.3"]], [toy])
    assert (clean.code, clean.out) == (0, "healthy\n")
    assert faulty.code == 1
    report = json.loads(file.read_text())
    assert report["findings"][0]["layer"] == 5
    assert report["environment"]["device_name"] == "Toy 1"


def test_broken_plugin_is_named_and_harms_nothing(toy, broken, model):
    scan = ["srdd", "--level", "quick", "--quiet", "--model", str(model), "--backend"]
    commands = [["hal"], ["hal", "--json"], [*scan, "toy"], [*scan, "cpu-reference"], [*scan, "acme"]]
    table, plain, toys, host, asked = run_commands(commands, [toy, broken])
    reason = "ImportError: libacme.so.3: cannot open shared object file"
    entries = {entry["name"]: entry for entry in json.loads(plain.out)["backends"]}
    assert entries["acme"] | {"reason": reason, "plugin": "acme-backend 2.1"} == entries["acme"]
    assert (entries["acme"]["status"], entries["acme"]["available"]) == ("broken", False)
    assert {"cpu-reference", "cuda", "npu", "toy"} <= set(entries)
    assert table.code == plain.code == 0
    assert reason in " ".join(table.out.split())
    assert (toys.code, toys.out) == (host.code, host.out) == (0, "healthy\n")
    assert asked.code == 2
    assert "unknown backend 'acme'; known: " in asked.err
    assert f"acme ({reason})" in asked.err


def test_example_stays_small_enough_to_copy():
    lines = (EXAMPLE / "src" / "toy_backend.py").read_text().splitlines()
    assert len(lines) < 50


def test_readme_names_only_what_a_backend_has():
    rows = [
        line.split("|")[1] for line in (EXAMPLE / "README.md").read_text().splitlines() if line.startswith("   | `")
    ]
    named = {word.partition("(")[0] for row in rows for word in row.split("`")[1::2]}
    assert {"probe", "op_overrides", "unsupported_ops", "numeric_mode"} <= named
    assert {name for name in named if not hasattr(hal.TorchBackend, name)} == set()
