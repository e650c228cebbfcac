"""Recordings: what a node's engine was told, and the events that followed; replayed, and tried with other policies."""
