"""Writes as the tests of the stores make them."""

from __future__ import annotations

from jumpvpn.runtime.stores.base import Write

SESSION = b"s" * 16


def a_write(version: int = 1, **changes: object) -> Write:
    """The commit of ``version`` over the one before it, as a gateway without a cluster makes it."""
    values: dict[str, object] = {
        "session_id": SESSION,
        "expected_version": version - 1 or None,
        "version": version,
        "state": "ATTACHED",
        "epoch": version,
        "body": b"body %d" % version,
        "sealed": b"sealed %d" % version,
        "chain": "s:aa",
        "seq": version,
        "head": f"{version:064d}",
        "lines": (b"line %d\n" % version,),
        "device": None,
        "write_id": f"w{version}",
    }
    return Write(**{**values, **changes})  # type: ignore[arg-type]


def owned(version: int = 1, owner: str = "gw1", term: int = 1, **changes: object) -> Write:
    """A write of ``owner``; births are shared, later versions are written behind unless ``shared`` is given."""
    theirs = {"write_id": f"{owner}-{term}-{version}", "owner": owner, "term": term, "shared": version == 1}
    return a_write(version, **{**theirs, **changes})
