"""Wall clocks that jump for one process, while its boot clock, and everybody else's clocks, go on as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jumpvpn.lab.errors import LabError

_SOURCE = Path(__file__).with_name("lying_clock.c")
_BUILD_S = 60.0


class LyingClock:
    """The wall clock of one process: right until `jump`. Raises LabError if there is no C compiler."""

    def __init__(self, directory: Path, name: str) -> None:
        self._library = directory / "lying_clock.so"
        self._file = directory / f"{name}.clock"
        if not self._library.exists():
            _build(self._library)
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs in its environment."""
        return {"LD_PRELOAD": str(self._library), "JUMPVPN_LAB_CLOCK": str(self._file)}

    def set(self, offset_s: float) -> None:
        """Let the clock be wrong by this much from the next reading on."""
        with self._file.open("r+b" if self._file.exists() else "w+b") as file:
            file.write(round(offset_s * 1e9).to_bytes(8, sys.byteorder, signed=True))


def _build(library: Path) -> None:
    argv = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_BUILD_S, check=False)
    except FileNotFoundError:
        raise LabError("a wall clock that jumps needs a C compiler; install: apt-get install gcc libc6-dev") from None
    if done.returncode != 0:
        raise LabError(f"the preloaded clock could not be built: {done.stderr.strip()[-300:]}")
