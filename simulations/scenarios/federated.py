"""Every scenario of federated rounds, one after the other, as a table."""

import argparse
from collections.abc import Iterator
from typing import Final

from simulations.crowd import add_arguments as add_crowd_arguments

SUMMARY: Final = "all scenarios of federated rounds, as a table: what was expected, and whether it came"
PREFIX: Final = "fl_"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options; each other option has its own default."""
    add_crowd_arguments(parser)
    parser.add_argument("--only", nargs="*", default=(), help="these alone, such as: nan churn")


def run(args: argparse.Namespace) -> str:
    """Simulate all."""
    return "\n".join(lines(args))


def lines(args: argparse.Namespace) -> Iterator[str]:
    """The table, row by row."""
    from simulations.scenarios import SCENARIOS  # it is among them itself

    yield "| scenario | came | what was simulated |"
    yield "| --- | --- | --- |"
    for name, scenario in sorted(SCENARIOS.items()):
        short = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or (args.only and short not in args.only):
            continue
        parser = argparse.ArgumentParser()
        scenario.add_arguments(parser)
        own = parser.parse_args(
            ["--participants", str(args.participants), "--selected", str(args.selected), "--seed", str(args.seed)]
        )
        first = scenario.run(own).splitlines()[0]
        yield f"| {short} | {first.rpartition(': ')[2]} | {scenario.summary} |"
