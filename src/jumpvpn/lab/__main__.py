"""The lab from a terminal: `python -m jumpvpn.lab up`, and in another terminal `... exec ID client -- bash`."""

import argparse
import os
import signal
import sys
from textwrap import dedent

from jumpvpn.lab import topology
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.lab import Lab
from jumpvpn.lab.link import Link
from jumpvpn.lab.namespaces import NamespaceSet, living, sweep
from jumpvpn.lab.topology import SERVER_PUBLIC, UPLINKS


def main() -> None:
    """Parse the command line and run one command; exit status 1 with one line where the lab refuses."""
    parser = argparse.ArgumentParser(prog="python -m jumpvpn.lab", description=__doc__)
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("up", help="build a lab, show it, keep it until Ctrl-C")
    up.add_argument("--delay", type=float, nargs=2, metavar=("WIFI_MS", "LTE_MS"), help="emulated one-way delays")
    up.set_defaults(run=_up)
    commands.add_parser("check", help="build a lab, reach everything once, remove it").set_defaults(run=_check)
    commands.add_parser("list", help="show living labs, remove what dead ones left").set_defaults(run=_list)
    inside = commands.add_parser("exec", help="run a program in a lab")
    inside.add_argument("id")
    inside.add_argument("namespace", choices=topology.NAMESPACES)
    inside.add_argument("argv", nargs="+")
    inside.set_defaults(run=_exec)
    options = parser.parse_args()
    try:
        options.run(options)
    except LabError as error:
        sys.exit(f"lab: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _up(options: argparse.Namespace) -> None:
    wifi, lte = (Link.with_delay(delay) for delay in options.delay) if options.delay else (Link(), Link())
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    with Lab(wifi, lte) as lab:
        print(_drawing(), f"lab {lab.id}: python -m jumpvpn.lab exec {lab.id} client -- bash", sep="\n", flush=True)
        signal.pause()


def _check(_: argparse.Namespace) -> None:
    with Lab() as lab:
        print(_drawing())
        for uplink in UPLINKS.values():
            lab.run("client", ["ping", "-c1", "-W2", "-I", uplink.interface, SERVER_PUBLIC])
            print(f"{uplink.interface}: the server is reached through {uplink.name}")
        print(lab.missing_tun() or "/dev/net/tun: usable")


def _list(_: argparse.Namespace) -> None:
    for removed in sweep():
        print(f"{removed}  removed: its owner was killed")
    for record in living():
        print(f"{record['id']}  owner {record['owner']}, namespaces {' '.join(record['namespaces'])}")


def _exec(options: argparse.Namespace) -> None:
    command = NamespaceSet.attach(options.id).command(options.namespace, options.argv)
    os.execvp(command[0], command)  # noqa: S606 - the program takes our place


def _drawing() -> str:
    return dedent((topology.__doc__ or "").partition("::")[2].partition("The gateway is")[0])


if __name__ == "__main__":
    main()
