"""The noise and dead zone of a run, from verl's own configuration tree."""

from __future__ import annotations

from typing import Any

from aqn.config import SECTIONS, AqnConfig
from hal.errors import UsageError

FILE_KEY = "aqn_config"


def configuration(tree: Any) -> AqnConfig:
    """What the tree says under `aqn` and `deadzone`, or the YAML file that `aqn_config` names. UsageError for both,
    for none, and for a dead zone that rollout and trainer cannot share.
    """
    sections = [key for key in SECTIONS if tree.get(key) is not None]
    path = tree.get(FILE_KEY)
    if path is not None and sections:
        raise UsageError(f"{FILE_KEY} and {sections[0]} are both given: write everything into one of them")
    if path is None and not sections:
        raise UsageError(
            "the trainer 'aqn_sync' was chosen without noise or dead zone: add +aqn.sigma=..., +deadzone.layer=... or "
            f"+{FILE_KEY}=FILE"
        )
    config = AqnConfig.from_yaml(str(path)) if path is not None else AqnConfig.from_hydra(tree)
    zone = config.dead_zone
    if zone is not None and zone.scope != "token":
        raise UsageError(
            "deadzone.scope is 'tensor': rollout and trainer put other sequences together, so they would disagree; "
            "write deadzone.scope=token"
        )
    return config


def document(config: AqnConfig) -> dict[str, Any]:
    """The configuration as plain values, for other processes."""
    return config.model_dump(mode="json", by_alias=True, exclude_none=True)
