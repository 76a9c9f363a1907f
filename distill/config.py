"""What a student is trained by: one validated document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from distill.losses.compression import BALANCE, Compression
from distill.losses.contrastive import TEMPERATURE
from distill.losses.kv_loss import Distance
from hal.documents import read_yaml, validated
from hal.errors import UsageError

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AttentionSource = Literal["none", "student", "teacher"]

# A student's attention means little before it has learnt something, a teacher's is worth following sooner.
WARM_UP: Final[Mapping[AttentionSource, int]] = {"none": 0, "student": 1000, "teacher": 500}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Weights(_Section):
    """What each loss counts beside the cross entropy, which counts 1; 0 leaves it out."""

    kv: Weight = 1.0
    codi: Weight = 0.5
    cka: Weight = 0.05
    contrastive: Weight = 0.0


class KvOptions(_Section):
    """How keys and values are compared: the `distance` (`alpha` scales smooth_l1_alpha), in which `layers` of the
    student, and with which of the teacher's tokens: `compression` to `length` tokens, for r_kv with the `balance` of
    importance. `shuffled` takes those of another example: the negative control.
    """

    distance: Distance = "smooth_l1"
    alpha: Weight = 1.0
    layers: Literal["middle", "last", "all"] | list[int] = "all"
    compression: Compression = "full"
    length: Annotated[int, Field(ge=1)] | None = None
    balance: Annotated[float, Field(ge=0, le=1)] = BALANCE
    shuffled: bool = False

    @model_validator(mode="after")
    def _length_with_compression(self) -> KvOptions:
        if (self.compression == "full") != (self.length is None):
            raise ValueError(
                f"compression '{self.compression}' with length {self.length}: give a length with right_crop and r_kv, "
                "and none with full"
            )
        return self


class AttentionWeighting(_Section):
    """Whose attention says how much a token's keys and values count ("none": all alike), blended in over
    `warm_up_steps` (left out: 1000 for the student's, 500 for the teacher's).
    """

    source: AttentionSource = "none"
    warm_up_steps: Annotated[int, Field(ge=0)] | None = None

    @property
    def steps(self) -> int:
        """The warm-up steps, the default of the source if they were left out."""
        return WARM_UP[self.source] if self.warm_up_steps is None else self.warm_up_steps


class RoutingOptions(_Section):
    """How several teachers become one: by `fixed` weights (left out: equal), by `similarity` to the student, or
    `learnable`, kept from following one teacher alone by `concentration` times ln(teachers) less the shares' entropy.
    """

    kind: Literal["fixed", "similarity", "learnable"] = "fixed"
    weights: list[Weight] | None = None
    temperature: Annotated[float, Field(gt=0)] = 0.1
    concentration: Weight = 0.01

    @model_validator(mode="after")
    def _weights_are_fixed(self) -> RoutingOptions:
        if self.weights is not None and self.kind != "fixed":
            raise ValueError(f"weights belong to kind 'fixed', not '{self.kind}': leave them out")
        return self


class DistillConfig(_Section):
    """The whole document. Unknown keys are errors that name the nearest known one."""

    weights: Weights = Weights()
    kv: KvOptions = KvOptions()
    attention: AttentionWeighting = AttentionWeighting()
    cka_layers: Literal["middle", "last", "all"] | list[int] = "middle"
    temperature: Annotated[float, Field(gt=0)] = TEMPERATURE
    routing: RoutingOptions = RoutingOptions()
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0

    @property
    def student_attention(self) -> bool:
        """Whether attention weights of the student are needed."""
        return self.attention.source == "student"

    @property
    def teacher_attention(self) -> bool:
        """Whether those of the teachers are."""
        return self.attention.source == "teacher" or self.kv.compression == "r_kv"

    @classmethod
    def parse(cls, document: Any, source: str = "the configuration") -> DistillConfig:
        """Validate a mapping; whatever is wrong with it becomes one UsageError that names key, value and rule."""
        if not isinstance(document, Mapping):
            raise UsageError(f"{source} is a {type(document).__name__}: it must be a mapping")
        return validated(cls, document, source)

    @classmethod
    def from_yaml(cls, path: str | Path) -> DistillConfig:
        """Read the document from a YAML file; a missing, unreadable or wrong one is a UsageError."""
        return cls.parse(read_yaml(Path(path)), str(path))
