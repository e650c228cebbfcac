"""The directory of a cluster: made as a whole or not at all, renewed and extended in place, never overwritten."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jumpvpn.cli import cluster_templates as texts
from jumpvpn.cli.certificates import CLIENT, LEAF_DAYS, SERVER, Authority, BadAuthority, Pair, hosts_of, subject_of
from jumpvpn.cli.cluster_plan import Gateway, Member, Plan, broken, demand
from jumpvpn.cli.failures import USAGE_FAILURE, Failure
from jumpvpn.config import KEY_BYTES, encode_key, parse_client, parse_gateway
from jumpvpn.policy.problems import Rejected

PLAN_FILE = "cluster.json"
CLUSTER_KEY = "cluster.key"
_SECRET, _OPEN = 0o600, 0o644
_LONGEST_FILE = 1 << 20  # certificates, keys and the plan are a few KiB; more is another file


@dataclass(slots=True)
class Made:
    """What a command wrote, for its report."""

    directory: Path
    cluster: str
    authority_ends: datetime.datetime
    files: list[dict[str, Any]] = field(default_factory=list)
    certificates: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: files with ``secret``, certificates with their names and end."""
        return {
            "cluster": self.cluster,
            "directory": str(self.directory),
            "authority_ends": _stamp(self.authority_ends),
            "files": self.files,
            "certificates": self.certificates,
        }


class _Writer:
    """Writes below ``base`` and reports it as below ``Made.directory``. What it replaces is replaced at once."""

    def __init__(self, base: Path, made: Made) -> None:
        self._base, self._made = base, made

    def text(self, name: str, text: str) -> None:
        """A file that everybody may read."""
        self._write(name, text.encode(), _OPEN)

    def secret(self, name: str, content: bytes) -> None:
        """A file for its owner alone."""
        self._write(name, content, _SECRET)

    def pair(self, name: str, pair: Pair) -> None:
        """``name.pem`` and ``name.key``."""
        self._write(f"{name}.key", pair.key, _SECRET)
        self._write(f"{name}.pem", pair.certificate, _OPEN)
        self._made.certificates.append(
            {
                "file": f"{name}.pem",
                "subject": subject_of(pair.certificate),
                "hosts": list(hosts_of(pair.certificate)),
                "ends": _stamp(pair.ends),
            }
        )

    def private_key(self, name: str) -> str:
        """A gateway's own key; its public key in base64."""
        from jumpvpn.runtime.keys import create_private_key

        self._tell(name, _SECRET)
        return create_private_key(self._base / name)

    def _write(self, name: str, content: bytes, mode: int) -> None:
        path = self._base / name
        beside = path.with_name(path.name + ".fresh")
        beside.unlink(missing_ok=True)  # of a command that was cut short
        _create(beside, content, mode)
        beside.replace(path)
        self._tell(name, mode)

    def _tell(self, name: str, mode: int) -> None:
        self._made.files.append({"file": name, "secret": mode == _SECRET})


def create(directory: Path, plan: Plan) -> Made:
    """Make the whole directory. Raises Failure when there is one with something in it."""
    if directory.is_symlink() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
        raise Failure(f"{directory} exists already and is not empty; name another directory", USAGE_FAILURE)
    now = datetime.datetime.now(datetime.UTC)
    authority = Authority.create(f"Jumping VPN cluster {plan.name}", now)
    made = Made(directory, plan.name, authority.certificate.not_valid_after_utc)
    with _aside(directory) as base:
        writer = _Writer(base, made)
        writer.pair("ca/ca", authority.pair())
        key = encode_key(secrets.token_bytes(KEY_BYTES)).encode() + b"\n"
        writer.secret(CLUSTER_KEY, key)
        for member in plan.members:
            _write_member(writer, plan, member, authority, now)
        public = {one.name: _write_gateway(writer, plan, one, authority, key, now) for one in plan.gateways}
        _write_common(writer, plan, public, made.authority_ends)
        _demand_usable(base, plan)
    return made


def extend(directory: Path, gateways: tuple[Gateway, ...]) -> Made:
    """Add gateways to a directory that ``create`` made. Raises Failure."""
    old = read_plan_file(directory)
    plan = Plan(old.name, (*old.gateways, *gateways), old.members)
    demand(broken(plan))
    authority = _authority(directory)
    key, now = _read(directory / CLUSTER_KEY), datetime.datetime.now(datetime.UTC)
    made = Made(directory, plan.name, authority.certificate.not_valid_after_utc)
    writer = _Writer(directory, made)
    taken = [directory / one.folder for one in gateways if (directory / one.folder).exists()]
    if taken:
        raise Failure(f"{taken[0]} exists already; move it away if no gateway uses it", USAGE_FAILURE)
    public = _public_keys(directory / "clients.toml")
    missing = [one.name for one in old.gateways if one.name not in public]
    if missing:
        raise Failure(f"{directory / 'clients.toml'} does not name the gateway {missing[0]}", USAGE_FAILURE)
    public |= {one.name: _write_gateway(writer, plan, one, authority, key, now) for one in gateways}
    _write_common(writer, plan, public, made.authority_ends)
    return made


def renew(directory: Path, node: str | None) -> Made:
    """Fresh certificates and keys for all nodes, or those called ``node``. Raises Failure."""
    plan = read_plan_file(directory)
    authority, now = _authority(directory), datetime.datetime.now(datetime.UTC)
    made = Made(directory, plan.name, authority.certificate.not_valid_after_utc)
    nodes: list[Member | Gateway] = [*plan.members, *plan.gateways]
    names = [name for one in nodes if _is_meant(one, node) for name in _pairs(one)]
    if not names:
        known = ", ".join(sorted({one.name for one in nodes}))
        raise Failure(f"the cluster has no node {node!r}; its nodes are {known}", USAGE_FAILURE)
    pairs = [(name, _renewed(directory / f"{name}.pem", authority, now)) for name in names]
    writer = _Writer(directory, made)
    for name, pair in pairs:  # all were made before the first is written
        writer.pair(name, pair)
    return made


def read_plan_file(directory: Path) -> Plan:
    """The plan of a directory that ``create`` made. Raises Failure."""
    path = directory / PLAN_FILE
    try:
        return Plan.from_json(json.loads(_read(path)))
    except ValueError:
        raise Failure(f"{path} is damaged; it is the plan that 'jumpvpn cluster init' wrote", USAGE_FAILURE) from None


def _write_member(writer: _Writer, plan: Plan, one: Member, authority: Authority, now: datetime.datetime) -> None:
    # etcd's server asks itself over its own certificate (the JSON gateway), so that must do for a client too.
    server, peer = (authority.issue(one.name, (one.host,), (SERVER, CLIENT), now) for _ in range(2))
    writer.text(f"{one.folder}/ca.pem", authority.pair().certificate.decode())
    writer.pair(f"{one.folder}/server", server)
    writer.pair(f"{one.folder}/peer", peer)
    writer.text(f"{one.folder}/etcd.yaml", texts.etcd(plan, one))
    writer.text(f"{one.folder}/etcd.default", texts.etcd_environment())


def _write_gateway(
    writer: _Writer, plan: Plan, one: Gateway, authority: Authority, cluster_key: bytes, now: datetime.datetime
) -> str:
    """Everything of one gateway; its public key. Its certificate names no host: etcd lets it in from anywhere."""
    writer.text(f"{one.folder}/gateway.toml", texts.gateway(plan, one))
    writer.text(f"{one.folder}/ca.pem", authority.pair().certificate.decode())
    writer.pair(f"{one.folder}/etcd-client", authority.issue(one.name, (), (CLIENT,), now))
    writer.secret(f"{one.folder}/{CLUSTER_KEY}", cluster_key)
    return writer.private_key(f"{one.folder}/gateway.key")


def _write_common(writer: _Writer, plan: Plan, public: dict[str, str], ends: datetime.datetime) -> None:
    writer.text("clients.toml", texts.clients(plan, public))
    writer.text("README.txt", texts.readme(plan, LEAF_DAYS, _stamp(ends)))
    writer.text(PLAN_FILE, json.dumps(plan.as_json(), indent=2) + "\n")


def _demand_usable(base: Path, plan: Plan) -> None:
    """What we write must pass our own check."""
    try:
        for one in plan.gateways:
            path = base / one.folder / "gateway.toml"
            parse_gateway(path.read_text(encoding="utf-8"), path.parent)
        parse_client('private_key_file = "k"\n' + (base / "clients.toml").read_text(encoding="utf-8"), base)
    except Rejected as error:
        raise Failure(f"a gateway's file would not be valid: {error}", USAGE_FAILURE) from None


def _public_keys(clients: Path) -> dict[str, str]:
    try:
        known = parse_client('private_key_file = "k"\n' + _read(clients).decode("utf-8", "replace"), clients.parent)
    except Rejected as error:
        raise Failure(f"{clients}: {error}", USAGE_FAILURE) from None
    return {peer.name: peer.public_key for peer in known.gateway}


def _authority(directory: Path) -> Authority:
    certificate, key = directory / "ca/ca.pem", directory / "ca/ca.key"
    try:
        return Authority.read(_read(certificate), _read(key))
    except BadAuthority as error:
        raise Failure(f"the authority in {certificate.parent} {error}", USAGE_FAILURE) from None


def _renewed(path: Path, authority: Authority, now: datetime.datetime) -> Pair:
    try:
        return authority.renew(_read(path), now)
    except BadAuthority as error:
        raise Failure(f"the authority {error}", USAGE_FAILURE) from None
    except ValueError as error:
        raise Failure(f"{path}: cannot be renewed: {error}", USAGE_FAILURE) from None


def _is_meant(one: Member | Gateway, node: str | None) -> bool:
    return node is None or node in (one.name, one.folder)


def _pairs(one: Member | Gateway) -> tuple[str, ...]:
    names = ("server", "peer") if isinstance(one, Member) else ("etcd-client",)
    return tuple(f"{one.folder}/{name}" for name in names)


@contextlib.contextmanager
def _aside(directory: Path) -> Iterator[Path]:
    """A directory beside ``directory`` that takes its name when the block ends well, and is removed otherwise."""
    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.absolute().parent))
    try:
        yield base
        base.rename(directory)
    except BaseException:
        shutil.rmtree(base, ignore_errors=True)
        raise


def _create(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask says
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_FILE)
    except FileNotFoundError:
        raise Failure(
            f"there is no {path}; 'jumpvpn cluster init' makes the directory with it", USAGE_FAILURE
        ) from None


def _stamp(instant: datetime.datetime) -> str:
    return f"{instant:%Y-%m-%d}"
