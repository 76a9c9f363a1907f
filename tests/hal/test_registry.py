"""Plug-ins are found, checked, and reported by name when they are broken; a backend is never chosen in silence."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import pytest

import hal
from hal.registry import Registry, installed_plugins

HEADER = """
    import hal

    def backend(label, available=True, devices=1, reason="found"):
        class Toy(hal.HostBackend):
            name = label
            @classmethod
            def probe(cls):
                return hal.Probe(available, reason, devices if available else 0)
        return Toy
"""
GOOD = """
    @hal.hookimpl
    def hal_register_backends(register):
        register(backend({name!r}))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Iterator:
    """Write a plug-in module and return its entry point; the module is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def write(name: str, body: str) -> EntryPoint:
        module = f"plugin_of_registry_test_{len(written)}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(HEADER) + textwrap.dedent(body))
        written.append(module)
        return EntryPoint(name, module, "hal")

    yield write
    for module in written:
        sys.modules.pop(module, None)


@pytest.fixture
def good(plugin):
    return lambda name: plugin(name, GOOD.format(name=name))


@pytest.fixture
def host() -> EntryPoint:
    (found,) = entry_points(group="hal", name="cpu-reference")
    return found


def states(registry: Registry) -> dict[str, str]:
    return {info.name: "available" if info.available else info.status for info in registry.describe()}


def test_built_in_backends_are_found_by_entry_point():
    infos = {info.name: info for info in hal.list_backends()}
    assert {"cpu-reference", "cuda", "npu"} <= set(infos)
    assert infos["cpu-reference"].plugin.startswith("srdd-hal ")
    assert infos["cpu-reference"].available
    assert all(info.reason for info in infos.values())


def test_name_of_a_built_in_backend_cannot_be_taken_by_whoever_comes_first(plugin, tmp_path):
    thief = plugin("aaa", GOOD.format(name="cpu-reference"))
    info = tmp_path / "aaa-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hal]\naaa = {thief.value}\n")
    infos = {info.name: info for info in Registry(installed_plugins()).describe()}
    assert infos["cpu-reference"].plugin.startswith("srdd-hal ")
    assert (infos["aaa"].status, infos["aaa"].plugin) == ("broken", "aaa 1.0")
    assert "'cpu-reference' is already taken by srdd-hal" in infos["aaa"].reason


def test_registered_backend_is_returned_on_its_device(good):
    backend = Registry([good("toy")]).get("toy", "0")
    assert (backend.name, backend.index) == ("toy", 0)


def test_unknown_backend_lists_the_known_ones_with_their_reasons(good, plugin):
    absent = plugin(
        "absent",
        """
        @hal.hookimpl
        def hal_register_backends(register):
            register(backend("absent", available=False, reason="no driver: install one"))
        """,
    )
    with pytest.raises(hal.UnknownBackendError) as caught:
        Registry([good("toy"), absent]).get("tpy")
    assert str(caught.value) == "unknown backend 'tpy'; known: toy (available); absent (no driver: install one)"
    assert caught.value.exit_code == 2


def test_unknown_backend_in_an_empty_registry_says_none():
    with pytest.raises(hal.UnknownBackendError, match="known: none"):
        Registry([]).get("toy")


def test_name_of_a_broken_plugin_answers_with_its_error(plugin):
    with pytest.raises(hal.UnknownBackendError, match=r"'bad'; known: bad \(ZeroDivisionError"):
        Registry([plugin("bad", "1 / 0")]).get("bad")


BROKEN = {
    "raises_on_import": ("raise RuntimeError('no\\n  driver')", "RuntimeError: no driver"),
    "exits_on_import": ("raise SystemExit('bye')", "SystemExit: bye"),
    "imports_what_is_missing": ("import a_vendor_runtime_that_is_missing", "a_vendor_runtime_that_is_missing"),
    "does_not_parse": ("def broken(:", "SyntaxError"),
    "raises_in_the_hook": (
        """
        @hal.hookimpl
        def hal_register_backends(register):
            register(backend("half_done"))
            raise OSError("cannot read the device file")
        """,
        "OSError: cannot read the device file",
    ),
    "hook_with_wrong_arguments": (
        """
        @hal.hookimpl
        def hal_register_backends(registry):
            registry(backend("wrong"))
        """,
        "registry",
    ),
    "misspelt_hook": (
        """
        @hal.hookimpl
        def hal_register_backend(register):
            register(backend("wrong"))
        """,
        "unknown hook 'hal_register_backend'",
    ),
    "hook_without_marker": (
        """
        def hal_register_backends(register):
            register(backend("wrong"))
        """,
        "marked with hal.hookimpl",
    ),
    "not_a_class": (
        """
        @hal.hookimpl
        def hal_register_backends(register):
            register(backend("wrong")())
        """,
        "takes a subclass of hal.TorchBackend, got <",
    ),
    "not_a_subclass": (
        """
        @hal.hookimpl
        def hal_register_backends(register):
            register(dict)
        """,
        "takes a subclass of hal.TorchBackend, got <class 'dict'>",
    ),
    "nameless": (
        """
        @hal.hookimpl
        def hal_register_backends(register):
            register(backend(""))
        """,
        "Toy must set the string attribute 'name'",
    ),
    "takes_auto": (
        """
        @hal.hookimpl
        def hal_register_backends(register):
            register(backend("auto"))
        """,
        "'auto' is already taken by hal",
    ),
    "twice_the_same": (
        """
        @hal.hookimpl
        def hal_register_backends(register):
            register(backend("wrong"))
            register(backend("wrong"))
        """,
        "'wrong' is already taken by this plug-in",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugin_is_named_with_its_error_and_harms_no_other(case, plugin, good):
    body, expected = BROKEN[case]
    registry = Registry([good("before"), plugin(case, body), good("after")])
    assert states(registry) == {"before": "available", "after": "available", case: "broken"}
    (info,) = [info for info in registry.describe() if info.status == "broken"]
    assert expected in info.reason
    assert "\n" not in info.reason
    assert info.plugin.startswith("plugin_of_registry_test_")
    assert registry.get("after").name == "after"


def test_missing_module_of_an_entry_point_is_a_broken_plugin(good):
    registry = Registry([EntryPoint("gone", "module_that_was_uninstalled", "hal"), good("toy")])
    assert states(registry) == {"toy": "available", "gone": "broken"}


def test_a_taken_name_stays_with_its_first_owner(good):
    registry = Registry([good("toy"), good("toy")])
    assert registry.get("toy").name == "toy"
    (info,) = [info for info in registry.describe() if info.status == "broken"]
    assert "'toy' is already taken by plugin_of_registry_test_0" in info.reason


def test_entry_points_of_one_name_may_offer_different_backends(plugin):
    registry = Registry([plugin("vendor", GOOD.format(name="a")), plugin("vendor", GOOD.format(name="b"))])
    assert states(registry) == {"a": "available", "b": "available"}


PROBES = {
    "raises": ("raise OSError('device\\n file')", "its probe failed: OSError: device file"),
    "answers_nothing": ("return None", "its probe returned NoneType, not hal.Probe"),
    "has_no_devices": ("return hal.Probe(True, 'driver 1.2')", "available with 0 devices (driver 1.2)"),
}


@pytest.mark.parametrize("case", PROBES)
def test_wrong_probe_makes_its_own_backend_unavailable_only(case, plugin, good):
    body, reason = PROBES[case]
    odd = plugin(
        "odd",
        f"""
        class Odd(hal.HostBackend):
            name = "odd"
            @classmethod
            def probe(cls):
                {body}

        @hal.hookimpl
        def hal_register_backends(register):
            register(Odd)
        """,
    )
    registry = Registry([odd, good("toy")])
    odd_info, toy_info = registry.describe()
    assert not odd_info.available
    assert reason in odd_info.reason
    assert toy_info.available
    with pytest.raises(hal.BackendUnavailableError, match="'odd' is unavailable"):
        registry.get("odd")


def test_backend_without_a_probe_says_so(plugin):
    lazy = plugin(
        "lazy",
        """
        class Lazy(hal.TorchBackend):
            name = device_type = "lazy"

        @hal.hookimpl
        def hal_register_backends(register):
            register(Lazy)
        """,
    )
    (info,) = Registry([lazy]).describe()
    assert info.reason == "its probe failed: NotImplementedError: Lazy does not override probe()"


def test_auto_takes_the_host_when_there_is_no_accelerator(host, plugin):
    absent = plugin(
        "absent",
        """
        @hal.hookimpl
        def hal_register_backends(register):
            register(backend("absent", available=False))
        """,
    )
    assert Registry([host, absent]).get("auto").name == "cpu-reference"


def test_auto_takes_the_one_accelerator(host, good):
    assert Registry([host, good("toy")]).get("auto").name == "toy"


def test_auto_between_several_accelerators_asks_for_a_name(host, good):
    with pytest.raises(hal.UsageError, match="'auto' is ambiguous here: toy, other are available; name one"):
        Registry([host, good("toy"), good("other")]).get("auto")


def test_auto_without_any_backend_fails():
    with pytest.raises(hal.UnknownBackendError, match="cpu-reference"):
        Registry([]).get("auto")


def test_unavailable_backend_is_an_error_and_never_another_device(host, plugin):
    absent = plugin(
        "absent",
        """
        @hal.hookimpl
        def hal_register_backends(register):
            register(backend("absent", available=False, reason="no driver: install one"))
        """,
    )
    with pytest.raises(hal.BackendUnavailableError) as caught:
        Registry([host, absent]).get("absent")
    assert str(caught.value) == "backend 'absent' is unavailable: no driver: install one"
    assert caught.value.exit_code == 3


def test_backend_that_does_not_load_is_unavailable_with_the_reason(plugin):
    heavy = plugin(
        "heavy",
        """
        class Heavy(backend("heavy")):
            @classmethod
            def load(cls):
                raise ImportError("libvendor.so: cannot open")

        @hal.hookimpl
        def hal_register_backends(register):
            register(Heavy)
        """,
    )
    with pytest.raises(hal.BackendUnavailableError, match=r"does not load \(ImportError: libvendor.so: cannot open"):
        Registry([heavy]).get("heavy")


def test_a_plugin_may_be_a_module_made_at_run_time(monkeypatch):
    module = ModuleType("plugin_made_at_run_time")

    class Toy(hal.HostBackend):
        name = "toy"

        @classmethod
        def probe(cls) -> hal.Probe:
            return hal.Probe(True, "found", 1)

    @hal.hookimpl
    def hal_register_backends(register):
        register(Toy)

    module.hal_register_backends = hal_register_backends
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert Registry([EntryPoint("toy", module.__name__, "hal")]).get("toy").name == "toy"
