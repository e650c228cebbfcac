"""Writes every hexadecimal string of spec/vectors as a seed for every fuzz target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent


def strings(value: object) -> Iterator[str]:
    """All strings inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def seeds() -> Iterator[bytes]:
    """All byte strings of all vectors."""
    for path in sorted((HERE.parent / "spec" / "vectors").glob("*.json")):
        for text in strings(json.loads(path.read_text())):
            try:
                yield bytes.fromhex(text)
            except ValueError:
                continue


def main() -> None:
    """Fills `corpus/<target>/`; names are hashes, so running twice changes nothing."""
    for target in sorted((HERE / "fuzz_targets").glob("*.rs")):
        directory = HERE / "corpus" / target.stem
        directory.mkdir(parents=True, exist_ok=True)
        for seed in seeds():
            (directory / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    main()
