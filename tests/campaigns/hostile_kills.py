"""A daemon under attack that is killed at random points, by SIGKILL, while it serves, fetches, and takes things in.

It has to come up again each time, with all that it said it has done; what friends fetch from it, and it from them, goes
on over its deaths to the end. What it is attacked with, and when it dies, one seed decides.
"""

import os
import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio

from daemon.lifecycle import running
from protocols.bitswap.shell import Exchange, run_exchange
from protocols.errors import Remote
from protocols.fetch.dag import fetch_dag
from protocols.net_libp2p import open_network
from storage.blockstore import EVERYTHING, Sight
from storage.cid import Cid
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.unixfs import add_path
from tests.campaigns import hostile_content, hostile_streams
from tests.campaigns.hostile_scene import LOOPBACK, Attack, Scene

MAX_LIFE_S: Final = 8.0
MAX_BIRTH_S: Final = 2.5  # within which it may be killed while it starts
STILLBORN_FRAC: Final = 0.25
START_LIMIT_S: Final = 60.0
TRY_S: Final = 10.0  # then a fetch from a daemon that died begins again, with what came
CHECK_LIMIT_S: Final = 60.0
N_OLDER: Final = 5  # of what was acknowledged in earlier lives, looked at after each death
N_ATTACKERS: Final = 2
MAX_PEAK_MIB: Final = 320.0  # of any of its lives
GIVEN_BYTES: Final = 4 << 20
RUDE: Final[dict[str, Attack]] = {
    name: attack
    for name, attack in (hostile_streams.ATTACKS | hostile_content.ATTACKS).items()
    if name not in ("slow-loris", "half-handshakes", "records")  # they last longer than a life
}


class Story:
    """What was acknowledged, what was carried over, and how often the daemon died."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.chance = random.Random(scene.seed)
        self.fresh: list[Cid] = []  # acknowledged in this life
        self.older: list[Cid] = []
        self.trusted: list[str] = []
        self.n_lives = self.n_stillborn = self.n_taken = self.n_given = self.n_tries = 0
        self.peak_mib = 0.0
        self.slowest_s = 0.0
        self.is_up = trio.Event()
        self.is_up.set()

    async def _ask(self, *args: str) -> list[dict[str, Any]]:
        """A command, which may find it alive and see it die. Raises: AssertionError where it does."""
        await self.is_up.wait()  # a command that finds nobody takes the time of a start from it
        return await self.scene.ask(*args)

    async def add(self) -> None:
        """Have it take in one file after the other. It is acknowledged when the command has ended well."""
        while True:
            data = self.scene.folder / "acknowledged"
            data.write_bytes(os.urandom(self.chance.randrange(1000, 1 << 20)))
            with suppress(AssertionError):
                said = await self._ask("add", str(data), "--visibility", "public")
                self.fresh.append(Cid.parse(said[-1]["cid"]))
            await trio.sleep(0.05)

    async def trust(self) -> None:
        """Have it trust one peer after the other."""
        while True:
            peer = str(Identity.generate().peer_id)
            with suppress(AssertionError):
                await self._ask("peer", "trust", peer, "--kinds", "rounds")
                self.trusted.append(peer)
            await trio.sleep(0.5)

    async def take(self) -> None:
        """A friend fetches what is public, again and again; what came before a death counts behind it."""
        async with open_network(Identity.generate(), LOOPBACK) as network:
            while True:
                exchange = Exchange(network, MemoryBlockstore(), lambda peer: Sight())
                async with running(run_exchange, exchange):
                    await self._until_done(partial(self._fetch, exchange, self.scene.cid))
                self.n_taken += 1

    async def give(self) -> None:
        """It fetches from a friend, file after file."""
        store = MemoryBlockstore()
        async with (
            open_network(Identity.generate(), LOOPBACK) as network,
            running(run_exchange, Exchange(network, store, lambda peer: EVERYTHING)),
        ):
            while True:
                content = self.scene.folder / "given"
                content.write_bytes(secrets.token_bytes(GIVEN_BYTES))
                cid = add_path(store, content)
                await self._until_done(partial(self._get, str(cid), network.addresses()[0], content.read_bytes()))
                self.n_given += 1

    async def _get(self, cid: str, provider: str, content: bytes) -> None:
        out = self.scene.folder / f"out-{secrets.token_hex(8)}"
        await self._ask("get", cid, "--provider", provider, "--out", str(out))
        is_same = out.read_bytes() == content
        out.unlink()
        if not is_same:
            raise ValueError("it wrote other bytes than it was given")

    async def _fetch(self, exchange: Exchange, cid: Cid) -> None:
        await fetch_dag(exchange, cid, providers=[self.scene.info])

    async def _until_done(self, errand: Callable[[], Awaitable[None]]) -> None:
        is_done = False
        while not is_done:
            try:
                with trio.fail_after(TRY_S):
                    await errand()
                is_done = True
            except* (Remote, trio.TooSlowError, AssertionError):
                self.n_tries += 1
                await trio.sleep(0.2)

    async def attack(self) -> None:
        """Somebody is always at it; what comes of it, the other rows tell."""
        while True:
            with suppress(Exception), trio.move_on_after(MAX_LIFE_S):
                await RUDE[self.chance.choice(sorted(RUDE))](self.scene)
            await trio.sleep(0.5)

    async def die_and_rise(self) -> None:
        """Kill it; sometimes once more while it starts; then it has to come up, with all that it acknowledged."""
        daemon = self.scene.daemon
        self.peak_mib = max(self.peak_mib, daemon.most_resident_mib)
        self.is_up = trio.Event()
        await trio.to_thread.run_sync(daemon.close)
        self.n_lives += 1
        began_s = trio.current_time()
        daemon.begin()
        while self.chance.random() < STILLBORN_FRAC:
            await trio.sleep(self.chance.uniform(0, MAX_BIRTH_S))
            await trio.to_thread.run_sync(daemon.close)
            self.n_stillborn += 1
            began_s = trio.current_time()
            daemon.begin()
        with trio.fail_after(START_LIMIT_S):
            address = await trio.to_thread.run_sync(daemon.wait_until_up, abandon_on_cancel=True)
        self.is_up.set()
        self.slowest_s = max(self.slowest_s, trio.current_time() - began_s)
        assert address == self.scene.daemon.address, f"it listens at {address}, and did at {self.scene.daemon.address}"

    async def check(self, older: list[Cid]) -> None:
        """A friend whom it never met fetches all that it acknowledged in its last life, and some of what was before."""
        fresh, self.fresh = self.fresh, []
        with trio.fail_after(CHECK_LIMIT_S):
            async with open_network(Identity.generate(), LOOPBACK) as network:
                exchange = Exchange(network, MemoryBlockstore(), lambda peer: Sight())
                async with running(run_exchange, exchange):
                    for cid in (*fresh, *older):
                        await self._until_done(partial(self._fetch, exchange, cid))
        self.older += fresh

    async def check_trust(self) -> None:
        """Nobody is forgotten whom it said it trusts."""
        trusted = list(self.trusted)
        there = {row["peer"] for row in (await self.scene.ask("peer", "ls"))[0] if "rounds" in row["trusted"]}
        assert there.issuperset(trusted), f"{len(set(trusted) - there)} of {len(trusted)} whom it trusted are forgotten"


async def kills(scene: Scene) -> str:
    """Attacks and honest work, and SIGKILL again and again, for `scene.kill_minutes`."""
    story = Story(scene)
    end_s = trio.current_time() + 60 * scene.kill_minutes
    async with trio.open_nursery() as nursery:
        for task in (story.add, story.trust, story.take, story.give, *[story.attack] * N_ATTACKERS):
            nursery.start_soon(task)
        while trio.current_time() < end_s:
            await trio.sleep(story.chance.uniform(0, MAX_LIFE_S))
            await story.die_and_rise()
            await story.check(story.chance.sample(story.older, min(N_OLDER, len(story.older))))
        nursery.cancel_scope.cancel()
    await story.check(list(story.older))
    await story.check_trust()
    assert story.n_taken and story.n_given, "no transfer came to its end"
    assert story.peak_mib < MAX_PEAK_MIB, f"it took {story.peak_mib:.0f} MiB in one of its lives"
    return (
        f"{story.n_lives + story.n_stillborn} kills, {story.n_stillborn} of them while it started; up again each time,"
        f" after {story.slowest_s:.1f} s at most; {len(story.older)} files and {len(story.trusted)} trusts"
        f" acknowledged, none lost; {story.n_taken} fetches from it and {story.n_given} by it ended well, over"
        f" {story.n_tries} breaks; {story.peak_mib:.0f} MiB at most"
    )
