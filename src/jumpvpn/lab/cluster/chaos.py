"""A campaign of random harm: one story per seed, each on a cluster of its own, until seeds or time are used up."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jumpvpn.lab.cluster.scenario import STORIES, Scenario, random_scenario
from jumpvpn.lab.cluster.trial import Outcome, run
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.traffic.pacing import boot_ns

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run as ``python -m jumpvpn.lab.cluster.chaos``; 0 if every promise held, 1 if not, 130 after Ctrl-C."""
    options = _options(argv)
    outcomes: list[Outcome] = []
    try:
        asyncio.run(_campaign(_stories(options), options, outcomes))
    except LabError as error:
        _say(f"error: {error}")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("interrupted; the lab is gone")
        return _INTERRUPTED
    bad = [outcome for outcome in outcomes if not outcome.ok]
    if options.json:
        print(json.dumps(summary(outcomes), indent=2))
    else:
        counts = f"{len(outcomes)} stories, {sum(len(o.steps) for o in outcomes)} harms"
        print(f"{counts}, {sum(o.traces.judged for o in outcomes)} traces judged by TLC, {len(bad)} broke a promise")
    return 1 if bad or not outcomes else 0


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The campaign as plain JSON values."""
    return {
        "ok": all(outcome.ok for outcome in outcomes) and bool(outcomes),
        "stories": len(outcomes),
        "traces": sum(outcome.traces.judged for outcome in outcomes),
        "harms": sum(len(outcome.steps) for outcome in outcomes),
        "failed": [outcome.scenario.name for outcome in outcomes if not outcome.ok],
        "outcomes": [outcome.document() for outcome in outcomes],
    }


async def _campaign(stories: Sequence[Scenario], options: argparse.Namespace, outcomes: list[Outcome]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    end_ns = boot_ns() + round(options.minutes * 60e9)
    for number, story in enumerate(stories, 1):
        if boot_ns() >= end_ns:
            _say(f"{options.minutes:g} min are over after {number - 1} of {len(stories)} stories")
            return
        _say(f"[{number}/{len(stories)}] {story.name}: {story.gateways} gateways, {1 + story.crowd} clients")
        keep = options.output / story.name
        outcome = await run(story, lambda words: _say(f"    {words}"), keep)
        outcomes.append(outcome)
        said = f"{'held' if outcome.ok else 'BROKEN'} in {outcome.seconds:.0f} s"
        _say(f"    {said}, owners {' '.join(outcome.owners)}, {outcome.traces.judged} traces judged")
        if not outcome.ok:
            _say("\n".join(f"    {line}" for line in outcome.explain().splitlines()))
            _say(f'    what it left: {keep}; again with: make chaos ARGS="{_again(story)}"')


def _stories(options: argparse.Namespace) -> list[Scenario]:
    if options.story:
        known = {story.name: story for story in STORIES}
        if unknown := [name for name in options.story if name not in known]:
            raise LabError(f"no story is called {unknown[0]!r}; there are {', '.join(known)}")
        return [known[name] for name in options.story]
    if options.seed is not None:
        return [random_scenario(options.seed)]
    return [random_scenario(options.first + number) for number in range(options.seeds)]


def _again(story: Scenario) -> str:
    return f"--story {story.name}" if story in STORIES else f"--seed {story.seed}"


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jumpvpn.lab.cluster.chaos", description=__doc__)
    parser.add_argument("--seeds", type=_count, default=20, help="how many stories (default 20)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--seed", type=int, help="this one story only, to see it again")
    parser.add_argument("--story", action="append", help="a fixed story of the tests, by name; may be repeated")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no story after this time (default 10)")
    parser.add_argument("--json", action="store_true", help="write the outcomes as JSON")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("chaos-output"),
        metavar="DIR",
        help="where broken stories leave their files",
    )
    return parser.parse_args(argv)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
