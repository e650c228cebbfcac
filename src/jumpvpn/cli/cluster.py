"""Commands for gateways that share their sessions: ``jumpvpn cluster init``, ``add``, ``renew``, ``status``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jumpvpn.cli.failures import reported

if TYPE_CHECKING:
    from jumpvpn.cli.cluster_files import Made

cluster_commands = typer.Typer(
    help="Set up and look at gateways that share their sessions (docs/cluster.md).", rich_markup_mode=None
)

DirArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of the cluster's files.")]
GatewayOption = Annotated[
    list[str],
    typer.Option("--gateway", metavar="NAME=HOST:PORT[,inside=IF]", help="A gateway, where clients reach it."),
]
ControlOption = Annotated[Path | None, typer.Option("--control", help="The gateway's control socket.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The gateway's configuration file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@cluster_commands.command("init")
def init(
    directory: DirArgument,
    name: Annotated[str, typer.Option("--name", help="The cluster's name.")],
    gateway: GatewayOption,
    etcd: Annotated[
        list[str], typer.Option("--etcd", metavar="NAME=HOST[:PORT]", help="An etcd server; three are usual.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Make an authority, all certificates and keys, and one ready directory for each node.

    inside=IF names a gateway's interface to the network behind it, where it announces the inner addresses that it owns.
    """
    with reported():
        from jumpvpn.cli import cluster_files, cluster_plan

        plan = cluster_plan.read_plan(name, gateway, etcd)
        made = cluster_files.create(directory, plan)
        if len(plan.members) % 2 == 0:
            odd, less = len(plan.members) + 1, len(plan.members) - 1
            _warn(f"{len(plan.members)} etcd servers survive no more failures than {less}; {odd} do")
        elif len(plan.members) == 1:
            _warn("with one etcd server nothing can be committed while it is down; three survive the loss of one")
        _report(made, f"next: {directory / 'README.txt'} says what to copy where", as_json=as_json)


@cluster_commands.command("add")
def add(directory: DirArgument, gateway: GatewayOption, as_json: JsonOption = False) -> None:
    """Add gateways to a cluster: a certificate, a key and a ready directory for each."""
    with reported():
        from jumpvpn.cli import cluster_files, cluster_plan

        problems: list[str] = []
        gateways = cluster_plan.read_gateways(gateway, problems)
        cluster_plan.demand(problems)
        made = cluster_files.extend(directory, gateways)
        _report(made, f"next: copy the directories as {directory / 'README.txt'} says", as_json=as_json)


@cluster_commands.command("renew")
def renew(
    directory: DirArgument,
    node: Annotated[str | None, typer.Option("--node", help="Only for this node (default: for all).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Issue fresh certificates and keys from the cluster's own authority, with the names of the old ones."""
    with reported():
        from jumpvpn.cli import cluster_files

        made = cluster_files.renew(directory, node)
        _report(
            made,
            "next: copy them over the old ones on their nodes; etcd and gateways take them up without a restart",
            as_json=as_json,
        )


@cluster_commands.command("status")
def status(
    sessions: Annotated[bool, typer.Option("--sessions", help="Each session with its owner, not only counts.")] = False,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, max=60, help="Seconds between looks.")] = 1.0,
    control: ControlOption = None,
    config: ConfigOption = None,
) -> None:
    """Show the gateways of the cluster, the store, and who owns which session, as the gateway here sees them."""
    from jumpvpn.cli import cluster_status, node, watching

    with reported():
        path = node.control_path(control, config)
        question = watching.Question(cluster_status.COMMAND, cluster_status.cluster_view, {"sessions": sessions})
        with node.asking_gateway(path):
            if watch:
                watching.watch(path, question, interval, as_json=as_json)
            else:
                watching.show(path, question, as_json=as_json)


def _report(made: Made, next_step: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(made.as_json(), indent=2))
        return
    for file in made.files:
        typer.echo(f"{made.directory / file['file']}{'  (secret, mode 0600)' if file['secret'] else ''}")
    typer.echo()
    for certificate in made.certificates:
        hosts = f" for {', '.join(certificate['hosts'])}" if certificate["hosts"] else ""
        typer.echo(f"{certificate['file']}: {certificate['subject']}{hosts}, until {certificate['ends']}")
    secret = made.directory / "ca" / "ca.key"
    typer.echo(f"\n{secret} can issue more of them: keep it apart from every node\n{next_step}")


def _warn(text: str) -> None:
    sys.stderr.write(f"jumpvpn: {text}\n")
