"""Scan the model that an engine serves, where it lies: in the engine's own worker processes."""

from srdd.live.scan import scan_engine

__all__ = ["scan_engine"]
