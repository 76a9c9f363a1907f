"""Options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from hal.errors import UsageError
from srdd.faults import ActiveFault

BackendOption: TypeAlias = Annotated[
    str, typer.Option("--backend", help="Backend to run on: auto, cpu-reference, cuda, npu, or a plug-in's.")
]
DeviceOption: TypeAlias = Annotated[
    str | None, typer.Option("--device", help="Device: an index, or for example npu:1.")
]
ModelOption: TypeAlias = Annotated[
    Path | None, typer.Option("--model", help="Checkpoint directory; the bundled model if left out.")
]
PromptsOption: TypeAlias = Annotated[
    Path | None, typer.Option("--prompts", help="Prompts: .txt, one a line, or .jsonl.")
]
InjectOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--inject", help="Simulate a fault, KIND@LAYER[:key=value,...]; may be repeated."),
]
JsonOption: TypeAlias = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")]
TokensOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--tokens", min=1, help="Tokens in a row, the prompts repeated to fill it; 64 at most if left out."),
]
AttentionOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--attention", help="transformers' attention: sdpa, eager, flash_attention_2, ...; its own choice."),
]
QuietOption: TypeAlias = Annotated[bool, typer.Option("--quiet", help="Print the verdict line only.")]
RemoteCodeOption: TypeAlias = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")
]


def require_acted(active: list[ActiveFault]) -> None:
    """Raise UsageError for an injected fault that never acted: a result would say nothing about it."""
    for fault in (entry.fault for entry in active if entry.calls == 0):
        raise UsageError(
            f"the injected fault {fault.kind}@{fault.place} {fault.site} {fault.operator} never acted: "
            "the model does not run that site or operator, or not in the fault's dtype; choose another"
        )


def error_console() -> Console:
    """Where progress goes: standard error, so that a result can be piped."""
    return Console(stderr=True)
