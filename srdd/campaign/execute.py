"""Scan one case after another in one process, with the model loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hal.errors import UsageError, one_line
from hal.models import LoadedModel, load_model
from hal.registry import get_backend
from hal.structure import find_layer_stack
from hal.unit_mask import ImpossibleMaskError
from srdd.campaign.case import Case
from srdd.campaign.outcome import Found, Outcome
from srdd.campaign.structure import place
from srdd.faults import ActiveFault, simulate
from srdd.report import Report
from srdd.scan import scan


@dataclass(frozen=True)
class Setup:
    """Where the cases are scanned: the checkpoint `directory`, the backend's name and device, and whether code
    that comes with the checkpoint may run.
    """

    directory: Path
    backend: str
    device: str | None = None
    trust_remote_code: bool = False


class CaseScanner:
    """Scans cases with one host thread, and keeps the model of the last dtype in memory."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        self._setup = setup
        self._backend = get_backend(setup.backend, setup.device)
        self._loaded: tuple[str, LoadedModel] | None = None

    def prepare(self, dtype: str) -> LoadedModel:
        """The model in `dtype`; raises HalError when it cannot be loaded, or has no tokenizer to tell prompt sets
        apart by.
        """
        if self._loaded is None or self._loaded[0] != dtype:
            self._loaded = None  # before the next one is loaded: two would not fit where one fits
            setup = self._setup
            loaded = load_model(setup.directory, self._backend, dtype, setup.trust_remote_code)
            if loaded.tokenizer is None:
                raise UsageError(f"a campaign needs a tokenizer and {setup.directory} has none: add tokenizer.json")
            self._loaded = dtype, loaded
        return self._loaded[1]

    def scan(self, key: str, case: Case) -> Outcome:
        """Put the fault in, scan, and take it out again. Whatever goes wrong becomes the outcome's error. The
        scan is told nothing of the fault: what it gets is the model, tokenizer, prompts, level and checkpoint.
        """
        loaded = self.prepare(case.dtype)
        try:
            with simulate(loaded.model, [case.fault] if case.fault else []) as active:
                report = scan(
                    loaded.model,
                    loaded.tokenizer,
                    self._backend,
                    case.prompts,
                    case.level,
                    checkpoint=loaded.directory,
                    trials=case.trials,
                )
        except ImpossibleMaskError as error:
            return Outcome(key, case.content(), impossible=str(error))
        except Exception as error:  # noqa: BLE001 -- one bad case is recorded, and the campaign goes on
            return Outcome(key, case.content(), error=one_line(error))
        return _outcome(key, case, loaded, active, report)


def _outcome(key: str, case: Case, loaded: LoadedModel, active: list[ActiveFault], report: Report) -> Outcome:
    return Outcome(
        key=key,
        case=case.content(),
        place=place(find_layer_stack(loaded.model), case.fault) if case.fault else "",
        calls=sum(entry.calls for entry in active),
        changed=sum(entry.changed for entry in active),
        findings=tuple(
            Found(entry.layer, entry.site, entry.operator, entry.kind, entry.label, entry.confidence)
            for entry in report.findings
        ),
        forward_equivalents=report.cost.forward_equivalents,
        wall_s=report.cost.wall_s,
    )
