"""What of an experiment is this node's alone: its secrets under masks, and what its privacy budget has told.

Beside the journal: `CID.secrets` and `CID.budget`. Both are on the disk before what they are for leaves this node.
Everything here reads and writes files: call it in a thread, one call at a time; but for what only tells how the budget
stands, which is asked at any time.
"""

import math
import tempfile
from pathlib import Path
from threading import Lock
from typing import Final, cast

from agents.adapters.ports import Ports
from agents.federation.events.book import Book
from agents.federation.files.shelf import Keep, Shelf
from agents.federation.members.actions import Deal, Inspect, Prepare, Reveal
from agents.federation.members.secure_client import complaints, keys_event, masked, shares_event, unmask_event
from agents.federation.plans.options import options_of
from agents.federation.plans.privacy_accounts import Accounts, examples_of, privacy_of, told, told_of_examples
from agents.federation.privacy.ledger import BadLedger, BudgetSpent, Ledger
from agents.federation.results.outcome import draw_noise, wanted_layout
from agents.federation.results.secure_total import WORD_BYTES, levels_of, n_words, write_words
from agents.federation.results.verify import bound_before
from agents.federation.secure.sides import SecureRefused
from agents.federation.secure.vault import Vault
from agents.federation.updates.tensors import read_layout, read_vector
from protocols.rounds import Close, Complain, Keys, Shares, Unmask
from storage.cid import Cid


class Secrets:
    """One experiment's on this node."""

    def __init__(self, ports: Ports, book: Book, keep: Keep, journal: Path, scratch: Path) -> None:
        self._ports = ports
        self._plan: Final = book.plan
        self._keep = keep
        self._scratch = scratch
        self._me: Final = ports.identity.peer_id
        self._vault = Vault(journal.with_name(f"{journal.name}.secrets"), book.experiment)
        self._budget_path = journal.with_name(f"{journal.name}.budget")
        self._experiment: Final = book.experiment
        self._ledger: Ledger | None = None
        self._opening: Final = Lock()  # of two ledgers one would write over what the other charged
        self.accounts: Final = Accounts()

    # Secure aggregation

    def answer(self, book: Book, action: Prepare | Deal | Reveal) -> Keys | Shares | Unmask:
        """What a secure round asked for. Raises: SecureRefused, BadVault, BudgetSpent, BadLedger, StoreFull."""
        match action:
            case Prepare(number):
                return keys_event(book, number, self._me, self._vault.make(number))
            case Deal(number, gather):
                return shares_event(book, number, self._me, self._vault.get(number), gather)
            case Reveal(number, close):
                event = unmask_event(book, number, self._me, self._vault.get(number), close)
                self.charge(book, number, close)  # the answers tell the sum, and so the result
                return event

    def complaints(self, book: Book, action: Inspect) -> tuple[Complain, ...]:
        """What there is to say of the shares that were dealt here. Raises: SecureRefused, BadVault."""
        return complaints(book, action.round, self._me, self._vault.get(action.round), action.gather)

    def mask(self, book: Book, number: int, update: Path, out: Path, n_samples: int) -> Cid:
        """Check, clip and hide an update; the list of sharers it is masked with. Raises: NotFinite, SecureRefused."""
        vector = read_vector(update, read_layout(update))
        bound = bound_before(book, number, Shelf(self._ports, self._scratch))
        levels = levels_of(book.plan, len(book.selected(number) or ()), vector, n_samples, bound)
        words, gather = masked(book, number, self._me, self._vault.get(number), levels)
        write_words(out, words)
        return gather

    def forget(self, number: int) -> None:
        """Destroy the secrets of a round that is over, and of those before it. Raises: BadVault, StoreFull."""
        self._vault.forget(number + 1)

    def check_size(self, number: int, update: Cid) -> None:
        """What has another size than a masked update cannot be added up. Raises: SecureRefused, StorageError."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            shelf = Shelf(self._ports, Path(folder))
            layout = wanted_layout(self._plan, number, read_layout(shelf.path(self._plan.initial)))
            wanted = WORD_BYTES * n_words(self._plan, layout.n_params)
            if (n_bytes := shelf.path(update).stat().st_size) != wanted:
                raise SecureRefused(f"the masked update {update} has {n_bytes} bytes, and {wanted} are wanted")

    # Privacy

    def draw(self, number: int) -> Cid:
        """Central noise for one close: a file of it, kept and shown to the members. Raises: StorageError."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as name:
            folder = Path(name)
            draw_noise(self._plan, number, Shelf(self._ports, folder).path(self._plan.initial), folder / "noise")
            return self._keep.own_file(folder / "noise")

    def charge(self, book: Book, number: int, what: Cid) -> None:
        """Count what a round tells, durably, before it is told. Raises: BudgetSpent, BadLedger, StoreFull."""
        privacy = privacy_of(book.plan)
        final = book.final(number)
        if privacy is None:
            return
        if final is None:
            raise SecureRefused("what is not final is not told")
        n_reported = len(cast(Close, final.event).submissions)
        ledger = self._open()
        assert ledger is not None
        ledger.charge(number, what, [told(book.plan, n_reported)])

    def charge_examples(self, number: int, update: Cid, n_examples: int) -> None:
        """Count what an own update tells of the own examples, durably, before it leaves this node.

        Raises: BudgetSpent, BadLedger, StoreFull.
        """
        ledger = self._open() if examples_of(self._plan) is not None else None
        if ledger is not None:
            ledger.charge(number, update, [told_of_examples(self._plan, n_examples)])

    def check_examples(self) -> None:
        """Raises: BudgetSpent where the own budget bears no other update like the last; BadLedger."""
        ledger = self._open() if examples_of(self._plan) is not None else None
        if ledger is not None and ledger.charges and not ledger.bears(ledger.charges[-1].told):
            raise BudgetSpent(
                f"this node's updates have told epsilon {ledger.epsilon:.4g} of its examples, and the plan's budget "
                "bears no other: it leaves, and trains no more"
            )

    def epsilon(self, book: Book, until: int | None = None) -> float | None:
        """What was told, or by the end of a round, as far as it is known here; None without a promise of privacy.

        Infinity where the own ledger cannot be read: any number could be too low.
        """
        public = self.accounts.epsilon(book, until)
        if public is None:
            return None
        try:
            ledger = self._open()
        except BadLedger:
            return math.inf
        if ledger is None:
            return public
        return max(public, ledger.epsilon if until is None else ledger.epsilon_until(until))

    def bears(self, book: Book, number: int) -> bool:
        """May another round begin? By the public accounts, which are the same for all who know what they hold."""
        return self.accounts.knows(book, number) and self.accounts.bears(book, number)

    @property
    def trouble(self) -> str:
        """Why the own ledger cannot be read, or nothing."""
        try:
            self._open()
        except BadLedger as error:
            return str(error)
        return ""

    def _open(self) -> Ledger | None:
        privacy = options_of(self._plan).privacy
        with self._opening:
            if self._ledger is None and privacy is not None:
                self._ledger = Ledger(self._budget_path, self._experiment, privacy.budget)
            return self._ledger
