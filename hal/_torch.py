"""Import torch so that a broken device extension cannot break it.

torch loads every `torch.backends` entry point when it is imported, and one that fails to load makes
`import torch` itself raise. Backends load their own extension when they are asked for, so autoload is
switched off for the duration of this import and the environment is left as it was found.
"""

from __future__ import annotations

import os
import sys

_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def _import_torch_without_extensions() -> None:
    before = os.environ.get(_AUTOLOAD)
    os.environ[_AUTOLOAD] = "0"
    try:
        import torch  # noqa: F401  -- imported for its effect on sys.modules
    finally:
        if before is None:
            del os.environ[_AUTOLOAD]
        else:
            os.environ[_AUTOLOAD] = before


if "torch" not in sys.modules:
    _import_torch_without_extensions()
