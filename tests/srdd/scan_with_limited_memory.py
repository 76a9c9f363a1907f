"""Run the command line in a process whose memory is limited to what it holds now and a little more.

Arguments: which limit (AS as `ulimit -v`, DATA as `ulimit -d`), MiB beyond what is held, or of the whole limit where
it starts with "=", a small checkpoint to warm up with, and the arguments of `python -m srdd`. What a process holds
before any model is the libraries' own code and arenas, more than a gigabyte of address space: a first scan brings all
of it in, so that the limit is on what the model and its scan take.
"""

from __future__ import annotations

import resource
import sys

import psutil

from srdd.cli import main

if __name__ == "__main__":
    kind, budget, small, *arguments = sys.argv[1:]
    if main(["--backend", "cpu-reference", "--stream", "--quiet", "--model", small]) != 0:
        raise SystemExit("the warm-up failed")
    used = psutil.Process().memory_info()
    held = used.vms if kind == "AS" else used.data
    limit = int(budget[1:]) * 2**20 if budget.startswith("=") else held + int(budget) * 2**20
    resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (limit, limit))
    sys.stdout.write(f"limit {limit} held {held}\n")
    sys.exit(main(arguments))
