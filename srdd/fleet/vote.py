"""Compare the answers of a fleet: who differs from the majority, and where first. Pure functions of the answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from srdd.fleet.answer import FORWARD, WEIGHTS, Answer, Record

Key: TypeAlias = tuple[str, int | None, str, int]  # stage, layer, site, the how-manieth call of it
Verdict = Literal["agree", "odd", "undecided", "incomplete"]


@dataclass(frozen=True)
class Place:
    """Where a rank differs: the first `site` of `layer` to do so, under the inputs of `stages`."""

    layer: int | None
    site: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Odd:
    """A rank that is alone or in the minority: the `places` where it differs, the first one first, the `weights` that
    do, and whether it does not even repeat itself (`unstable`).
    """

    rank: int
    places: tuple[Place, ...]
    weights: tuple[str, ...]
    unstable: bool


@dataclass(frozen=True)
class Split:
    """A difference that no majority decides: the `groups` of ranks alike among themselves, and its first `place`."""

    groups: tuple[tuple[int, ...], ...]
    place: Place


@dataclass(frozen=True)
class Judgement:
    """The verdict on a fleet of `world` ranks: the `odd` ones, the first `split`, what `failed` with its message, who
    was `silent`, senders whose messages arrived changed (`garbled`: receiver and sender), and `notes`.
    """

    world: int
    odd: tuple[Odd, ...]
    split: Split | None
    failed: tuple[tuple[int, str], ...]
    silent: tuple[int, ...]
    garbled: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """odd: a rank can be named. undecided: ranks differ, and it cannot be said which is wrong. incomplete: those
        that answered agree. agree: all did, and all are alike.
        """
        if self.odd or self.garbled:
            return "odd"
        if self.split:
            return "undecided"
        return "incomplete" if self.failed or self.silent else "agree"


def judge(
    answers: Mapping[int, Answer], world: int, garbled: Iterable[tuple[int, int]] = (), notes: Iterable[str] = ()
) -> Judgement:
    """Judge the answers of the ranks that gave one. At each place the value that more than half of the ranks have is
    right. A rank that does not repeat itself is odd whatever the others say and has no vote, unless most ranks behave
    so there: then the operator is not deterministic, and the place is not compared.
    """
    failed = tuple((rank, answer.error) for rank, answer in sorted(answers.items()) if answer.error)
    voters = {rank: answer for rank, answer in sorted(answers.items()) if not answer.error}
    loose = _not_deterministic(voters)
    unstable = {rank: [key for key in _unstable_keys(answer) if key not in loose] for rank, answer in voters.items()}
    steady = {rank: _by_key(answer, loose) for rank, answer in voters.items() if not unstable[rank]}
    differing, splits = _vote(steady)
    odd = [_odd(rank, keys, voters[rank], unstable=False) for rank, keys in sorted(differing.items())]
    odd += [_odd(rank, keys, voters[rank], unstable=True) for rank, keys in unstable.items() if keys]
    return Judgement(
        world=world,
        odd=tuple(sorted(odd, key=lambda entry: entry.rank)),
        split=splits[0] if splits else None,
        failed=failed,
        silent=tuple(rank for rank in range(world) if rank not in answers),
        garbled=tuple(garbled),
        notes=(*notes, *_loose_notes(loose), *_unlike(voters)),
    )


def _vote(voters: Mapping[int, Mapping[Key, str]]) -> tuple[dict[int, list[Key]], list[Split]]:
    differing: dict[int, list[Key]] = defaultdict(list)
    splits: list[Split] = []
    for key in dict.fromkeys(key for digests in voters.values() for key in digests):
        ranks_of: dict[str, list[int]] = defaultdict(list)
        for rank, digests in voters.items():
            ranks_of[digests.get(key, "")].append(rank)
        if len(ranks_of) == 1:
            continue
        groups = sorted(ranks_of.values(), key=lambda ranks: (-len(ranks), ranks))
        if 2 * len(groups[0]) > len(voters):
            for rank in (rank for group in groups[1:] for rank in group):
                differing[rank].append(key)
        else:
            stage, layer, site, _ = key
            splits.append(Split(tuple(map(tuple, groups)), Place(layer, site, (stage,))))
    return differing, splits


def _odd(rank: int, keys: Sequence[Key], answer: Answer, unstable: bool) -> Odd:
    """Sum up where a rank differs. A difference in the forward pass spreads to the layers behind it, so of those only
    the first counts; the other stages give every layer an input of its own.
    """
    order = {key: place for place, key in enumerate(_keys(answer.records))}
    known = sorted(keys, key=lambda key: order.get(key, len(order)))
    weights = tuple(site for stage, _, site, _ in known if stage == WEIGHTS)
    forward = [key for key in known if key[0] == FORWARD][:1]
    found: dict[int | None, tuple[str, list[str]]] = {}
    for stage, layer, site, _ in (*forward, *(key for key in known if key[0] not in (WEIGHTS, FORWARD))):
        stages = found.setdefault(layer, (site, []))[1]
        if stage not in stages:
            stages.append(stage)
    places = [Place(layer, site, tuple(stages)) for layer, (site, stages) in found.items()]
    return Odd(
        rank, tuple(sorted(places, key=lambda place: -1 if place.layer is None else place.layer)), weights, unstable
    )


def _keys(records: Sequence[Record]) -> list[Key]:
    seen: Counter[tuple[str, int | None, str]] = Counter()
    keys = []
    for record in records:
        place = record.stage, record.layer, record.site
        keys.append((*place, seen[place]))
        seen[place] += 1
    return keys


def _by_key(answer: Answer, leave_out: set[Key]) -> dict[Key, str]:
    digests = zip(_keys(answer.records), (record.digest for record in answer.records), strict=True)
    return {key: digest for key, digest in digests if key not in leave_out}


def _unstable_keys(answer: Answer) -> list[Key]:
    keys = _keys(answer.records)
    return [keys[place] for place in answer.unstable]


def _not_deterministic(voters: Mapping[int, Answer]) -> set[Key]:
    counts = Counter(key for answer in voters.values() for key in _unstable_keys(answer))
    return {key for key, count in counts.items() if 2 * count > len(voters) and count > 1}


def _loose_notes(loose: set[Key]) -> list[str]:
    if not loose:
        return []
    sites = sorted({site for _, _, site, _ in loose})
    return [f"not compared, because most ranks do not repeat themselves there: {_few(sites)}"]


def _unlike(voters: Mapping[int, Answer]) -> list[str]:
    """Ranks whose hardware or software differs from most others': they may rightly differ in the last bit."""
    notes = []
    for name in sorted({name for answer in voters.values() for name in answer.environment}):
        values = Counter(answer.environment.get(name, "nothing") for answer in voters.values())
        usual, _ = values.most_common(1)[0]
        unlike = [(rank, answer.environment.get(name, "nothing")) for rank, answer in voters.items()]
        notes += [
            f"rank {rank} has {name} {value}, most have {usual}: bits may differ for that reason alone"
            for rank, value in unlike
            if value != usual
        ]
    return notes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
