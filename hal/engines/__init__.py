"""Reach the model inside a serving engine, which lies in processes of its own."""
