"""What every command has. Cheap to import: `covey status` does it."""

import click


def json_option() -> click.Option:
    """`--json`, as every command has it."""
    return click.Option(["--json", "as_json"], is_flag=True, help="Print JSON (a stream: a line for each item).")
