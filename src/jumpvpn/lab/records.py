"""The file of a traffic tool's result: one line of JSON, then plain arrays of numbers, written whole or not at all."""

import json
import sys
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jumpvpn.lab.errors import LabError


def write_result(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, "array[int]"]) -> None:
    """Write facts and arrays; the file appears under its name only when it is complete."""
    layout = [[name, values.typecode, len(values)] for name, values in arrays.items()]
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(json.dumps({**facts, "byteorder": sys.byteorder, "arrays": layout}).encode() + b"\n")
        for values in arrays.values():
            values.tofile(file)
    draft.rename(path)


def read_result(path: Path) -> tuple[dict[str, Any], dict[str, "array[int]"]]:
    """Return the facts and the arrays of a result file; raises LabError if it is not one."""
    try:
        with path.open("rb") as file:
            facts: dict[str, Any] = json.loads(file.readline())
            arrays = {}
            for name, typecode, length in facts.pop("arrays"):
                arrays[name] = array(typecode)
                arrays[name].fromfile(file, length)
        if facts.pop("byteorder") != sys.byteorder:
            for values in arrays.values():
                values.byteswap()
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise LabError(f"{path} is not a result of a traffic tool: {error}") from error
    return facts, arrays
