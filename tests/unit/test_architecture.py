"""Directions that the import contracts cannot see, because the native module is no Python source."""

from __future__ import annotations

import ast
from pathlib import Path

import jumpvpn

SOURCES = Path(jumpvpn.__file__).parent


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_only_the_door_to_the_packet_core_imports_it() -> None:
    importers = {
        str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py") if "jumpvpn._native" in _imports(path)
    }
    assert importers == {"runtime/dataplane.py"}
