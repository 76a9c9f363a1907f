"""Read by Python at start-up where this folder is on PYTHONPATH, so that child processes are simulated too."""

import os

if "NPU_SIM_LIBRARY" in os.environ:
    from simulator import import_hook

    import_hook.enable()
