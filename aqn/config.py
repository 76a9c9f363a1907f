"""What noise and which dead zone: one validated document, from YAML or a Hydra tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from aqn.hookspecs import Schedule
from aqn.schedule_registry import default_registry
from hal.documents import read_yaml, validated
from hal.errors import UsageError
from hal.operators import OPERATORS

Phase = Literal["rollout", "actor_forward", "actor_backward", "validation"]
PHASES: Final = get_args(Phase)
MODES: Final[Mapping[str, tuple[str, ...]]] = {
    "matmul": ("matmul", "bmm", "linear"),
    "all_ops": ("matmul", "bmm", "linear", "softmax", "silu", "gelu", "layer_norm", "rms_norm"),
}
SECTIONS: Final = ("deadzone", "aqn", "srdd_metadata")

Sigma = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LayerIndex = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Deadzone(_Section):
    """A dead zone on the output of `layer`: zero where abs(x) < `threshold` * max(abs(x)), in the share `sparsity` of
    the hidden units, chosen by `seed`. `noise` says whether noise of that layer's output comes before the dead zone or
    between two; `scope` whether the maximum is the batch's or each token's.
    """

    enabled: bool = True
    layer: LayerIndex
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.01
    sparsity: Annotated[float, Field(gt=0, le=1)] = 1.0
    noise: Literal["before", "after"] = "before"
    scope: Literal["tensor", "token"] = "tensor"
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0


class ScheduleChoice(BaseModel):
    """A schedule's `name`; every other key is an option of it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options as given."""
        return dict(self.model_extra or {})


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _layers(value: Any) -> Any:
    numbers = isinstance(value, (list, tuple)) and all(type(entry) is int and entry >= 0 for entry in value)
    if value != "all" and not numbers:
        raise ValueError(f"{value!r} is neither 'all' nor a list of layer numbers, counted from 0")
    return value


class Noise(_Section):
    """Noise for training. `sigma` is its strength where the schedule starts; `layer_sigmas` gives single layers
    another, the schedule scaling all alike (`layer_specific`: only those layers get noise). `mode` or `operators`
    choose the operators. `kind`: "operator" disturbs results of operators, "layer" the layer's output, "weight" the
    norms' weights (QeRL). `phases` are those that carry noise. `draws` is "exact", the same bits on every backend, or
    "fast".
    """

    enabled: bool = True
    target_layers: Annotated[Literal["all"] | list[int], BeforeValidator(_layers)] = "all"
    layer_specific: bool = False
    sigma: Annotated[Sigma, Field(alias="base_sigma")] = 0.05
    layer_sigmas: dict[LayerIndex, Sigma] = Field(default_factory=dict)
    high_priority_layers: list[LayerIndex] = Field(default_factory=list)
    schedule: Annotated[ScheduleChoice, BeforeValidator(_named)] = ScheduleChoice(name="constant")
    kind: Literal["operator", "layer", "weight"] = "operator"
    mode: Literal["matmul", "all_ops"] = "matmul"
    operators: list[str] | None = None
    phases: list[Phase] = ["rollout", "actor_forward"]
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    draws: Literal["exact", "fast"] = "exact"

    @model_validator(mode="before")
    @classmethod
    def _one_sigma(cls, values: Any) -> Any:
        """`sigma` and `base_sigma` are two names of one thing: the hand-written form and the guide's."""
        if isinstance(values, Mapping) and "sigma" in values:
            if "base_sigma" in values:
                raise ValueError("sigma and base_sigma are the same thing; give one of them")
            values = {"base_sigma" if key == "sigma" else key: value for key, value in values.items()}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Noise:
        unknown = sorted(set(self.operators or ()) - set(OPERATORS))
        if unknown:
            raise ValueError(f"unknown operators {', '.join(unknown)}; choose from {', '.join(sorted(OPERATORS))}")
        if self.operators == [] or self.target_layers == [] or not self.phases:
            raise ValueError("operators, target_layers and phases must not be empty; set enabled: false for no noise")
        if self.operators and self.kind != "operator":
            raise ValueError(f"operators belong to kind 'operator', not '{self.kind}'; leave them out")
        if self.layer_specific and not self.layer_sigmas:
            raise ValueError("layer_specific is true but layer_sigmas is empty; give {layer: sigma}")
        if self.layer_sigmas and self.sigma == 0:
            raise ValueError("layer_sigmas are relative to base_sigma, which is 0; give it a positive value")
        known = default_registry().factories
        if self.schedule.name not in known:
            raise ValueError(f"unknown schedule '{self.schedule.name}'; choose one of {', '.join(known)}")
        return self

    @property
    def chosen_operators(self) -> tuple[str, ...]:
        """The operators that carry noise: those listed, or the mode's."""
        return tuple(self.operators) if self.operators else MODES[self.mode]

    def layers_of(self, count: int) -> tuple[int, ...]:
        """The layers that carry noise in a model of `count`; one it does not have is a UsageError."""
        if self.layer_specific:
            chosen = sorted(self.layer_sigmas)
        else:
            chosen = list(range(count)) if self.target_layers == "all" else sorted(set(self.target_layers))
        wrong = [layer for layer in (*chosen, *self.layer_sigmas) if layer >= count]
        if wrong:
            raise UsageError(f"aqn names layer {wrong[0]}: the model has layers 0 to {count - 1}")
        return tuple(chosen)

    def scale(self, layer: int) -> float:
        """The layer's strength over the base."""
        return self.layer_sigmas.get(layer, self.sigma) / self.sigma if self.layer_sigmas else 1.0

    def make_schedule(self, steps: int | None, epochs: int | None, layers: int) -> Schedule:
        """The schedule for a run of `steps` steps in `epochs` epochs on a model of `layers` layers, starting at
        `sigma`; options in the document win. A schedule over steps that got no number of them is a UsageError.
        """
        accepted = default_registry().options(self.schedule.name)
        from_run = {"start": self.sigma, "steps": steps, "epochs": epochs, "layers": layers}
        known = {key: value for key, value in from_run.items() if key in accepted and value is not None}
        options = {**known, **self.schedule.options}
        if "steps" in accepted and "steps" not in options:
            raise UsageError(
                f"schedule '{self.schedule.name}' runs over steps and their number is unknown: pass steps= to inject, "
                "or write schedule: {name: ..., steps: N}"
            )
        return default_registry().make(self.schedule.name, **options)


class AqnConfig(_Section):
    """The whole document: a `deadzone`, the noise under `aqn`, and what a scan said under `srdd_metadata`. Unknown
    keys are errors that name the nearest known one.
    """

    deadzone: Deadzone | None = None
    aqn: Noise | None = None
    srdd_metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _after_needs_one_signal(self) -> AqnConfig:
        noise, zone = self.noise, self.dead_zone
        if zone and zone.noise == "after" and noise and noise.kind != "layer":
            raise ValueError(
                "deadzone.noise 'after' puts noise on the layer's output between two dead zones: it needs "
                f"aqn.kind 'layer', not '{noise.kind}'"
            )
        return self

    @property
    def noise(self) -> Noise | None:
        """The noise section, None when absent or not enabled."""
        return self.aqn if self.aqn and self.aqn.enabled else None

    @property
    def dead_zone(self) -> Deadzone | None:
        """The dead zone, None when absent or not enabled."""
        return self.deadzone if self.deadzone and self.deadzone.enabled else None

    @classmethod
    def parse(cls, document: Any, source: str = "the configuration") -> AqnConfig:
        """Validate a mapping; whatever is wrong with it becomes one UsageError that names key, value and rule."""
        if not isinstance(document, Mapping):
            raise UsageError(f"{source} is a {type(document).__name__}: it must be a mapping with 'aqn' or 'deadzone'")
        config = validated(cls, document, source)
        if config.aqn is None and config.deadzone is None:
            raise UsageError(f"{source} has neither 'aqn' nor 'deadzone': give at least one")
        return config

    @classmethod
    def from_yaml(cls, path: str | Path) -> AqnConfig:
        """Read the document from a YAML file; a missing, unreadable or wrong one is a UsageError."""
        return cls.parse(read_yaml(Path(path)), str(path))

    @classmethod
    def from_hydra(cls, tree: Any) -> AqnConfig:
        """The sections of this document inside a larger tree, such as verl's: a mapping or an OmegaConf node, whose
        interpolations are resolved. Keys beside the sections are the framework's and are not looked at.
        """
        if type(tree).__module__.partition(".")[0] == "omegaconf":
            from omegaconf import OmegaConf

            tree = {key: OmegaConf.to_container(tree[key], resolve=True) for key in SECTIONS if tree.get(key)}
        if not isinstance(tree, Mapping):
            raise UsageError(f"the configuration tree is a {type(tree).__name__}: it must be a mapping")
        return cls.parse({key: tree[key] for key in SECTIONS if tree.get(key) is not None}, "the configuration tree")

    def to_yaml(self) -> str:
        """The document as YAML, in the guide's key names; defaults are left out except those one wants to see."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        if self.deadzone is not None:
            values["deadzone"] = {"enabled": self.deadzone.enabled, **values["deadzone"]}
        if self.aqn is not None:
            shown = {"enabled": self.aqn.enabled, "base_sigma": self.aqn.sigma}
            values["aqn"] = {**shown, **values.get("aqn", {})}
        return str(yaml.safe_dump(_plain(values), sort_keys=False, default_flow_style=None, width=110))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """A schedule without options is its name; layer numbers are numbers again, which JSON keys are not."""
    noise = values.get("aqn")
    if isinstance(noise, dict):
        choice = noise.get("schedule")
        if isinstance(choice, dict) and set(choice) == {"name"}:
            noise["schedule"] = choice["name"]
        if "layer_sigmas" in noise:
            noise["layer_sigmas"] = {int(layer): sigma for layer, sigma in noise["layer_sigmas"].items()}
    return values
