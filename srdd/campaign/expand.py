"""Turn a campaign file into the list of its cases, the same list each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

from hal.errors import UsageError
from hal.noise import stream_key
from srdd.campaign.case import Case, content_hash
from srdd.campaign.entry import fault_from, require_field
from srdd.campaign.file import ALL, Campaign, Grid
from srdd.campaign.structure import INNERMOST, Structure
from srdd.campaign.texts import LINES, draw_prompts
from srdd.faults import KINDS, Fault

Entry = dict[str, Any]

_SEED_BITS = 0xFFFFFFFF
_DRAWN = frozenset({"seed", "draws"})  # fields that a campaign chooses where its file does not


def expand(campaign: Campaign, structure: Structure, pool: Sequence[str] | None) -> list[Case]:
    """Every case of `campaign` on a model of that `structure`, each once: the faults of each dtype, listed ones
    before grids, then the clean controls. `pool` holds the lines to draw prompts from (None: built-in ones).
    Raises UsageError, naming the entry, for a fault that cannot be or a module that the model does not have.
    """
    faults = list(_faults(campaign, structure))
    drawn = [(fault, draw_prompts(pool, campaign.seed, number)) for fault, number in faults]
    dtypes = dict.fromkeys(campaign.dtypes)
    cases = [
        Case(dtype, campaign.level, prompts, fault, campaign.trials) for dtype in dtypes for fault, prompts in drawn
    ]
    unique = list(dict.fromkeys([*cases, *_clean(campaign, pool)]))
    if not unique:
        raise UsageError("the campaign has no case: give faults, grids or clean controls")
    return unique


def sample(cases: Sequence[Case], limit: int) -> list[Case]:
    """At most `limit` of the cases, in their order, chosen by the hash of their content: no pattern of the
    campaign decides what is left out.
    """
    chosen = sorted(range(len(cases)), key=lambda index: content_hash(cases[index].content()))[:limit]
    return [cases[index] for index in sorted(chosen)]


def shard(cases: Sequence[Case], number: int, of: int) -> list[Case]:
    """Every `of`-th case, beginning with the `number`-th (from 1)."""
    return list(cases[number - 1 :: of])


def _faults(campaign: Campaign, structure: Structure) -> Iterator[tuple[Fault, int]]:
    for index, entry in enumerate(campaign.faults):
        yield _fault(entry, 0, campaign.seed, structure, f"faults[{index}]")
    for index, grid in enumerate(campaign.grids):
        where = f"grids[{index}]"
        for entry in _entries(grid, structure, where):
            for repeat in range(grid.repeats):
                yield _fault(entry, repeat, campaign.seed, structure, where)


def _fault(entry: Entry, repeat: int, seed: int, structure: Structure, where: str) -> tuple[Fault, int]:
    """The fault of an entry, and the number of its prompt set."""
    entry = {**entry, "layer": _layer(entry, structure, where)}
    fault = fault_from(entry, where)
    structure.require_site(fault, where)
    name = content_hash(entry)
    for field in sorted(_DRAWN - entry.keys()):
        with suppress(UsageError):  # a kind that draws nothing takes none
            fault = _with_draw(fault, field, 1 + stream_key(field, name, repeat, seed) % _SEED_BITS)
    return fault, stream_key("prompts", name, repeat) % _SEED_BITS


def _layer(entry: Entry, structure: Structure, where: str) -> int | None:
    if "layer" not in entry:
        raise UsageError(f"{where}: a fault needs 'layer'")
    return structure.layer(entry["layer"], where)


def _with_draw(fault: Fault, field: str, value: int) -> Fault:
    changes: dict[str, Any] = {field: value}
    return replace(fault, **changes)


def _entries(grid: Grid, structure: Structure, where: str) -> Iterator[Entry]:
    axes = [*_each_axes(grid, structure, where), *_variant_axes(grid, where)]
    for parts in product(*axes):
        entry: Entry = {}
        for part in parts:
            twice = sorted(entry.keys() & part.keys())
            if twice:
                raise UsageError(f"{where}: '{twice[0]}' is given by two axes of the grid; give it in one")
            entry |= part
        layer = _layer(entry, structure, where)
        for site in structure.members(str(entry.get("site", "")), layer, where):
            yield {**entry, "site": site} if site else entry


def _each_axes(grid: Grid, structure: Structure, where: str) -> Iterator[list[Entry]]:
    for key, values in grid.each.items():
        require_field(key, where)
        yield [{key: value} for value in (values if values != ALL else _all_values(key, structure, where))]


def _all_values(key: str, structure: Structure, where: str) -> Sequence[Any]:
    if key == "kind":
        return KINDS
    if key == "layer":
        return range(len(structure.sites))
    if key == "site":
        return (INNERMOST,)
    raise UsageError(f'{where}: {key} cannot be "{ALL}", kind, layer and site can; list its values')


def _variant_axes(grid: Grid, where: str) -> Iterator[list[Entry]]:
    for name, variants in grid.variants.items():
        for variant in variants:
            for key in variant:
                require_field(key, f"{where}, variants {name}")
        yield variants


def _clean(campaign: Campaign, pool: Sequence[str] | None) -> Iterator[Case]:
    """Controls of 1 to LINES lines, so that short inputs are among them; the dtypes take turns."""
    dtypes = list(dict.fromkeys(campaign.dtypes))
    for index in range(campaign.clean.count):
        number = stream_key("clean", index) % _SEED_BITS
        prompts = draw_prompts(pool, campaign.seed, number, lines=1 + index // len(dtypes) % LINES)
        yield Case(dtypes[index % len(dtypes)], campaign.level, prompts, trials=campaign.trials)
    for index, prompts_given in enumerate(campaign.clean.prompts):
        if not prompts_given or any(not text.strip() for text in prompts_given):
            raise UsageError(f"clean.prompts[{index}] holds an empty prompt or none: a scan needs text in each")
        for dtype in dtypes:
            yield Case(dtype, campaign.level, tuple(prompts_given), trials=campaign.trials)
