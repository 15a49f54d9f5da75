"""`covey`: where the command line begins."""

import sys

from daemon import __version__


def main() -> None:
    """Run the command line and exit. `--version` is answered before anything else is imported."""
    if sys.argv[1:] == ["--version"]:
        print(f"covey {__version__}")
        return
    from daemon.cli.root import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
