"""The demonstration: a real download through a real tunnel while everything under it fails."""
