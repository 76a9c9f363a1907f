"""What a scan measures: plain numbers, one row per layer. Nothing here knows torch, so a saved report can be
diagnosed again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NAN = math.nan
# Excitations of a replay that are asked for where no other shows anything.
ALONE, MASKED = "one token alone", "tokens masked"


@dataclass(frozen=True)
class Transfer:
    """How values differ from what they should be, element by element. `violation` is the largest deviation over
    its allowance, `fraction` the share of elements above it, `units` the hidden units concerned out of `width`
    and `coverage` the share of elements violating inside them. Of the violating elements: the share that is
    `zeroed`, the share `tied` to the largest magnitude that came out, whether they are the `largest`, the common
    `offset` (in std of the expected values) and `ratio` to the expected value, each with its spread as a share of what
    it is off by. `size` is the root mean square deviation over the typical size of the expected values (the geometric
    mean of their root mean square and mean magnitude). Further, of the violating elements: the share `constant` at one
    signed value, whether they are `diverse` (several, expected to differ as much as all do), and the share that
    turning over `one_bit` repairs, whose mean level is `bit_level`; `spared_large` says whether larger elements of
    the same units came through. The share that is `not_finite`, and the share that `shrunk`: came out smaller than
    expected.
    """

    violation: float
    fraction: float
    units: int
    width: int
    coverage: float
    zeroed: float
    tied: float
    largest: bool
    offset: float
    offset_spread: float
    ratio: float
    ratio_spread: float
    size: float
    constant: float = 0.0
    diverse: bool = False
    one_bit: float = 0.0
    bit_level: float = NAN
    spared_large: bool = False
    not_finite: float = 0.0
    shrunk: float = NAN


@dataclass(frozen=True)
class Stability:
    """Same input, `trials` runs. `spread` is the largest std of a difference from the first run, as a share of
    std(output). `unit` is the largest root mean square over one hidden unit, and `element` the largest single
    difference, both in units of the rounding error expected there. `changed` is the share of elements, in the
    units concerned, that moved by more than rounding. `glitch` is there when two runs agreed bit for bit and another
    did not: how that one's values transfer.
    """

    trials: int
    spread: float
    unit: float
    element: float
    changed: float
    glitch: Transfer | None = None


@dataclass(frozen=True)
class Gain:
    """`gain` is std(change of output) / std(change of input) for a small random perturbation. `lowest` and
    `highest` are the 0.1 % and 99.9 % quantiles of the per-element shift over a DC offset; `discrete` counts
    the hidden units that shift by less than 85 % of the median.
    """

    gain: float
    lowest: float
    highest: float
    discrete: int


@dataclass(frozen=True)
class Shape:
    """The distribution of a layer's output. `kurtosis` is Fisher's; `pile_up` compares the outermost histogram
    bin with those inside it; `ties` counts elements that equal the maximum magnitude exactly, identical rows
    counted once, and `ties_expected` is how many chance allows; `zeros` and `small` count exact zeros and the
    non-zero values below half the median magnitude.
    """

    std: float
    maximum: float
    kurtosis: float
    pile_up: float
    ties: int
    ties_expected: float
    zeros: int
    small: int
    elements: int


@dataclass(frozen=True)
class PassThrough:
    """How an amplified input passes through a layer: its `transfer` compared with the input itself, and
    `growth`, rms(output) / rms(input) at that scale: 1 for a residual block, near 0 for a layer that normalises
    its output.
    """

    transfer: Transfer
    growth: float


@dataclass(frozen=True)
class CacheIntegrity:
    """How keys and values read back from the cache differ from those stored: their `transfer`, which allows nothing,
    and whether a second read, made where the first differs, `repeats` it.
    """

    transfer: Transfer
    repeats: bool


@dataclass(frozen=True)
class Checksum:
    """The row sums of one module's matrix product, on the device: the largest `residual` of a row over what rounding
    explains, and whether all of them are `finite`.
    """

    site: str
    residual: float
    finite: bool = True


@dataclass(frozen=True)
class Subnormals:
    """How many results of a layer's own arithmetic were `asked` that should be subnormal numbers, and how many of them
    were `flushed` to zero.
    """

    asked: int
    flushed: int


@dataclass(frozen=True)
class WrongConstant:
    """A module's values are those of its code with the constant `name` at `acting` instead of as `configured`."""

    name: str
    configured: float
    acting: float


@dataclass(frozen=True)
class SiteReplay:
    """Host replay of one module or operator below a layer, over all its calls and excitations, the worst of
    them kept. `site` is the module's full name, `operator` the catalogue name of a single operator inside it
    ("" for the module's own result), `excitation` the input under which `transfer` was worst, `depth` how far
    below the layer it lies. `others` are the violating transfers under further inputs. `drift` says how far values
    lean one way, towards zero or away from it, or how surprising it is that one of their last bits never changes, in
    units of what chance allows (NaN where that was not asked), and `factor` by what the values of the leaning units are
    multiplied (NaN where that does not explain them). `constant` is the one that explains the values under every input,
    if there is one; `repeats` says whether the module errs in the same way when the same call is made again (None where
    that was not asked, or it did not err again), and `poisoned` that it was given NaN, or values that overflow,
    wherever it differs.
    """

    site: str
    operator: str
    excitation: str
    depth: int
    transfer: Transfer
    others: tuple[Transfer, ...] = ()
    drift: float = NAN
    factor: float = NAN
    constant: WrongConstant | None = None
    repeats: bool | None = None
    poisoned: bool = False


@dataclass(frozen=True)
class WeightDamage:
    """A parameter whose bits differ from the checkpoint's: its full `name`, how many `elements` out of `of`
    differ, the `index` of the first with the values `held` and `stored` there, the `bit` flipped when it is one
    and the same everywhere (-1 otherwise; 0 is the least significant), and the `most_bits` that differ in one
    element.
    """

    name: str
    elements: int
    of: int
    index: tuple[int, ...]
    held: float
    stored: float
    bit: int
    most_bits: int


@dataclass(frozen=True)
class LayerMeasurement:
    """One row: everything measured at one layer. `finite_input` and `finite_output` say whether all its values
    were finite; where they were not, the probes are None. `kv_cache` is None for a layer without one and
    `checksum`, the worst of its products, for one without linear modules, `replay` and `subnormals` at level quick
    (the latter also where no result could be subnormal) and `weights` without a checkpoint.
    """

    index: int
    site: str
    finite_input: bool
    finite_output: bool
    stability: Stability | None = None
    gain: Gain | None = None
    shape: Shape | None = None
    pass_through: PassThrough | None = None
    kv_cache: CacheIntegrity | None = None
    checksum: Checksum | None = None
    subnormals: Subnormals | None = None
    replay: tuple[SiteReplay, ...] | None = None
    weights: tuple[WeightDamage, ...] | None = None

    @classmethod
    def outside(
        cls, index: int, replay: tuple[SiteReplay, ...] | None, weights: tuple[WeightDamage, ...] | None
    ) -> LayerMeasurement:
        """A row of Measurements.outside, under the number of a layer: of no layer, so without a site."""
        return cls(index, "", True, True, replay=replay, weights=weights)

    @property
    def is_layer(self) -> bool:
        """Whether this is the row of a layer."""
        return bool(self.site)

    @property
    def leaning(self) -> SiteReplay | None:
        """The replayed site whose values lean one way most; None where that was not asked of any."""
        asked = [site for site in self.replay or () if not math.isnan(site.drift)]
        return max(asked, key=lambda site: site.drift, default=None)


@dataclass(frozen=True)
class Cost:
    """What a scan took: `forward_equivalents` on the device (layer calls over number of layers), wall time in
    seconds, peak device memory in bytes (None where the device does not say).
    """

    forward_equivalents: float
    wall_s: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Measurements:
    """One scan: a row per layer, in order, with the dtype's unit roundoff that scales every rounding bound, notes of
    the replay, and the operators whose results are `known` to differ on this backend, each with the reason. `outside`
    has further rows, of replay and weights alone, for what lies outside the layers: under the first layer's index what
    comes before the layers, under the last one's what comes behind, and under any what it is handed.
    """

    layers: tuple[LayerMeasurement, ...]
    unit_roundoff: float
    dtype: str
    tokens: int
    hidden: int
    probes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    known: tuple[tuple[str, str], ...] = ()
    outside: tuple[LayerMeasurement, ...] = ()
