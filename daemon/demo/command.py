"""The command itself."""

import signal
import sys

import click

from daemon.api import faults


@click.command
@click.argument("story", type=click.Choice(["adapters", "federated", "workspace"]), default="adapters")
@click.option(
    "--tiny",
    is_flag=True,
    help="Use a very small model, trained on the spot, and in `workspace` none: about a minute in all.",
)
@click.option(
    "--task",
    type=click.Choice(["lora", "softmax"]),
    help="What `federated` trains: LoRA on a very small model, or a classifier that needs no engine "
    "(default: LoRA where an engine is installed).",
)
@click.option("--keep", is_flag=True, help="Keep the homes afterwards, and say where they are.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a line for each step.")
def demo(story: str, tiny: bool, task: str | None, keep: bool, as_json: bool) -> int:
    """Show what Covey does, with daemons on this machine.

    `adapters`: one trains an adapter, the other's chat answers with it. `federated`: three train together, the one who
    coordinates is killed, and a fourth proves the result; it takes a minute or two, with LoRA a few more. `workspace`:
    four agents on three nodes answer a question from documents, and one node is killed in the middle.

    Everything happens in temporary homes on this machine and ends by itself. Exit code 0 means that every step held.
    """
    from daemon.demo.stage import Stage, StepFailed
    from daemon.demo.story import SMALL, TINY, play

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the daemons end with the demo
    with Stage(keep=keep, as_json=as_json) as stage:
        try:
            if story == "federated":
                from daemon.demo.federated import play as play_federated

                play_federated(stage, task)
            elif story == "workspace":
                from daemon.demo.workspace import play as play_workspace

                play_workspace(stage, is_tiny=tiny)
            else:
                play(stage, TINY if tiny else SMALL)
        except StepFailed as failure:
            stage.fail(failure)
            return faults.EXIT_FAILED
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return faults.EXIT_INTERRUPTED
    return faults.EXIT_OK
