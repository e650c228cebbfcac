"""What the tests with real nodes share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from segment import Segment, Talker, echoing

from jumpvpn.audit.auditor import audit_files
from jumpvpn.lab import Lab, LabError
from jumpvpn.lab.deployment import Deployment
from jumpvpn.tracecheck import validate

TRACES = 24  # sessions that TLC looks at, chosen by a fixed seed; the auditor looks at all


@pytest.fixture(scope="session", autouse=True)
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every deployment's journals are judged when it ends; at the end, all of them once more and a sample by TLC."""
    Deployment.archive = tmp_path_factory.mktemp("journals")
    yield
    logs, Deployment.archive = sorted(Deployment.archive.iterdir()), None
    if not logs:
        return
    reports = [audit_files([log]) for log in logs]
    assert all(report.sound for report in reports), [report.explain() for report in reports if not report.sound]
    traces = validate(logs, sample=TRACES, seed=1)
    assert traces.accepted, [str(finding) for finding in traces.rejected]
    output = request.config.getoption("--audit-output")
    if output is not None:
        _tell(Path(output), logs)


def _tell(output: Path, logs: list[Path]) -> None:
    found: dict[str, dict[str, int]] = {"rows": {}, "reasons": {}, "properties": {}}
    events = 0
    for report in map(audit_files, ([log] for log in logs)):
        events += report.events
        for kind, counts in report.coverage.items():
            for name, count in counts.items():
                found[kind][name] = found[kind].get(name, 0) + count
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"logs": len(logs), "events": events, **found}), encoding="utf-8")


@contextmanager
def _where_allowed() -> Iterator[None]:
    """A machine that does not allow network namespaces skips what needs them."""
    try:
        yield
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture
def segment() -> Iterator[Segment]:
    with _where_allowed():
        segment = Segment()
    try:
        yield segment
    finally:
        segment.close()


@pytest.fixture
def server(segment: Segment) -> Talker:
    """Answers in both families, beside the gateways."""
    return echoing(segment, "server")


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(seed=5)
    with _where_allowed():
        lab.open()
    try:
        if (missing := lab.missing_tun()) is not None:
            pytest.skip(missing)
        yield lab
    finally:
        lab.close()
