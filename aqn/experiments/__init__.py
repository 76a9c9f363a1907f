"""Experiments on noise and dead zones: each one command, with seeds, intervals and corrected p-values."""
