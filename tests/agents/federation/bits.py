"""What rounds of adapters, buffers, and bounds that move give, as hashes: the same in every order, on every machine."""

import hashlib
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agents.federation.privacy.clipping import AdaptiveBound
from agents.federation.results.outcome import Submitted, compute
from agents.federation.updates.lora import resized, update_layout
from agents.federation.updates.tensors import Layout, flush, new_vector, read_layout
from protocols.rounds import Plan, Submit, read_plan
from storage.cid import RAW, Cid
from tests.agents.federation.lora_examples import RANK, WAYS, initial, numbers, settings, task
from tests.agents.federation.village import identity, make_plan

N = 5
BUFFER = Layout.of({"a": (7, 11), "b": (300,)})


def plan(**changes: Any) -> Plan:
    return read_plan(make_plan(N, **changes)[1])


def file(path: Path, layout: Layout, name: str) -> Path:
    vector = new_vector(path, layout)
    vector[:] = numbers(name, layout.n_params)
    flush(vector, path)
    return path


def submitted(path: Path, client: int, staleness: int = 0) -> Submitted:
    update = Cid.of(path.read_bytes(), RAW)
    submit = Submit(round=1, base=Cid.of(b"base", RAW), update=update, n_samples=10 * client + 1, n_steps=client + 1)
    return Submitted(identity(client).peer_id, submit, path, staleness)


class Round:
    """A closed set of a way's updates, or of a buffer's; `digest` computes it."""

    def __init__(self, folder: Path, name: str, number: int = 1, rank: int = RANK) -> None:
        self._folder, self._number, self._n_done = folder, number, 0
        folder.mkdir()
        if name == "fedbuff":
            self._plan = plan(rule={"rule": "fedbuff", "max_staleness": 3})
            self._base = file(folder / "base", BUFFER, "base")
            layouts = [BUFFER] * N
        else:
            self._plan, self._base = plan(task=settings(name, rank=rank)), initial(folder, name, rank=rank)
            way = task(name).way
            wanted = update_layout(way, number, read_layout(self._base))
            layouts = [resized(wanted, 1 + client % rank) if way.takes_ranks else wanted for client in range(N)]
        self.updates = [
            submitted(
                file(folder / f"update-{client}", layout, f"{name} {client}"), client, client % 4 * (name == "fedbuff")
            )
            for client, layout in enumerate(layouts)
        ]

    def digest(self, updates: list[Submitted], n_threads: int = 1) -> str:
        self._n_done += 1
        out = self._folder / f"out-{self._n_done}"
        out.mkdir()
        outcome = compute(self._plan, self._base, updates, out, seed=b"seed", number=self._number, n_threads=n_threads)
        assert not outcome.failed and len(outcome.admitted) == N
        return hashlib.sha256(outcome.tensors.read_bytes()).hexdigest()


ROUNDS = (*WAYS, "fedbuff")


def bounds() -> str:
    """Where a bound goes that is told many a count."""
    state, hashed = AdaptiveBound(1.0, 0.3, 0.17), hashlib.sha256()
    for count in numbers("counts", 500, 2.0**-12).tolist():
        state = state.moved(count, 8)
        hashed.update(struct.pack("<d", state.bound))
    return hashed.hexdigest()


def digests() -> dict[str, str]:
    """All of them."""
    with TemporaryDirectory() as name:
        found = {}
        for one, number in (*((one, 1) for one in ROUNDS), ("rolora", 2)):
            made = Round(Path(name) / f"{one}-{number}", one, number)
            found[f"round {number} of {one}"] = made.digest(made.updates)
    return found | {"bounds": bounds()}
