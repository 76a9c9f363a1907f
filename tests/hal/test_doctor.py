"""The doctor shows every backend, why it cannot run or what it offers, and survives backends that misbehave."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint, entry_points
from io import StringIO
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from rich.console import Console

import hal
from hal.__main__ import main
from hal.doctor import SCHEMA, Facts, examine
from hal.doctor_text import PIPE_WIDTH, make_console, print_facts
from hal.ops import CATALOGUE
from hal.registry import Registry

LONG_REASON = (
    "the driver 24.1 found in /opt/vendor/driver/lib64 is older than 25.0, which the runtime needs: install "
    "release 25.0 or later, or pip install 'vendor-runtime[legacy]' and start again with VENDOR_LEGACY=1 in the shell"
)


class Toy(hal.HostBackend):
    """Says something under every heading."""

    name = "toy"
    dtypes = (torch.float32, torch.bfloat16)
    unsupported_ops: ClassVar = {"bmm": "no batched product"}
    known_failures: ClassVar = {"softmax-float16-large": "flushes subnormals"}

    @classmethod
    def probe(cls) -> hal.Probe:
        return hal.Probe(True, "found", 2)

    def device_name(self) -> str:
        return f"Toy {self.index}"

    def op_overrides(self):
        return {"rms_norm": torch.rms_norm, "matmul": torch.matmul}

    def numeric_switches(self) -> dict[str, str]:
        return {"toy_precision": "high"}


class Absent(Toy):
    name = "absent"

    @classmethod
    def probe(cls) -> hal.Probe:
        return hal.Probe(False, LONG_REASON)


class Mute(Toy):
    """Available, and raises at every question."""

    name = "mute"

    def device_name(self) -> str:
        raise OSError("no device file")

    def versions(self) -> dict[str, str]:
        raise RuntimeError("no version")

    def numeric_switches(self) -> dict[str, str]:
        raise KeyError("switch")

    def op_overrides(self):
        return {"matmull": torch.matmul}


class Stuck(Toy):
    name = "stuck"

    @classmethod
    def load(cls) -> None:
        raise ImportError("libstuck.so: undefined symbol")


@pytest.fixture
def facts(monkeypatch) -> Facts:
    module = ModuleType("plugin_of_doctor_test")

    @hal.hookimpl
    def hal_register_backends(register):
        for backend in (Toy, Absent, Mute, Stuck):
            register(backend)

    module.hal_register_backends = hal_register_backends
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (host,) = entry_points(group="hal", name="cpu-reference")
    own = EntryPoint("vendor", module.__name__, "hal")
    gone = EntryPoint("gone", "module_that_was_uninstalled", "hal")
    return examine(Registry([host, own, gone]))


@pytest.fixture
def entries(facts):
    return {entry.info.name: entry for entry in facts.backends}


def rendered(facts: Facts, width: int) -> str:
    stream = StringIO()
    print_facts(facts, Console(file=stream, width=width))
    return stream.getvalue()


def words(text: str) -> str:
    """The text without the frame, line breaks and spaces: what is left must hold every reason whole."""
    return "".join(character for character in text if character.isascii() and not character.isspace())


def test_every_backend_and_broken_plugin_is_listed(entries):
    assert set(entries) == {"cpu-reference", "toy", "absent", "mute", "stuck", "gone"}
    assert entries["gone"].info.status == "broken"
    assert "module_that_was_uninstalled" in entries["gone"].info.reason
    assert entries["absent"].details is None
    assert entries["absent"].info.reason == LONG_REASON


def test_available_backend_tells_all_about_itself(entries):
    details = entries["toy"].details
    assert details.device_names == ("Toy 0", "Toy 1")
    assert details.versions == {"torch": torch.__version__}
    assert details.dtypes == ("float32", "bfloat16")
    assert details.collective == "gloo"
    assert details.native_operators == ("matmul", "rms_norm")
    assert details.unsupported_operators == {"bmm": "no batched product"}
    assert details.operators == len(CATALOGUE) - 1
    assert details.known_failures == {"softmax-float16-large": "flushes subnormals"}
    assert details.numeric_switches == {"toy_precision": "high"}
    assert entries["toy"].problems == ()


def test_host_offers_the_whole_catalogue_by_default_implementations(entries):
    details = entries["cpu-reference"].details
    assert details.operators == len(CATALOGUE) > 20
    assert details.native_operators == ()
    assert details.numeric_switches["float32_matmul_precision"] == "highest"


def test_questions_that_fail_are_problems_of_that_backend_alone(entries):
    assert entries["mute"].problems == (
        "name of device 0: OSError: no device file",
        "name of device 1: OSError: no device file",
        "versions: RuntimeError: no version",
        "operators: UsageError: backend 'mute' names operators that are not in the catalogue: matmull",
        "numeric switches: KeyError: 'switch'",
    )
    assert entries["mute"].details.device_names == ("unknown", "unknown")
    assert entries["mute"].details.dtypes == ("float32", "bfloat16")


def test_backend_that_does_not_load_is_a_problem(entries):
    assert entries["stuck"].details is None
    assert len(entries["stuck"].problems) == 2
    assert "device 0: BackendUnavailableError: " in entries["stuck"].problems[0]
    assert "libstuck.so: undefined symbol" in entries["stuck"].problems[0]


def test_json_holds_everything_and_is_plain_data(facts):
    data = json.loads(json.dumps(facts.as_json()))
    assert data["schema"] == SCHEMA
    assert data["torch"] == torch.__version__
    toy = next(entry for entry in data["backends"] if entry["name"] == "toy")
    assert toy["available"] is True
    assert toy["plugin"] == "plugin_of_doctor_test"
    assert toy["details"]["unsupported_operators"] == {"bmm": "no batched product"}
    absent = next(entry for entry in data["backends"] if entry["name"] == "absent")
    assert absent["details"] is None
    assert absent["reason"] == LONG_REASON
    mute = next(entry for entry in data["backends"] if entry["name"] == "mute")
    assert len(mute["problems"]) == 5


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_reason_is_cut_off_and_no_line_is_too_long(facts, width):
    text = rendered(facts, width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 110:  # below, the reasons stand apart from the table
        text = column(text, 5) + text.partition("└")[2]
    for entry in facts.backends:
        assert words(entry.info.reason) in words(text)
        for problem in entry.problems:
            assert words(problem) in words(text)


def column(text: str, index: int) -> str:
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    return "".join(row[index + 1] for row in rows)


def test_text_shows_what_the_facts_hold(facts):
    text = rendered(facts, 200)
    assert "0: Toy 0, 1: Toy 1" in text
    assert f"{len(CATALOGUE) - 1} of the catalogue; its own: matmul, rms_norm" in text
    assert "bmm: no batched product" in text
    assert "softmax-float16-large: flushes subnormals" in text
    assert "toy_precision=high" in text
    assert "│ gone " in text


def test_console_has_a_sensible_width_in_a_pipe_and_follows_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", StringIO())
    assert make_console().width == PIPE_WIDTH
    monkeypatch.setenv("COLUMNS", "70")
    assert make_console().width == 70


def test_command_prints_the_table_and_ends_with_zero(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # what runs the tests may have set a narrower one
    assert main([]) == 0
    out = capsys.readouterr().out
    for info in hal.list_backends():
        assert info.name in out
        assert words(info.reason) in words(column(out, 5))


def test_command_prints_json(capsys):
    assert main(["--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in data["backends"]] == [info.name for info in hal.list_backends()]


def test_wrong_usage_ends_with_two(capsys):
    assert main(["--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err
