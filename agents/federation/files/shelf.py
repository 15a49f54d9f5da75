"""The store as rounds use it: tensors as files under their CIDs, kept for the experiment and shown to its members."""

import os
import shutil
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Final

from agents.adapters.ports import Ports
from agents.errors import AgentError
from agents.federation.files.possession import possession
from agents.federation.results.outcome import read_document
from agents.federation.results.verify import Computed
from agents.federation.updates.tensors import MAX_TENSORS_BYTES, BadTensors, longest_update
from protocols.rounds import Plan
from storage.blockstore import MadeBlock, Visibility
from storage.cid import DAG_PB, IDENTITY, RAW, Cid
from storage.dag import reach
from storage.errors import Corrupt, InvalidBlock, InvalidName, NotAFile, NotFound, NotUnixfs, TooLarge
from storage.keys import PeerId
from storage.pins import PinKind, PinState
from storage.sealed import open_sealed, seal_path
from storage.unixfs import COVEY_WEIGHTS, add_path, cid_of_path, export, stat

Readers = tuple[PeerId, ...]
_NO_FILE: Final = (NotAFile, NotUnixfs, InvalidBlock, InvalidName, TooLarge)


class LetGo(AgentError):
    """The experiment was let go of here meanwhile. To take part again: covey fl join CID --from PEER."""

    code = "let_go"

    def __init__(self, text: str = "this node has let go of the experiment meanwhile") -> None:
        super().__init__(text)


def pins_of(experiment: Cid) -> tuple[str, str]:
    """The names of the pins under which an experiment holds what it needs, and notes what became its own here."""
    return f"rounds/{experiment}", f"rounds/{experiment}/own"


class Shelf:
    """What `agents.federation.results.verify.Files` asks for, over a store; files of the moment stand in `folder`."""

    def __init__(self, ports: Ports, folder: Path) -> None:
        self._store = ports.store
        self._folder = folder

    def block(self, cid: Cid) -> bytes:
        """A block. Raises: NotFound."""
        return self._store.get(cid)

    def path(self, cid: Cid, max_bytes: int = MAX_TENSORS_BYTES) -> Path:
        """The file's bytes. What is no file, whoever submitted it, has none.

        Raises: NotFound, also for what is longer than it can be: a few blocks, linked to often, say any length, and
        nobody computed anything from that; Corrupt, DiskFull.
        """
        path = self._folder / str(cid)
        if not path.exists():
            try:
                about = stat(self._store, cid)
                if about.target is not None or about.is_directory:
                    raise NotAFile(f"{cid} is no file")
                if about.n_bytes > max_bytes:
                    raise NotFound(f"{cid} is a file of {about.n_bytes:,} bytes, and {max_bytes:,} are the most")
                export(self._store, cid, path)
            except Corrupt:
                raise
            except _NO_FILE:
                path.write_bytes(b"")
        return path

    def cid(self, path: Path) -> Cid:
        """Add a file: its CID."""
        return add_path(self._store, path, COVEY_WEIGHTS)


class CheckedShelf(Shelf):
    """As `CheckedFiles` asks for it: for who only checks, what is computed stands in `folder` alone, found by its CID.

    In the store it would pass for what was here before, and is the experiment's no more: see `Keep.note_own`.
    """

    def __init__(self, ports: Ports, folder: Path) -> None:
        super().__init__(ports, folder)
        self._documents: dict[Cid, bytes] = {}

    def block(self, cid: Cid) -> bytes:
        """See `Shelf`."""
        return self._documents[cid] if cid in self._documents else super().block(cid)

    def cid(self, path: Path) -> Cid:
        """The CID that a file would have in the store."""
        cid = cid_of_path(path, COVEY_WEIGHTS)
        if not (here := self._folder / str(cid)).exists():
            try:
                os.link(path, here)
            except OSError:  # from another file system
                shutil.copyfile(path, here)
        return cid

    def remember(self, found: Computed) -> None:
        """Have a result's document found by its CID, as its files are; nothing is stored."""
        self._documents[found.result] = found.data


class Keep:
    """What an experiment holds in the store: pins under its name, and what its members may see."""

    def __init__(self, ports: Ports, experiment: Cid, plan: Plan) -> None:
        self._ports = ports
        self._plan = plan
        self.pin, self.own_pin = pins_of(experiment)  # of what is its own: see `note_own`
        self.owned: Final[dict[Cid, bytes]] = {}  # by file that was made here: what shows others that it is here
        self.readers: Readers = plan.members
        """Who is shown things now: whom the plan names, and who is in the round at hand (`grants.readers`)."""
        self.ever: Collection[PeerId] = plan.members
        """Who can have been shown things for this experiment. Others whom a file is shown to have it by another way."""
        self._lock: Final = Lock()
        self._is_let_go = False

    def let_go(self) -> None:
        """From now on nothing is held or shown for it any more, whoever is at work with it."""
        with self._lock:
            self._is_let_go = True

    @contextmanager
    def _while_kept(self) -> Iterator[None]:
        with self._lock:
            if self._is_let_go:
                raise LetGo
            yield

    def own_update(
        self, path: Path, charge: Callable[[Cid], None] = lambda cid: None, readers: Readers | None = None
    ) -> tuple[Cid, Cid | None]:
        """Add an update that was made here, and keep it: its CID, and that of what the members are shown of it.

        The second is the update sealed to them, or None where the plan has updates shown as they are. `charge` counts
        what it tells before anybody may see it; what it raises keeps the update here. readers: of its round.
        """
        store, readers = self._ports.store, readers or self.readers
        with store.lease():
            cid = add_path(store, path, COVEY_WEIGHTS)
            charge(cid)
            self.hold(cid)
            self.note_own(cid)
            sealed = seal_path(store, path, readers).cid if self._plan.is_sealed else None
            if sealed is not None:
                self.hold(sealed)
        self._give(sealed or cid, readers)
        return cid, sealed

    def own_file(self, path: Path) -> Cid:
        """Add a file that was made here, keep it, and show it to the members."""
        with self._ports.store.lease():
            cid = add_path(self._ports.store, path, COVEY_WEIGHTS)
            self.hold(cid)
            self.note_own(cid)
        self._give(cid)
        return cid

    def _give(self, cid: Cid, readers: Readers | None = None) -> None:
        self.owned[cid] = possession(self._ports.store, cid, readers or self.readers)
        self.show(cid, readers)

    def open_update(
        self, sealed: Cid, update: Cid, folder: Path, max_bytes: int, readers: Readers | None = None
    ) -> None:
        """Take an update out of its seal, and keep it for this node alone. readers: whom it must be sealed to.

        Raises: BadTensors where it is another, or some of them cannot open it; NotARecipient, BrokenSeal, NotFound.
        """
        store = self._ports.store
        opened = open_sealed(store, sealed, self._ports.identity)
        entry = opened.find()
        if entry.kind != "file" or entry.n_bytes > max_bytes:
            raise BadTensors(f"what is sealed in {sealed} is no file, or larger than an update can be")
        path = folder / "opened"
        with path.open("xb") as file:
            for piece in opened.read(entry):
                file.write(piece)
        try:
            with store.lease():
                if (found := add_path(store, path, COVEY_WEIGHTS)) != update:
                    raise BadTensors(f"what is sealed in {sealed} is {found}, and not the update {update}")
                if n_without := len(set(readers or self.readers).difference(opened.recipients)):
                    raise BadTensors(f"{sealed} is not sealed to {n_without} of its round's members")
                self.hold(update)
                self.note_own(update)
        finally:
            path.unlink()

    def result(self, found: Computed) -> None:
        """Keep what was computed here, and show it."""
        with self._ports.store.lease():
            self._ports.store.put_many([MadeBlock(found.result, found.data)])
            with self._while_kept():
                self._ports.pins.add(found.result, self.pin, PinKind.DIRECT, PinState.COMPLETE)
            for cid in (found.tensors, *found.states):
                self.hold(cid)
                self.note_own(cid)
        for cid in (found.tensors, *found.states):
            self.show(cid)
        self.show_document(found.result)

    def show_document(self, cid: Cid) -> None:
        """Show a result's document, without what it links to."""
        document = read_document(self._ports.store.get(cid))
        below = [document.base, document.tensors, *document.states, *document.updates]
        plan = [link for link in _links(self._ports, cid) if link not in below]
        self._publish(cid, self.readers, [*below, *plan])

    def show_again(self, results: Iterable[Cid]) -> None:
        """Show the first tensors and results to who are members now, as far as they are here and are shown to any."""
        self._show_to_these(self._plan.initial)
        for cid in results:
            if cid == self._plan.initial or not self._ports.store.has(cid):
                continue
            document = read_document(self._ports.store.get(cid))
            for file in (document.tensors, *document.states):
                self._show_to_these(file)
            if self._is_shown(cid):
                self.show_document(cid)

    def _show_to_these(self, cid: Cid) -> None:
        if self._is_shown(cid) and self._ports.roots.members(cid) != frozenset(self.readers):
            self.show(cid)

    def _is_shown(self, cid: Cid) -> bool:
        """Is it shown to all whom the plan names? What is shown to others was named here, and is no one's here to see.

        A plan can name what it likes as its first tensors, and a majority as a result.
        """
        roots, others = self._ports.roots, {*self._plan.members} - {self._ports.identity.peer_id}
        return roots.level(cid) is Visibility.MEMBERS and others <= roots.members(cid)

    def check_size(self, cid: Cid, max_bytes: int) -> None:
        """Refuse what would be written out to more than that: a few blocks, linked to often, can be any length.

        Raises: BadTensors.
        """
        n_bytes = sizes_of(self._ports, [cid]).get(cid, 0)
        if n_bytes > max_bytes:
            raise BadTensors(f"{cid} is a file of {n_bytes:,} bytes, and {max_bytes:,} are the most here")

    def hold(self, cid: Cid) -> None:
        """Pin a whole file that is here. Raises: LetGo."""
        with self._while_kept():
            self._ports.pins.add(cid, self.pin, PinKind.RECURSIVE, PinState.COMPLETE)

    def note_own(self, cid: Cid) -> None:
        """Note that a file became the experiment's here: made for it, out of a seal, or come whole from its members.

        What is held is not that by itself: a file that was here before is held, too, when a member names it.

        Raises: LetGo.
        """
        with self._while_kept():
            self._ports.pins.add(cid, self.own_pin, PinKind.RECURSIVE, PinState.COMPLETE)

    def may_hand_out(self, cid: Cid, claims: Container[bytes], readers: Readers | None = None) -> bool:
        """May a file stand in what is handed out of the experiment, because its events name it? As `may_pass_on`.

        Raises: NotFound, Corrupt, InvalidBlock, UnknownCodec, TooLarge.
        """
        return self._ports.pins.get(cid, self.own_pin) is not None or self.may_pass_on(cid, claims, readers)

    def is_held(self, cid: Cid) -> bool:
        """Is the file here, whole? Not where the disk is known to have changed a block of it."""
        pin = self._ports.pins.get(cid, self.pin)
        return pin is not None and pin.state is PinState.COMPLETE and self._is_whole(cid)

    def _is_whole(self, cid: Cid) -> bool:
        try:
            return all(reached.n_bytes is not None for reached in reach(self._ports.store, cid))
        except Corrupt:
            return False

    def is_shown_to_any(self, cid: Cid) -> bool:
        """Is it shown to members, or to more?"""
        return self._ports.roots.level(cid) is not Visibility.PRIVATE

    def show(self, cid: Cid, readers: Readers | None = None) -> None:
        """Show a file to the members, or to those of a round."""
        self._publish(cid, readers or self.readers)

    def pass_on(self, cid: Cid, readers: Readers | None = None) -> None:
        """The same, of what somebody else named: what this node's user shows to more is not his to narrow."""
        if self._ports.roots.level(cid) <= Visibility.MEMBERS:
            self.show(cid, readers)

    def _publish(self, cid: Cid, readers: Readers, without: Iterable[Cid] = ()) -> None:
        """Show it to these, and take it from no one else's: a workspace or another experiment may have it too."""
        roots = self._ports.roots
        with self._while_kept():
            if roots.level(cid) < Visibility.PUBLIC:
                others = roots.members(cid).difference(self.ever)
                roots.publish(cid, Visibility.MEMBERS, others.union(readers), without)

    def may_pass_on(self, cid: Cid, claims: Container[bytes], readers: Readers | None = None) -> bool:
        """May a file that somebody else named be shown to the members? `claims`: what they gave to show they have it.

        Only where one of them has all of it, or the members may see it already: a link to a block proves nothing about
        who may have it. What is private here, or was given to this node alone, must not come out because it was named.
        """
        store, others = self._ports.store, set(readers or self.readers) - {self._ports.identity.peer_id}
        is_seen_by_some = cid.codec in (RAW, DAG_PB) and others  # of nobody else, all see everything
        if is_seen_by_some and all(
            one.hash_code == IDENTITY or self._is_seen(one, others) for one, _ in reach(store, cid)
        ):
            return True
        # What the plan names is for those whom it names, and for whom it has them let in.
        return possession(store, cid, readers or self._plan.members) in claims

    def _is_seen(self, cid: Cid, others: Iterable[PeerId]) -> bool:
        return all(self._ports.roots.may_see(peer, cid, is_flock=False) for peer in others)


def _links(ports: Ports, cid: Cid) -> list[Cid]:
    from storage.codecs import links

    return list(links(cid, ports.store.get(cid)))


def limit_of(ports: Ports, plan: Plan) -> int:
    """How many bytes an update may have, by the first tensors."""
    try:
        return longest_update(stat(ports.store, plan.initial).n_bytes)
    except (*_NO_FILE, Corrupt):
        return MAX_TENSORS_BYTES


def sizes_of(ports: Ports, files: Iterable[Cid]) -> dict[Cid, int]:
    """How many bytes those files have that are here, by their roots."""
    found = {}
    for cid in files:
        try:
            found[cid] = stat(ports.store, cid).n_bytes
        except (*_NO_FILE, Corrupt, NotFound):
            continue
    return found


def moved_bounds(ports: Ports, results: Iterable[Cid]) -> dict[Cid, float]:
    """The clip bounds that results leave to the rounds after them, of those whose documents are here and say one."""
    found = {}
    for result in results:
        try:
            bound = read_document(ports.store.get(result)).bound
        except (NotFound, Corrupt, BadTensors, InvalidBlock):
            continue
        if bound is not None:
            found[result] = bound
    return found
