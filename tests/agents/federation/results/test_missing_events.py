"""Whatever of what members said is not known to who verifies: no honest member is refuted by name.

Events come one after the other, the last of one that died may never come, and whoever packs an experiment may leave
out what it likes. What is proved of a round then may be less, and nobody is to blame for that.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.federation.events.book import Book
from agents.federation.results import verify as verifying
from agents.federation.results.outcome import Outcome
from agents.federation.results.verify import Computed, unmasking_of, verify
from protocols.entry import Entry
from protocols.rounds import Close
from storage.cid import Cid
from storage.errors import NotFound
from storage.keys import PeerId
from tests.agents.federation.members.test_member import LONG_S, begin, is_done
from tests.agents.federation.secure.test_secure_dealers import LIES, lying, secure
from tests.agents.federation.village import Village, Villager, cid_of, identity, result_of

N, N_SETS = 5, 30


class NoFiles:
    """Results are made of events here."""

    def block(self, cid: Cid) -> bytes:
        raise NotFound(f"no block {cid}")

    def path(self, cid: Cid) -> Path:
        raise NotFound(f"no file {cid}")

    def cid(self, path: Path) -> Cid:
        raise NotFound(f"no file {path}")

    def remember(self, found: Computed) -> None:
        pass


def lived(seed: int, *, is_secure: bool) -> tuple[Village, PeerId | None]:
    """An experiment with losses, and one down at a time; under masks one deals false shares. And who that is."""
    chance, n_down, liar = random.Random(seed), [0], None
    village = secure(seed, n_members=N, loss=0.2, n_rounds=2) if is_secure else begin(seed, n_members=N, loss=0.3)
    if is_secure:
        liar = chance.randrange(N)
        lying(village, liar, chance.choice(LIES), {n for n in range(N) if n != liar and chance.random() < 0.6})

    def revive(villager: Villager) -> None:
        n_down[0] -= 1
        village.revive(villager)

    def on_say(villager: Villager, entry: Entry) -> None:
        if not n_down[0] and villager.name != liar and chance.random() < 0.1 and entry.kind not in ("join", "start"):
            n_down[0] += 1
            village.kill(villager)
            village.after(chance.uniform(0.1, 60.0), lambda: revive(villager))

    village.on_say = on_say
    village.run(4 * LONG_S, lambda: is_done(village) and not n_down[0])
    return village, identity(liar).peer_id if liar is not None else None


def parts_of(entries: list[Entry], chance: random.Random) -> Iterator[list[Entry]]:
    """Without one event, without the last of each author, and without any by chance."""
    alone = list(range(len(entries)))
    for at in chance.sample(alone, min(N_SETS, len(alone))):
        yield entries[:at] + entries[at + 1 :]
    for _ in range(N_SETS):
        ends = {identity(number).peer_id: chance.randrange(60) for number in range(N)}
        yield [one for one in entries if one.sequence < ends[one.author]]
        share = chance.choice([0.02, 0.1, 0.3])
        yield [one for one in entries if chance.random() > share]


@pytest.mark.parametrize(("seed", "is_secure"), [(3, False), (4, False), (101, True), (121, True)])
def test_what_is_missing_blames_nobody_honest(monkeypatch: pytest.MonkeyPatch, seed: int, is_secure: bool) -> None:
    village, liar = lived(seed, is_secure=is_secure)

    def made(book: Book, number: int, close: Close, files: NoFiles, folder: Path) -> Computed:
        final = book.final(number)
        assert final is not None
        if is_secure:
            unmasking_of(book, close)
            result = cid_of("sum", number, village.sum_of(book, number).tobytes())
        else:
            result = result_of(book, number, final.cid)
        return Computed(result, b"", result, (), Outcome((), (), folder, (), ""))

    monkeypatch.setattr(verifying, "recompute", made)
    entries = sorted(
        {one.cid: one for villager in village.villagers for one in villager.book.entries()}.values(),
        key=lambda one: (one.author, one.sequence),
    )
    for part in parts_of(entries, random.Random(seed)):
        book = Book(village.plan)
        book.add_all(part)
        assert {one.by for one in verify(book, NoFiles()) if one.verdict == "refuted"} <= {liar}
