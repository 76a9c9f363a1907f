"""verl runs on the host here: said before anything imports it, and imported before warnings become errors."""

from __future__ import annotations

import os
import warnings

os.environ["VERL_PLATFORM"] = "host"
os.environ["VERL_USE_EXTERNAL_MODULES"] = "aqn.integrations.verl"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import verl  # noqa: F401  -- imports aqn.integrations.verl itself
    from verl.workers import engine_workers  # noqa: F401
