"""The command ``jumpvpn``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from jumpvpn.cli import audit, cluster, failures, node, replay, setup
from jumpvpn.cli.failures import USAGE_FAILURE, Failure, reported
from jumpvpn.leaving import CLOSED_PIPE, INTERRUPTED, nothing_left, silence

commands = typer.Typer(
    name="jumpvpn",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_commands = typer.Typer(help="Work with configuration files.", rich_markup_mode=None)
commands.add_typer(config_commands, name="config")
commands.add_typer(setup.init_commands, name="init")
commands.add_typer(cluster.cluster_commands, name="cluster")
commands.add_typer(audit.audit_commands, name="audit")
commands.add_typer(replay.policy_commands, name="policy")
commands.command("replay")(replay.replay)
commands.command("keygen")(setup.keygen)
commands.command("pubkey")(setup.pubkey)

ControlOption = Annotated[Path | None, typer.Option("--control", help="The node's control socket.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The node's configuration file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
SessionOption = Annotated[str | None, typer.Option("--session", help="Which session (its uid); needed with several.")]


def app() -> None:
    """Entry point: every error is one line on stderr and an exit code (2 usage or configuration, 1 while running)."""
    try:
        _command()
    except SystemExit as leaving:
        cut_short = isinstance(leaving.__context__, BrokenPipeError)  # which typer turns into exit status 1
        if cut_short or not nothing_left():
            silence()
            raise SystemExit(CLOSED_PIPE) from None
        raise


def _command() -> NoReturn:
    try:
        code = commands(standalone_mode=False)
    except typer.Abort:
        raise SystemExit(INTERRUPTED) from None
    except typer.Exit as leaving:
        code = leaving.exit_code
    except typer.TyperException as error:
        failures.fail(f"{usage_words(error)}; see 'jumpvpn --help'", USAGE_FAILURE)
    raise SystemExit(code if isinstance(code, int) else 0)


def usage_words(error: typer.TyperException) -> str:
    """What typer says about a wrong command line, in one line."""
    format_message = getattr(error, "format_message", None)
    text = format_message() if callable(format_message) else str(error)
    return " ".join(str(text).split()).rstrip(".")


@commands.callback(invoke_without_command=True)
def without_command(context: typer.Context) -> None:
    """Jumping VPN: the session survives the death of its transports.

    Exit status: 0 done, or stopped when asked to; 1 cannot run or cannot go on; 2 the command line or a configuration
    is wrong; 3 the client's session was ended by a rule, which it names.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(USAGE_FAILURE)


@commands.command()
def up(
    config: Annotated[Path, typer.Option("--config", "-c", help="The client's file.")] = node.CLIENT_CONFIG,
) -> None:
    """Run the client until it is told to stop (Ctrl-C, SIGTERM or 'jumpvpn down')."""
    with reported():
        from jumpvpn.config import load_client

        loaded = load_client(config)
        from jumpvpn.client import run

        _leave(run(loaded))


@commands.command()
def gateway(
    config: Annotated[Path, typer.Option("--config", "-c", help="The gateway's file.")] = node.GATEWAY_CONFIG,
) -> None:
    """Run the gateway until it is told to stop (Ctrl-C, SIGTERM or 'jumpvpn down')."""
    with reported():
        from jumpvpn.config import load_gateway

        loaded = load_gateway(config)
        from jumpvpn.gateway import run

        _leave(run(loaded))


@commands.command()
def status(
    control: ControlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, max=60, help="Seconds between looks.")] = 0.5,
) -> None:
    """Show the session, its transports, and what is left of every budget."""
    from jumpvpn.cli import watching

    with reported():
        path = node.control_path(control, config)
        if watch:
            watching.watch(path, watching.STATUS, interval, as_json=as_json)
        else:
            watching.show(path, watching.STATUS, as_json=as_json)


@commands.command()
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    as_json: JsonOption = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="How many of the newest to show.")] = 20,
    file: Annotated[Path | None, typer.Option("--file", help="The event journal.")] = None,
    control: ControlOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what happened, newest last."""
    from jumpvpn.cli import watching

    with reported():
        path = node.events_path(file, control, config)
        watching.show_events(path, last, follow=follow, as_json=as_json)


@commands.command()
def explain(
    session: Annotated[str, typer.Argument(help="The beginning of its uid; needed with several.")] = "",
    at: Annotated[str | None, typer.Option("--at", help='A time: "-5min", "14:03:05" or RFC 3339.')] = None,
    event: Annotated[str | None, typer.Option("--event", help="An event: its number, or chain/number.")] = None,
    log: Annotated[Path | None, typer.Option("--log", help="An event log instead of a running node.")] = None,
    control: ControlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say in words why a session is where it is, by which rule, what comes next and what would change it.

    Exit status: 0 explained; 1 the node failed to answer; 2 no such session, event or time, or no readable log.
    """
    from jumpvpn.cli import explain as explaining

    with reported():
        question = explaining.Question(session, at, event)
        explaining.run(question, control, config, log, as_json=as_json)


@commands.command()
def down(control: ControlOption = None, config: ConfigOption = None) -> None:
    """Stop the node; everything it installed is removed before this command returns."""
    from jumpvpn.cli import watching

    with reported():
        watching.stop(node.control_path(control, config))


@commands.command("drain")
def drain_gateway(
    timeout: Annotated[str, typer.Option("--timeout", help="How long to wait, such as 60s or 5min.")] = "60s",
    stop: Annotated[bool, typer.Option("--stop", help="Stop the gateway once no session is left.")] = False,
    off: Annotated[bool, typer.Option("--off", help="Take it back: serve again.")] = False,
    as_json: JsonOption = False,
    control: ControlOption = None,
    config: ConfigOption = None,
) -> None:
    """Ask this gateway's clients to move to other gateways, and wait until no session is left here.

    Ctrl-C ends the waiting, not the drain. Exit status: 0 none is left; 1 some are left when the time is over.
    """
    from jumpvpn.cli import drain

    with reported():
        if off and stop:
            raise Failure("give --off or --stop, not both", USAGE_FAILURE)
        path = node.control_path(control, config)
        with node.asking_gateway(path):
            if off:
                drain.take_back(path, as_json=as_json)
            else:
                _leave(drain.run(path, timeout, stop=stop, as_json=as_json))


@commands.command()
def switch(
    to: Annotated[str, typer.Option("--to", help="Transport to use, as 'status' names it, or its interface.")],
    session: SessionOption = None,
    control: ControlOption = None,
    config: ConfigOption = None,
) -> None:
    """Move the session to another transport; policy may deny it, and says why."""
    with reported():
        answer = node.ask(control, config, "switch", to=to, session=session)
        typer.echo(answer if isinstance(answer, str) else f"switching to {to}")


@commands.command()
def terminate(
    session: Annotated[str | None, typer.Argument(help="The session's uid; needed with several.")] = None,
    control: ControlOption = None,
    config: ConfigOption = None,
) -> None:
    """End a session for good; its identity never comes back."""
    with reported():
        answer = node.ask(control, config, "terminate", session=session)
        typer.echo(answer if isinstance(answer, str) else "terminated")


@config_commands.command("check")
def config_check(
    file: Annotated[Path, typer.Argument(help="A gateway's or a client's file.")], as_json: JsonOption = False
) -> None:
    """Check a file and everything it refers to; all problems are reported at once."""
    with reported():
        from jumpvpn.config import load_either

        loaded = load_either(file)
        setup.check_files(loaded)
        if as_json:
            typer.echo(json.dumps({"ok": True, "role": loaded.role, "policy_digest": loaded.policy.digest()}))
        else:
            typer.echo(f"{file}: good ({loaded.role} {loaded.name}, policy {loaded.policy.version})")


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Run the demonstration in network namespaces of its own."""
    with reported():
        from jumpvpn.lab.demo import main

        _leave(main(context.args))


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def lab(context: typer.Context) -> None:
    """Work with the network laboratory."""
    with reported():
        from jumpvpn.lab.__main__ import main

        sys.argv = ["jumpvpn lab", *context.args]
        main()


@commands.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        typer.echo(f"jumpvpn {version_of('jumpvpn')}")
    except PackageNotFoundError:
        raise Failure("the package is not installed; run 'make setup'") from None


def _leave(code: object) -> None:
    """Pass a role's exit code on."""
    if isinstance(code, int) and code != 0:
        sys.exit(code)


if __name__ == "__main__":
    app()
