"""What strangers do to a whole daemon on real sockets, attack by attack, and what becomes of the node and of them.

    python -m tests.campaigns.hostile [ATTACK ...] [--list] [--json FILE] [--kill-minutes M] [--seed N]

One daemon stands all attacks, one after the other. While each runs, a friend whom the daemon never met fetches from it;
behind it the daemon answers its user, has not grown, and has none of what the stranger sent. The last row, `kills`, is
of a daemon that dies again and again meanwhile.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio

from agents.errors import unwrapped
from tests.campaigns import hostile_content, hostile_http, hostile_kills, hostile_services, hostile_streams
from tests.campaigns.hostile_scene import CONTENT_BYTES, Attack, Scene, daemon_with_content

MAX_GROWTH_MIB: Final = 64
ATTACK_LIMIT_S: Final = 240.0

NOBODY: Final = "-"  # nobody whom the handshake proved, or nobody who broke a rule
KILLS: Final = "kills"
ATTACKS: Final = (
    hostile_streams.ATTACKS
    | hostile_content.ATTACKS
    | hostile_services.ATTACKS
    | hostile_http.ATTACKS
    | {KILLS: hostile_kills.kills}
)


class Row(NamedTuple):
    """An attack, and its outcome."""

    attack: str
    stranger: str  # what became of it; or what went wrong
    is_well: bool
    fetch_s: float = 0.0
    grew_mib: float = 0.0
    offender: str = NOBODY


async def stand(scene: Scene, name: str, attack: Attack) -> Row:
    """Let one attack happen."""
    began_mib, fetch_s, outcome, is_well = scene.daemon.resident_mib, 0.0, "", True
    before, offenders = await scene.offenders(), set[str]()

    async def befriend() -> None:
        nonlocal fetch_s
        await trio.sleep(0.2)  # behind the attack's beginning
        if name != KILLS:  # there the attack itself has friends, who live with it
            fetch_s = await scene.fetch()

    async def strike() -> None:
        nonlocal outcome
        outcome = await attack(scene)

    try:
        with trio.fail_after(ATTACK_LIMIT_S + (60 * scene.kill_minutes if name == KILLS else 0)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(befriend)
                nursery.start_soon(strike)
        await scene.ask("status")
        if name == KILLS:
            fetch_s = await scene.fetch()
        offenders = {became for peer, became in (await scene.offenders()).items() if peer not in before}
    except* Exception as group:  # noqa: BLE001 - the table tells of it
        outcome, is_well = f"FAILED: {unwrapped(group)!r}"[:300], False
    grew_mib = scene.daemon.resident_mib - began_mib
    is_well = is_well and grew_mib < MAX_GROWTH_MIB
    return Row(name, outcome, is_well, fetch_s, grew_mib, ", ".join(sorted(offenders)) or NOBODY)


async def campaign(scene: Scene, names: Sequence[str], tell: Callable[[Row], None]) -> list[Row]:
    """All these attacks on one daemon."""
    for _ in range(3):
        await scene.fetch()  # what the first ones allocate is no growth
    rows = []
    for name in names:
        rows.append(await stand(scene, name, ATTACKS[name]))
        tell(rows[-1])
    return rows


def line(row: Row) -> str:
    """A row of the table."""
    return (
        f"| {row.attack} | {row.stranger} | {row.offender} | {'yes' if row.is_well else 'NO'} "
        f"| {row.fetch_s:.1f} s | {row.grew_mib:+.0f} MiB |"
    )


HEAD: Final = f"""\
| attack | what came of it | the offender | node well | friend fetched {CONTENT_BYTES >> 20} MiB in | memory |
| --- | --- | --- | --- | --- | --- |"""


def main() -> int:
    """Print the table; 1 where a row is not well."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.hostile", description=str(__doc__).splitlines()[0])
    parser.add_argument("attacks", nargs="*", metavar="ATTACK")
    parser.add_argument("--list", action="store_true", help="name the attacks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--kill-minutes", type=float, default=1.0, metavar="M", help="how long `kills` lasts (1)")
    parser.add_argument("--seed", type=int, default=1, help="what decides when `kills` kills (1)")
    args = parser.parse_args()
    if unknown := set(args.attacks) - ATTACKS.keys():
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    if args.list:
        sys.stdout.write("".join(f"{name}\n" for name in ATTACKS))
        return 0
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    sys.stdout.write(f"{HEAD}\n")

    def tell(row: Row) -> None:
        sys.stdout.write(f"{line(row)}\n")
        sys.stdout.flush()

    with daemon_with_content() as scene:
        scene.kill_minutes, scene.seed = args.kill_minutes, args.seed
        rows = trio.run(campaign, scene, args.attacks or list(ATTACKS), tell)
    if args.json is not None:
        args.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    return 0 if all(row.is_well for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
