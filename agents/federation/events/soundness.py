"""Which closes may be countersigned: a pure function of the book, for who votes and for who verifies."""

import math
from collections.abc import Mapping
from typing import cast

from agents.federation.events import claims
from agents.federation.events.book import Book, Said
from agents.federation.events.grants import capacity, needs_grant, was_let_in, was_let_out
from agents.federation.events.secure_stages import Stages, is_doomed, is_split
from protocols.rounds import (
    Accuse,
    Close,
    Complain,
    Gather,
    Grant,
    Join,
    Leave,
    Plan,
    Promise,
    Receipt,
    Result,
    Shares,
    Submit,
    Vote,
)
from storage.cid import Cid
from storage.keys import PeerId


def _is_of_round(said: Said, number: int) -> bool:
    return isinstance(said.event, Submit) and said.event.round == number


def has_central_noise(plan: Plan) -> bool:
    """Does whoever closes a round add noise to its result?"""
    return plan.privacy is not None and plan.privacy.get("noise") == "central"


def _why_not_next(book: Book, close: Close) -> str:
    """Who is in the next round decides it: a coordinator may not choose, but hears of joins and ends before others."""
    joined = {said.author for said, _ in book.all_of(Join)}
    if not joined.issuperset(close.joined):
        return "it has somebody in the next round of whom no join is known here"
    if any(not was_let_in(book, peer) for peer in close.joined):
        return "it lets in who holds no grant that is known here"
    if len(set(close.joined)) > capacity(book.plan):
        return f"it has more in the next round than {capacity(book.plan)}, the most of the plan"
    return claims.fault(book, close)


def _left_out(book: Book, close: Close) -> set[PeerId]:
    """Who was in the round, is not in the next, and by all that is known here had no end: no leave, no breach."""
    joined = {said.author for said, _ in book.all_of(Join)}
    gone = {said.author for said, _ in book.all_of(Leave)} | book.broken().keys() | claims.was_unfit(book)
    gone |= {peer for peer in joined if was_let_out(book, peer)}
    return joined.intersection(book.roster(close.round) or ()) - gone - set(close.joined)


def unknown_to(book: Book, said: Said) -> str:
    """What a close rests on and is not known here, for who verifies: without it nobody is to blame. Or nothing."""
    seen: set[Cid] = set()
    todo = [said]
    while todo:
        one = todo.pop()
        if one.cid not in seen:
            seen.add(one.cid)
            if why := _links_unknown_to(book, one) or _newcomers_unknown_to(book, one):
                return why
            todo += _named(book, one)
    return _absence_unknown_to(book, said)


def _links_unknown_to(book: Book, said: Said) -> str:
    close = cast(Close, said.event)
    promises = [one.event for one in map(book.get, close.promises) if one is not None]
    votes = [event.vote for event in promises if isinstance(event, Promise) and event.vote is not None]
    named = [one.event.close for one in map(book.get, votes) if one is not None and isinstance(one.event, Vote)]
    links = [*close.submissions, *close.joins, *close.promises, *votes, *named]
    if book.secure is not None:
        links += _masked_by(book, close)
    unknown = [link for link in links if book.get(link) is None]
    return f"{len(unknown)} events that it names, {unknown[0]} among them" if unknown else ""


def _masked_by(book: Book, close: Close) -> list[Cid]:
    """The lists of shares that a close's updates are masked with, and what those rest on."""
    submits = [one.event for one in map(book.get, close.submissions) if one is not None]
    todo = [event.gather for event in submits if isinstance(event, Submit) and event.gather is not None]
    found: dict[Cid, None] = {}
    while todo:
        if (link := todo.pop()) in found:
            continue
        found[link] = None
        event = one.event if (one := book.get(link)) is not None else None
        if isinstance(event, Gather):
            todo += (*event.said, *event.without)
        elif isinstance(event, Shares):
            todo.append(event.gather)
        elif isinstance(event, Complain):
            todo.append(event.shares)
    return list(found)


def _newcomers_unknown_to(book: Book, said: Said) -> str:
    """Who is in the next round joined, and was let in: what of that may not be known here?"""
    close = cast(Close, said.event)
    joined = {one.author for one, _ in book.all_of(Join)}
    if strangers := sorted(set(close.joined) - joined):
        return f"that {strangers[0]} joined"
    if not all(was_let_in(book, peer) for peer in close.joined):
        return _unheard(book, _granting(book), said, "let in")
    return ""


def _granting(book: Book) -> set[PeerId]:
    """Who may have given grants, and ended them."""
    return {book.author, *(event.audience for _, event in book.all_of(Grant))}


def _absence_unknown_to(book: Book, said: Said) -> str:
    """Who is left out had left, or broken the rules: what of that may not be known here?"""
    left_out = _left_out(book, cast(Close, said.event))
    if unsure := sorted(peer for peer in left_out if not _is_followed(book, peer, said)):
        return f"whether {unsure[0]} had left by then"
    if left_out and (why := _proof_unknown_to(book, left_out, said)):
        return why
    if any(needs_grant(book, peer) for peer in left_out):
        return _unheard(book, _granting(book), said, "let out")
    return ""


def _proof_unknown_to(book: Book, peers: set[PeerId], said: Said) -> str:
    """Whether one of them had broken the rules by a close, where what may prove it is not known here; or nothing."""
    for _, accusation in book.all_of(Accuse):
        pair = book.get(accusation.first), book.get(accusation.second)
        if None in pair and any(one is None or one.author in peers for one in pair):
            return f"what {accusation.first} and {accusation.second} prove"
    if undecided := [cid for cid, proves in book.complaints.items() if proves is None]:
        return f"what the complaint {undecided[0]} proves"
    roster = book.roster(cast(Close, said.event).round) or ()
    return _unheard(book, {said.author, *roster} - peers, said, "accused")


def _unheard(book: Book, peers: set[PeerId], said: Said, what: str) -> str:
    """Of whom of these it is not known all here that they said before a close; or nothing."""
    unsure = sorted(peer for peer in peers if not _is_followed(book, peer, said))
    return f"whom {unsure[0]} had {what} by then" if unsure else ""


def _is_followed(book: Book, peer: PeerId, said: Said) -> bool:
    """Is all known here that a member said until it knew of a close?"""
    if peer == said.author and said.entry.sequence < book.height(peer):
        return True
    told = [(one, event.close) for one, event in book.said_by(peer, Vote)]
    told += [(one, event.close) for one, event in book.said_by(peer, Result)]
    return any(close == said.cid and one.entry.sequence < book.height(peer) for one, close in told)


def why_not(book: Book, said: Said, *, is_final: bool = False) -> str:
    """Why a close may not be countersigned, or nothing. What it rests on must be known here.

    is_final: what its coordinator did elsewhere does not count against one that was countersigned.
    """
    if not is_final and said.author in book.broken():
        return "its coordinator has broken the rules"
    return why_not_binding(book, said) or _why_not_all(book, said)


def why_not_binding(book: Book, said: Said) -> str:
    """Why a close binds nobody who countersigned it, or nothing. Where it binds once, it does whatever is told later.

    What it leaves out is not asked here: others may have kept that from who countersigned it, or from a deputy.
    """
    # From the lowest term up, each once: what a promise binds to must bind itself, by promises of its own.
    sound: dict[Cid, bool] = {}
    todo = _named(book, said)
    while todo:
        if below := [one for one in _named(book, todo[-1]) if one.cid not in sound]:
            todo += below
        else:
            one = todo.pop()
            sound[one.cid] = not _fault(book, one, sound)
    return _fault(book, said, sound)


def usable(book: Book, promises: Mapping[PeerId, Said]) -> dict[PeerId, Said]:
    """Those promises that a close may rest on: of who countersigned nothing, or a close that is known here, and binds.

    Whoever promises anything else could keep every deputy from closing, or bind it to what nobody may countersign.
    """
    found: dict[PeerId, Said] = {}
    sound: dict[Cid | None, bool] = {None: False}
    for peer, promise in promises.items():
        close = book.bound_to(promise)
        if close is not None and close.cid not in sound:
            sound[close.cid] = not why_not_binding(book, close)
        if cast(Promise, promise.event).vote is None or sound[close.cid if close is not None else None]:
            found[peer] = promise
    return found


def is_heard(book: Book, said: Said) -> bool:
    """Is all known here that the coordinator of a close had given receipts for? It may leave out what is not known."""
    links = _received_before(book, said, cast(Close, said.event))
    return said.entry.sequence < book.height(said.author) and all(book.get(link) is not None for link in links)


def bound_close(book: Book, number: int) -> Said | None:
    """A close that somebody is known to have countersigned, and is bound by; the one of the highest term."""
    found = {
        close.cid: close
        for vote, event in book.said_in(number, Vote)
        if vote.author in (book.selected(number) or ())
        and (close := book.closes(number).get(event.term)) is not None
        and close.cid == event.close
        and not cast(Close, close.event).void
    }
    ranked = sorted(found.values(), key=lambda said: (cast(Close, said.event).term, said.cid), reverse=True)
    return next((close for close in ranked if not why_not_binding(book, close)), None)


def _named(book: Book, said: Said) -> list[Said]:
    """The closes that the promises of a close name, all of lower terms."""
    bound = map(book.bound_to, _promises(book, cast(Close, said.event)))
    return [one for one in bound if one is not None]


def _fault(book: Book, said: Said, sound: Mapping[Cid, bool]) -> str:
    """What is wrong with a close, given which closes of earlier terms are sound."""
    close = cast(Close, said.event)
    quorum, selected = book.quorum(close.round), book.selected(close.round)
    if quorum is None or selected is None:
        return "nobody knows yet who is selected"
    if why := _why_not_listed(book, close, selected) or _why_not_next(book, close):
        return why
    if (close.noise is not None) != (has_central_noise(book.plan) and not close.void):
        return "it names noise where none belongs, or none where the plan asks for it"
    if book.secure is not None and not close.void and Stages(book, close.round).gather_of(close) is None:
        return "its updates are not all masked with one list of sharers"
    promises = {one.author: one for one in _promises(book, close) if one.author in selected}
    if close.term and (len(promises) < quorum or len(promises) != len(close.promises)):
        return "it does not show the promises of over half of the selected"
    for promise in promises.values():
        named = book.bound_to(promise)
        if cast(Promise, promise.event).vote is not None and (named is None or not sound[named.cid]):
            return "a promise names a vote that is not known here, or no sound close"
    if (highest := _bound_by(book, close)) is None:
        return ""
    bound = cast(Close, highest.event)
    is_secure_void = bool(close.void) and book.secure is not None
    if is_secure_void and (is_doomed(book, bound) or is_split(book, close.round, promises.values())):
        return ""
    if (bound.submissions, bound.joined, bound.joins, bound.void, bound.noise) != (
        close.submissions, close.joined, close.joins, close.void, close.noise,
    ):  # fmt: skip
        return "a close that was countersigned before it lists something else"
    return ""


def _promises(book: Book, close: Close) -> list[Said]:
    """The promises for its term that a close shows, as far as they are known here."""
    found = [one for one in map(book.get, close.promises) if one is not None and isinstance(one.event, Promise)]
    return [one for one in found if (one.number, cast(Promise, one.event).term) == (close.round, close.term)]


def _bound_by(book: Book, close: Close) -> Said | None:
    """The close of the highest term that the promises of a close bound its coordinator to."""
    return book.highest_vote(_promises(book, close)) if close.term else None


def _why_not_all(book: Book, said: Said) -> str:
    """What a close leaves out, or nothing. Its coordinator chose that, where no promise bound it to the same."""
    close = cast(Close, said.event)
    bound = _bound_by(book, close)
    if (bound is None or cast(Close, bound.event).joined != close.joined) and _left_out(book, close):
        return "it leaves somebody out of the next round who has neither left nor broken the rules"
    return _why_not_received(book, said, close) if bound is None else ""


def _why_not_listed(book: Book, close: Close, selected: tuple[PeerId, ...]) -> str:
    authors = {one.author for one in map(book.get, close.submissions) if one and _is_of_round(one, close.round)}
    if len(authors) != len(close.submissions) or not authors <= set(selected):
        return "it lists what is no submission of one of the selected, two of one, or one that is not known here"
    if list(close.submissions) != sorted(close.submissions):
        return "its list is not in order"
    if bool(close.void) == bool(close.submissions):
        return "a void round has no submissions, and any other has"
    if not close.void and len(close.submissions) < book.minimum(close.round):
        return f"it lists {len(close.submissions)} submissions, too few for a round"
    return ""


def _why_not_received(book: Book, said: Said, close: Close) -> str:
    """A close that no earlier one binds lists all that its coordinator gave receipts for, and is void for lack of them.

    Under masks only what is masked alike adds up: a receipt for anything else is no promise there.
    """
    received = [
        one
        for one in map(book.get, _received_before(book, said, close))
        if one is not None and _is_of_round(one, close.round) and one.author in (book.selected(close.round) or ())
    ]
    if close.void:
        n_received = len({one.author for one in received}) if book.secure is None else 0
        is_enough = n_received >= book.minimum(close.round)
        return f"it is void, and its coordinator gave receipts for {n_received} updates" if is_enough else ""
    left_out = [one for one in received if one.cid not in close.submissions]
    if left_out and book.secure is not None:
        stages = Stages(book, close.round)
        gather = cast(Said, stages.gather_of(close))  # there is one: see `_fault`
        sharers = stages.authors(gather)
        left_out = [one for one in left_out if one.author in sharers and cast(Submit, one.event).gather == gather.cid]
    return "it leaves out what its coordinator gave a receipt for" if left_out else ""


def _received_before(book: Book, said: Said, close: Close) -> set[Cid]:
    """What the coordinator of a close had given receipts for; of several histories of its own, in that of the close.

    Who countersigned it may not know the others, and would else be bound to what is not sound any more.
    """
    if said.author not in book.forks():
        given = book.receipts(close.round, said.author).items()
        return {link for link, receipt in given if receipt.entry.sequence < said.entry.sequence}
    found: set[Cid] = set()
    while said.entry.prev and (one := book.get(said.entry.prev[0])) is not None:
        if one.author != said.author or one.entry.sequence >= said.entry.sequence:
            break
        if isinstance(one.event, Receipt) and one.event.round == close.round:
            found.add(one.event.submission)
        said = one
    return found


def signable(value: float | None) -> float | None:
    """A number that can be signed: what diverged is left out."""
    return value if value is not None and math.isfinite(value) else None
