"""One suite that decides whether two accelerators agree: the same cases on each backend, judged by named standards.

`python -m conformance run --backend NAME --json FILE` on each machine, `python -m conformance compare A.json B.json`
anywhere, or `pytest --pyargs conformance --backend NAME`. Importing the package alone loads nothing, because
pytest does so in every environment it is installed in.
"""
