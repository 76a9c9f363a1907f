"""Constants of the floating-point formats: units in the last place, and the standards' thresholds by dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Format:
    """Thresholds of the published standards for one dtype, with the names they have there.

    `small_value` and `small_error`: below the first a value is judged absolutely, by the second (dual standard).
    `single`: T of the single benchmark. `rtol`, `atol`, `floor`: mixed tolerance.
    """

    small_value: float
    small_error: float
    single: float
    rtol: float
    atol: float
    floor: float


# CANN operator precision standard (docs/operators.md lists the documents): dual and single benchmark, and the mixed
# tolerance of opbase PR 924.
FORMATS = {
    torch.float16: Format(2.0**-11, 2.0**-16, 2.0**-10, 2.0**-9, 2.0**-9, 0.1),
    torch.bfloat16: Format(2.0**-8, 2.0**-16, 2.0**-7, 2.0**-6, 2.0**-6, 1.0),
    torch.float32: Format(2.0**-14, 2.0**-30, 2.0**-13, 2.0**-10, 2.0**-16, 1e-2),
}
MIXED_ULPS = 32
RELATIVE_OFFSET = 1e-7  # added to the size of the expected value in relative errors, by the standard


def unit_in_last_place(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Distance between neighbouring numbers of `dtype` at `value` (float64, host); that of the smallest normal
    number below it.
    """
    info = torch.finfo(dtype)
    exponent = torch.frexp(value.abs()).exponent.double() - 1
    lowest = torch.frexp(torch.tensor(info.smallest_normal, dtype=torch.float64)).exponent.double() - 1
    return torch.exp2(exponent.clamp(min=lowest)) * info.eps


def short(dtype: torch.dtype) -> str:
    """The dtype's name without the library's: float32."""
    return str(dtype).removeprefix("torch.")
