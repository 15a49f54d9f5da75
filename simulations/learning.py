"""A crowd that learns: linear regression on data of each member's own, rounds computed from files as members do.

What is bad about some of the members is up to the scenario: an attack says what each sends in place of its update. Two
shadows learn beside the crowd with the same members selected: a plain mean of all updates, and one of the honest alone.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from agents.aggregation.updates import Vector
from agents.federation.events.book import Book
from agents.federation.members.actions import Action, Compute, Train
from agents.federation.members.member import Member
from agents.federation.results.outcome import refusals
from agents.federation.results.verify import Computed, recompute, tensors_before
from agents.federation.updates.tensors import MAX_TENSORS_BYTES, Layout, new_vector, read_layout, read_vector
from protocols.rounds import Close, Submit
from simulations.crowd import STEP_S, Crowd, outcome
from simulations.crowd import add_arguments as add_crowd_arguments
from storage.cid import RAW, Cid
from storage.errors import NotFound
from storage.keys import PeerId

N_FEATURES: Final = 20
N_SAMPLES: Final = 64  # of each member
NOISE: Final = 0.5
RATE: Final = 0.1
N_STEPS: Final = 5
N_ROUNDS: Final = 6

Floats = npt.NDArray[np.float64]


class Bad(NamedTuple):
    """What somebody bad knows in a round: who it is, its own honest update and that on labels of the other sign, and
    the updates of the honest selected.
    """

    number: int
    own: Floats
    flipped: Floats
    honest: Floats

    @property
    def middle(self) -> Floats:
        """The mean of the honest."""
        found: Floats = self.honest.mean(axis=0)
        return found

    @property
    def spread(self) -> Floats:
        """Their deviation."""
        found: Floats = self.honest.std(axis=0)
        return found


Attack = Callable[[Bad], Floats]


class Shelf:
    """Files and documents by their CIDs, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blocks: dict[Cid, bytes] = {}

    def block(self, cid: Cid) -> bytes:
        """A result's document. Raises: NotFound."""
        if cid not in self._blocks:
            raise NotFound(f"{cid} is not here")
        return self._blocks[cid]

    def path(self, cid: Cid, max_bytes: int = MAX_TENSORS_BYTES) -> Path:
        """Raises: NotFound."""
        path = self.folder / str(cid)
        if not path.exists():
            raise NotFound(f"{cid} is not here")
        return path

    def cid(self, path: Path) -> Cid:
        """Add a file."""
        data = path.read_bytes()
        cid = Cid.of(data, RAW)
        (self.folder / str(cid)).write_bytes(data)
        return cid

    def remember(self, found: Computed) -> None:
        """Keep a result's document."""
        self._blocks[found.result] = found.data

    def add(self, layout: Layout, vector: Vector) -> Cid:
        """Add tensors."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            new_vector(Path(name) / "new", layout)[:] = vector
            return self.cid(Path(name) / "new")

    def vector(self, cid: Cid) -> Vector:
        """The tensors of that CID."""
        path = self.path(cid)
        return np.array(read_vector(path, read_layout(path)))


def new_folder() -> "tempfile.TemporaryDirectory[str]":
    """In memory, where it can be: a simulation writes thousands of small files."""
    memory = Path("/dev/shm")  # noqa: S108
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


class Learners(Crowd):
    """Members with data. `bad` are the first `n_bad` after the deputies, or spread over all by chance."""

    def __init__(
        self, n_members: int, seed: int, folder: Path, *, n_bad: int, attack: Attack | None, **changes: Any
    ) -> None:
        self.shelf: Final = Shelf(folder)
        self.layout: Final = Layout.of({"w": (N_FEATURES,)})
        initial = self.shelf.add(self.layout, np.zeros(N_FEATURES, np.float32))
        fixed: dict[str, Any] = {"initial": initial, "n_rounds": N_ROUNDS, "is_evaluated": False}
        super().__init__(n_members, seed, **fixed | changes)
        self._seed, self._attack = seed, attack
        self.truth = np.random.default_rng((seed, 0)).normal(size=N_FEATURES)
        self.bad = frozenset(self.chance.sample(range(5, n_members), n_bad))
        self._numbers = {one.peer_id: number for number, one in enumerate(self.identities)}
        self._computed: dict[Cid, Computed] = {}
        self.refused: dict[int, list[tuple[PeerId, str]]] = {}
        self.n_lies = 0
        # Models beside the crowd's: of a mean over all that was sent, and over the honest.
        self.shadows = {"mean of all": np.zeros(N_FEATURES), "mean of the honest": np.zeros(N_FEATURES)}

    def update(self, number: int, model: Floats, *, is_flipped: bool = False) -> Floats:
        """What a member's gradient descent adds to a model; the same whenever it is asked for."""
        chance = np.random.default_rng((self._seed, 1, number))
        x = chance.normal(size=(N_SAMPLES, N_FEATURES))
        y = x @ self.truth + NOISE * chance.normal(size=N_SAMPLES)
        local = model.copy()
        for _ in range(N_STEPS):
            local -= RATE * x.T @ (x @ local - (-y if is_flipped else y)) / N_SAMPLES
        return local - model

    def sent(self, number: int, model: Floats, selected: list[int]) -> Floats:
        """What a member sends of a model, true or not."""
        own = self.update(number, model)
        if number not in self.bad or self._attack is None:
            return own
        honest = np.stack([self.update(one, model) for one in selected if one not in self.bad][:N_KNOWN])
        return self._attack(Bad(number, own, self.update(number, model, is_flipped=True), honest))

    def error(self, model: Floats) -> float:
        """How far a model is from the truth, as a part of it."""
        return float(np.linalg.norm(model - self.truth) / np.linalg.norm(self.truth))

    def model(self, number: int = 0) -> Floats:
        """What a member has in the end."""
        book = self.members[number].book
        tensors = tensors_before(book, book.plan.n_rounds + 1, self.shelf)[0]
        return self.shelf.vector(tensors).astype(np.float64)

    def _do(self, number: int, actions: list[Action]) -> None:
        others: list[Action] = []
        for action in actions:
            match action:
                case Train():
                    self._later(number, self.train_s[number], lambda m, a=action: self._trained(number, m, a))  # type: ignore[misc]
                case Compute():
                    self._later(number, STEP_S, lambda m, a=action: self._settled(m, a))  # type: ignore[misc]
                case _:
                    others.append(action)
        super()._do(number, others)

    def _selected(self, book: Book, number: int) -> list[int]:
        return [self._numbers[peer] for peer in book.selected(number) or ()]

    def _trained(self, number: int, member: Member, action: Train) -> list[Action]:
        base = tensors_before(member.book, action.round, self.shelf)[0]
        model = self.shelf.vector(base).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            update = self.sent(number, model, self._selected(member.book, action.round)).astype(np.float32)
        self.n_lies += number in self.bad
        cid = self.shelf.add(self.layout, update)
        return member.trained(action.round, base, cid, N_SAMPLES, N_STEPS, None, self.now_s)

    def _settled(self, member: Member, action: Compute) -> list[Action]:
        """A result is a function of files: what one member has computed, the others would compute again."""
        final = member.book.final(action.round)
        assert final is not None
        if final.cid not in self._computed:
            out = Path(tempfile.mkdtemp(dir=self.shelf.folder))
            found = recompute(member.book, action.round, cast(Close, final.event), self.shelf, out)
            shutil.rmtree(out)
            self.shelf.remember(found)
            self._computed[final.cid] = found
            self._cast_shadows(member.book, action.round, cast(Close, final.event))
            self.refused[action.round] = [(one.peer, one.reason) for one in found.outcome.verdicts if one.reason]
        found = self._computed[final.cid]
        return member.computed(action.round, found.result, self.now_s, refusals(found.outcome), action.close)

    def _cast_shadows(self, book: Book, number: int, close: Close) -> None:
        """The same members, and what they would send of a shadow's model."""
        selected = self._selected(book, number)
        submitted = [said for said in map(book.get, close.submissions) if said and isinstance(said.event, Submit)]
        who = [self._numbers[said.author] for said in submitted]
        for name, model in self.shadows.items():
            takes = [one for one in who if name == "mean of all" or one not in self.bad]
            with np.errstate(over="ignore", invalid="ignore"):
                self.shadows[name] = model + np.mean([self.sent(one, model, selected) for one in takes], axis=0)


N_KNOWN: Final = 40  # of the honest, whom the bad ones see


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every scenario with an attack."""
    add_crowd_arguments(parser)
    parser.add_argument("--bad", type=float, default=0.2, help="which part of the participants is bad (default 0.2)")


def attacked(
    name: str,
    args: argparse.Namespace,
    attack: Attack,
    is_met: Callable[[Learners, dict[str, float]], bool],
    **changes: Any,
) -> str:
    """Simulate rounds with an attack under a rule for as many bad ones as may be selected; say what came of it."""
    n_bad = round(args.bad * args.participants)
    most = min(n_bad, (args.selected - 1) // 2 - 1)  # of one round; a rule for more than that there is not
    robust = {
        "rule": {"rule": "trimmed_mean", "n_bad": most},
        "before": ({"before": "nnm", "n_bad": most},),
    }
    with new_folder() as folder:
        settings = {"n_selected": args.selected, **robust} | changes
        crowd = Learners(args.participants, args.seed, Path(folder), n_bad=n_bad, attack=attack, **settings)
        crowd.start()
        crowd.run(900.0)
        agreed = crowd.agreed()
        errors = {"of the rule": crowd.error(crowd.model()) if agreed else float("inf")}
        errors |= {name: crowd.error(model) for name, model in crowd.shadows.items()}
    n_refused = sum(map(len, crowd.refused.values()))
    found: dict[str, object] = {"ended after, s": crowd.now_s, "bad": n_bad, "false updates": crowd.n_lies}
    found |= {"refused at admission": n_refused}
    found |= {f"error {what}": f"{error:.3f}" for what, error in errors.items()}
    return outcome(name, found, agreed and is_met(crowd, errors))


def holds(crowd: Learners, errors: dict[str, float]) -> bool:
    """The rule comes as near as the honest alone would, or nearly."""
    return errors["of the rule"] <= errors["mean of the honest"] + MARGIN


def holds_where_the_mean_does_not(crowd: Learners, errors: dict[str, float]) -> bool:
    """The same, and a plain mean is far off."""
    return holds(crowd, errors) and not errors["mean of all"] < 2 * errors["of the rule"]


MARGIN: Final = 0.05
