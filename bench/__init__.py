"""Measurements in the lab; each is a command that prints JSON. What a figure means: docs/measuring.md."""
