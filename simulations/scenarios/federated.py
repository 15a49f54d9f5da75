"""Every scenario of federated rounds, one after the other, as a table."""

import argparse
from collections.abc import Iterator
from typing import Final

SUMMARY: Final = "all scenarios of federated rounds, as a table: what was expected, and whether it came"
PREFIX: Final = "fl_"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options; each other option has its own default."""
    parser.add_argument("--participants", type=int, default=200, help="how many, up to 1,000 (default 200)")
    parser.add_argument("--selected", type=int, default=40, help="of a round (default 40)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance (default 1)")
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
