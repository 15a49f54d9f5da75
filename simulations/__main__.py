"""`python -m simulations SCENARIO [options]`: run one and print its table."""

import argparse
import logging
import sys

import structlog

from simulations.scenarios import SCENARIOS


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print. Returns: the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulations", description=__doc__)
    commands = parser.add_subparsers(dest="scenario", required=True, metavar="SCENARIO")
    for scenario in SCENARIOS.values():
        told = scenario.summary.replace("%", "%%")  # argparse formats it
        scenario.add_arguments(commands.add_parser(scenario.name, help=told, description=told))
    args = parser.parse_args(arguments)
    sys.stdout.write(SCENARIOS[args.scenario].run(args) + "\n")
    return 0


if __name__ == "__main__":
    # What nodes under attack or behind a cut log is no part of the table.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    sys.exit(main())
