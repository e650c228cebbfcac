"""Commands that prepare a machine: keygen, pubkey, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jumpvpn.cli import templates
from jumpvpn.cli.failures import USAGE_FAILURE, Failure, reported
from jumpvpn.config import (
    DEFAULT_PORT,
    KEY_BYTES,
    ClientConfig,
    GatewayConfig,
    encode_key,
    parse_client,
    parse_gateway,
)
from jumpvpn.policy.problems import Problem, Rejected

CONFIG_DIR = Path("/etc/jumpvpn")
_CONFIG_MODE = 0o600
_PLACEHOLDER_ADDRESS = f"vpn.example.org:{DEFAULT_PORT}"
_PLACEHOLDER_KEY = "the gateway's public key"
_SOME_VALID_KEY = encode_key(bytes(KEY_BYTES))

init_commands = typer.Typer(help="Write a commented configuration and a key.", rich_markup_mode=None)

DirOption = Annotated[Path, typer.Option("--dir", help="Where the files go.")]
NameOption = Annotated[str, typer.Option("--name", help="How events and the other side call this node.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a configuration that is there (never a key).")]


def keygen(file: Annotated[Path, typer.Argument(help="Where the private key goes (mode 0600).")]) -> None:
    """Make a private key in FILE and print its public key."""
    with reported():
        from jumpvpn.runtime.keys import create_private_key

        typer.echo(create_private_key(file))


def pubkey(file: Annotated[Path, typer.Argument(help="A private key file.")]) -> None:
    """Print the public key of the private key in FILE."""
    with reported():
        typer.echo(_public_key(file))


@init_commands.command("gateway")
def init_gateway(directory: DirOption = CONFIG_DIR, name: NameOption = "gateway", force: ForceOption = False) -> None:
    """Write gateway.toml and gateway.key, and say what to do next."""
    with reported():
        text = templates.gateway(name, "gateway.key")
        _demand_valid(lambda: parse_gateway(text, directory))
        config = _write_config(directory / "gateway.toml", text, is_forced=force)
        public = _key(directory / "gateway.key")
        typer.echo(
            f"wrote {config}\n"
            f"public key of this gateway: {public}\n\n"
            f"next, on each client (ADDRESS is how clients reach this machine):\n"
            f"  jumpvpn init client --gateway ADDRESS:{DEFAULT_PORT} --gateway-key {public}\n"
            f"paste the [[device]] block that it prints into {config}, open UDP port {DEFAULT_PORT}, then here:\n"
            f"  jumpvpn gateway --config {config}"
        )


@init_commands.command("client")
def init_client(
    directory: DirOption = CONFIG_DIR,
    name: NameOption = "client",
    gateway: Annotated[str, typer.Option("--gateway", help="host:port of the gateway.")] = "",
    gateway_key: Annotated[str, typer.Option("--gateway-key", help="Public key of the gateway.")] = "",
    force: ForceOption = False,
) -> None:
    """Write client.toml and client.key, print the [[device]] block for the gateway, and say what to do next."""
    with reported():
        is_complete = bool(gateway and gateway_key)
        address = gateway or _PLACEHOLDER_ADDRESS
        text = templates.client(name, "client.key", address, gateway_key or _PLACEHOLDER_KEY)
        checked = templates.client(name, "client.key", address, gateway_key or _SOME_VALID_KEY)
        _demand_valid(lambda: parse_client(checked, directory))
        config = _write_config(directory / "client.toml", text, is_forced=force)
        public = _key(directory / "client.key")
        fill_in = "" if is_complete else f"put the gateway's address and public key into {config}\n"
        typer.echo(
            f"wrote {config}\n\n"
            f"next, paste this into the gateway's gateway.toml and restart it:\n\n"
            f"{templates.device(name, public)}\n"
            f"{fill_in}then here:\n"
            f"  jumpvpn up --config {config}"
        )


def check_files(config: GatewayConfig | ClientConfig) -> None:
    """Read every secret and certificate that ``config`` names. Raises KeyFileError, Failure."""
    from jumpvpn.runtime.keys import read_cluster_key, read_private_key

    read_private_key(config.private_key_file)
    cluster = config.cluster if config.role == "gateway" else None
    if cluster is None:
        return
    from jumpvpn.runtime.stores.base import StoreUnavailable
    from jumpvpn.runtime.stores.etcd.config import EtcdConfig, Identity

    read_cluster_key(cluster.key_file)
    try:
        Identity.read(EtcdConfig(cluster.etcd, cluster.ca, cluster.certificate, cluster.key, cluster.name, config.name))
    except (StoreUnavailable, ValueError) as error:
        raise Failure(f"cluster: {error}", USAGE_FAILURE) from None


def _demand_valid(parse: object) -> None:
    """What we write must pass our own check; only the caller's words can be wrong."""
    assert callable(parse)
    try:
        parse()
    except Rejected as error:
        raise Failure(
            "; ".join(str(Problem(p.path, p.message, p.value)) for p in error.problems), USAGE_FAILURE
        ) from None


def _write_config(path: Path, text: str, *, is_forced: bool) -> Path:
    if path.exists() and not is_forced:
        raise Failure(f"{path} exists already; use --force to replace it, or --dir for another place", USAGE_FAILURE)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=_CONFIG_MODE)
    path.chmod(_CONFIG_MODE)
    path.write_text(text, encoding="utf-8")
    return path


def _key(path: Path) -> str:
    """Public key of the key in ``path``, which is made if absent."""
    from jumpvpn.runtime.keys import create_private_key

    return _public_key(path) if path.exists() else create_private_key(path)


def _public_key(path: Path) -> str:
    from jumpvpn.runtime.keys import public_key_of

    return public_key_of(path)
