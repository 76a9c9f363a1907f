"""Rules of the house that neither the linter nor the type checker knows: no vendor outside backends, small files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What these packages do may not depend on whose device it is done on; all that may lives in `backends`.
NEUTRAL = ("hal", "srdd", "aqn", "distill", "conformance")
# What a device's type may be compared with: nothing above hal; in hal a backend's own answer, and the host's name,
# because "on the host or on a device" decides sizes of chunks and names no accelerator.
HOST = "cpu"
CODE = (*NEUTRAL, "backends", "benchmarks", "examples", "tests")
MAX_LINES = 500

VENDORS = frozenset(
    re.findall(
        r"\w+",
        "cuda cudnn cublas nvidia nvml nccl tf32 triton  npu npus ascend hccl cann hf32 acl  "
        "amd rocm hip rccl  intel xpu  mps  hpu  mlu  musa  tpu xla",
    )
)
# People may be told examples: in a docstring, or in the help of an option.
HELP = ("help", "epilog", "description")


def words(text: str) -> set[str]:
    """The words of an identifier or sentence: torch_npu, torchNpu and "npu:1" all hold npu."""
    parts = re.findall(r"[A-Za-z0-9]+", text)
    humps = [hump for part in parts for hump in re.findall(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*", part)]
    return {word.lower() for word in (*parts, *humps)}


def violations(source: str, *, in_hal: bool) -> list[str]:
    """Every place in a module's code where its behaviour could depend on a vendor, as "line N: what"."""
    tree = ast.parse(source)
    spoken = set(_spoken(tree))
    found = []
    for node in ast.walk(tree):
        if id(node) in spoken:
            continue
        named = sorted(VENDORS & {word for text in _texts(node) for word in words(text)})
        if named:
            found.append(f"line {node.lineno}: names {', '.join(named)}")
        if _compares_device_type(node, in_hal):
            found.append(f"line {node.lineno}: decides by a device's type")
    return found


def _spoken(tree: ast.Module) -> Iterator[int]:
    """The ids of string nodes that are only ever read by people."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield id(first.value)
        if isinstance(node, ast.keyword) and node.arg in HELP:
            yield from (id(part) for part in ast.walk(node.value) if isinstance(part, ast.Constant))


def _texts(node: ast.AST) -> list[str]:
    """The names and strings that a node itself brings, without those of its children."""
    texts = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname", "module", "value")]
    return [text for text in texts if isinstance(text, str)]


def _compares_device_type(node: ast.AST, in_hal: bool) -> bool:
    if isinstance(node, ast.Match):
        return _is_device_type(node.subject)
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    if not any(_is_device_type(side) for side in sides):
        return False
    literals = [part.value for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant)]
    return not in_hal or any(literal != HOST for literal in literals)


def _is_device_type(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):  # device.type.startswith(...), str(device)
        return any(_is_device_type(part) or _is_device(part) for part in (node.func, *node.args))
    if isinstance(node, ast.Attribute):
        return (
            node.attr == "device_type"
            or (node.attr == "type" and _is_device(node.value))
            or _is_device_type(node.value)
        )
    return isinstance(node, ast.Name) and node.id == "device_type"


def _is_device(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name.endswith("device")


def python_files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", python_files(*NEUTRAL), ids=relative)
def test_code_outside_backends_names_no_vendor_and_no_device_type(path):
    in_hal = path.relative_to(ROOT).parts[0] == "hal"
    assert violations(path.read_text(encoding="utf-8"), in_hal=in_hal) == []


def test_the_packages_of_the_house_are_looked_at():
    assert len(python_files("hal")) > 20
    assert len(python_files("srdd")) > 10
    assert len(python_files("conformance")) > 10


BAD = [
    "import torch_npu",
    "from torch import cuda",
    "from torch.cuda import Event",
    "import backends.npu as device",
    "torch.cuda.synchronize()",
    "torch.npu.synchronize()",
    "model.cuda()",
    "x.is_cuda",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "x.to('cuda')",
    "x.to('npu:1')",
    "x.to(f'cuda:{index}')",
    "getattr(torch, 'npu')",
    "backend = get_backend('cuda')",
    "run(backend='npu')",
    "def npu_only(x): ...",
    "class AscendNoise: ...",
    "def f(use_cuda=True): ...",
    "CUDA_VISIBLE = 1",
    "options['nvidia'] = 1",
    "raise ValueError('no CUDA device found')",
    "os.environ['ASCEND_RT_VISIBLE_DEVICES']",
    "torch.distributed.init_process_group('hccl')",
    "'a sentence about cuda that is not a docstring'; x = 'npu'",
]
# Good in hal where they compare with the host or with a backend's answer, bad above it.
HOST_QUESTIONS = [
    "if x.device.type == 'cpu': pass",
    "if 'cpu' != device.type: pass",
    "if str(x.device) == 'cpu': pass",
    "if backend.device_type == 'cpu': pass",
    "if parameter.device.type != self.device_type: pass",
]
DEVICE_QUESTIONS = [
    "if x.device.type == 'meta': pass",
    "if x.device.type.upper() == 'CPU': pass",
    "y = a if x.device.type in ('cpu', 'meta') else b",
    "if str(x.device) == 'privateuseone:0': pass",
    "match x.device.type:\n    case 'cpu': pass",
]
GOOD = [
    '"""For example npu:1, or a CUDA device."""',
    'def f():\n    """Takes npu:1."""',
    'class C:\n    """For NVIDIA GPUs."""',
    "x = 1  # torch_npu does this in silence",
    "typer.Option(help='Backend: auto, cuda, npu.')",
    "typer.Option(help='Backend: ' 'auto, cuda, npu.')",
    "y = x.to(backend.device)",
    "cannot = scanned and multiply and machine",
    "if field.type == 'int': pass",
    "if finding.kind == 'bias': pass",
    "torch.get_device_module(backend.device_type)",
    "same = x.device == y.device",
]


CLEAN = '"""A module."""\n\nimport torch\n'


def test_a_clean_module_passes():
    assert violations(CLEAN, in_hal=False) == []


@pytest.mark.parametrize("in_hal", [True, False])
@pytest.mark.parametrize("line", BAD + DEVICE_QUESTIONS)
def test_the_rule_finds_what_it_forbids(line, in_hal):
    assert violations(CLEAN + line, in_hal=in_hal)[0].startswith("line 4: ")


@pytest.mark.parametrize("line", HOST_QUESTIONS)
def test_only_hal_may_ask_whether_a_tensor_is_on_the_host_or_on_a_backends_device(line):
    assert violations(line, in_hal=True) == []
    assert violations(line, in_hal=False) == ["line 1: decides by a device's type"]


@pytest.mark.parametrize("line", GOOD)
def test_the_rule_lets_pass_what_it_allows(line):
    assert violations(line, in_hal=False) == []


@pytest.mark.parametrize("package", CODE)
def test_no_file_is_too_long_to_read(package):
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(package)}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("package", CODE)
def test_no_module_is_named_for_having_no_subject(package):
    names = re.compile(r"(.*_)?(utils?|helpers?|misc|common)(_.*)?")
    nameless = [relative(path) for path in python_files(package) if names.fullmatch(path.stem)]
    assert nameless == []
