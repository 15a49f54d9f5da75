"""The stages of a secure aggregation, as a book tells them: whose keys and shares are gathered, and who unmasks.

Pure, and no secret is in it. A coordinator gathers keys, then shares; each client goes along once, with the first list
that it is on and no dealer on which is proved false. Updates that are masked with the same list of sharers add up, and
no others do.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, cast

from agents.federation.events.answers import JUDGED
from agents.federation.events.book import Book, Said
from agents.federation.events.said import alike
from agents.federation.secure import group
from agents.federation.secure.shamir import BadShares
from agents.federation.secure.sides import EPHEMERAL, KEY_SHARE, SEED_SHARE, Answer, Parcel, Setting, combined
from agents.federation.secure.sides import Keys as PublicKeys
from protocols.rounds import Close, Complain, Event, Gather, Keys, Shares, Submit, Unmask, Vote
from storage.cid import Cid
from storage.keys import PeerId

Stage = Literal["keys", "shares", "masked"]


class Unmasking(NamedTuple):
    """What takes the masks away from a sum: the shares that are what their dealers vouched for, and who told others.

    `active` submitted, `dropped` shared secrets and did not. `dealt` holds a parcel of each.
    """

    setting: Setting
    keys: Mapping[PeerId, PublicKeys]
    dealt: Mapping[PeerId, Parcel]
    active: tuple[PeerId, ...]
    dropped: tuple[PeerId, ...]
    answers: Mapping[PeerId, Answer]
    liars: tuple[PeerId, ...]

    @property
    def n_lacking(self) -> int:
        """How many more answers are needed."""
        counts = [sum(peer in one.own_seeds for one in self.answers.values()) for peer in self.active]
        counts += [sum(peer in one.mask_keys for one in self.answers.values()) for peer in self.dropped]
        return max(self.setting.threshold - min(counts, default=0), 0)

    def false_dealers(self) -> list[PeerId]:
        """Who dealt some that answered shares of no secret: their digests are its own, so nobody else can be to blame.

        Where nothing is lacking.
        """
        parts = {peer: {one: said.own_seeds[peer] for one, said in self.answers.items()} for peer in self.active}
        parts |= {peer: {one: said.mask_keys[peer] for one, said in self.answers.items()} for peer in self.dropped}
        return [peer for peer in sorted(parts) if not self._fit(peer, parts[peer])]

    def _fit(self, dealer: PeerId, parts: Mapping[PeerId, bytes]) -> bool:
        points = self.dealt[dealer].seed_points if dealer in self.active else self.dealt[dealer].key_points
        try:
            combined({self.setting.place(one): part for one, part in parts.items()}, self.setting.threshold, points)
        except BadShares:
            return False
        return True


class Judged(NamedTuple):
    """What was found of a round's lists and shares, in one setting: to look at one takes long, and there may be many.

    lists: why nobody should go along with each, and what it waits for, None for nothing. dealt: are these shares for
    all on that list of keys?
    """

    setting: Setting
    lists: dict[Cid, tuple[str, Cid | None]]
    dealt: dict[tuple[Cid, Cid], bool]


class Stages:
    """One round's, of a book whose plan asks for secure aggregation and whose selected are known."""

    def __init__(self, book: Book, number: int) -> None:
        self._book = book
        self._number = number
        self._selected = book.selected(number) or ()
        self.threshold = book.threshold(number)
        judged: Judged | None = book.answers.get((JUDGED, number))
        if judged is None or judged.setting != self.setting():
            judged = book.answers[JUDGED, number] = Judged(self.setting(), {}, {})
        self._judged = judged

    def setting(self) -> Setting:
        """What this round's secrets are bound to."""
        base = cast(Cid, self._book.result(self._number - 1))
        return Setting(self._book.experiment, self._number, base, self._selected, self.threshold)

    def own(self, peer: PeerId, kind: type[Event]) -> Said | None:
        """The first event of a kind that one of the selected said in this round."""
        if peer not in self._selected:
            return None
        found = [said for said, event in self._book.said_by(peer, kind) if getattr(event, "round", 0) == self._number]
        return min(found, key=lambda said: (said.entry.sequence, said.cid), default=None)

    # What coordinators gathered

    def gathers(self, stage: Literal["keys", "shares"]) -> list[Said]:
        """The sound lists of a stage, by term."""
        found = [
            said
            for said, event in self._book.said_in(self._number, Gather)
            if event.stage == stage and said.author == self._book.coordinator(event.term) and not self.fault(said)
        ]
        return sorted(found, key=lambda said: (cast(Gather, said.event).term, said.cid))

    def fault(self, said: Said) -> str:
        """Why nobody should go along with a list, or nothing. What it names must be known.

        A sound one stays so. Any other is looked at again once that is known which it waits for.
        """
        why, awaited = self._judged.lists.get(said.cid, ("", said.cid))
        if awaited is not None and awaited in self._book:
            why, awaited = self._judged.lists[said.cid] = self._judge(cast(Gather, said.event))
        return why

    def _judge(self, gather: Gather) -> tuple[str, Cid | None]:
        kind: type[Keys] | type[Shares] = Keys if gather.stage == "keys" else Shares
        found = {link: self._book.get(link) for link in (*gather.said, *gather.without)}
        if unknown := [link for link, one in found.items() if one is None]:
            return "it names what is not known here", unknown[0]
        ones = [cast(Said, found[link]) for link in gather.said]
        if any(one.kind is not kind or one.number != self._number for one in ones):
            return f"it lists what is no {kind.kind} of this round", None
        authors = [one.author for one in ones]
        if len(set(authors)) != len(authors) or not set(authors) <= set(self._selected):
            return "it lists two of one member, or one that was not selected", None
        if list(gather.said) != sorted(gather.said) or len(ones) < self.threshold:
            return f"it is not in order, or lists {len(ones)}, and {self.threshold} are needed", None
        if kind is Keys:
            are_sound = all(keys_of(one).are_sound for one in ones) and not gather.without
            return "" if are_sound else "it lists keys that nobody can use", None
        return self._judge_shares(gather, ones)

    def _judge_shares(self, gather: Gather, ones: list[Said]) -> tuple[str, Cid | None]:
        links = {cast(Shares, one.event).gather for one in ones}
        link = next(iter(links))
        ring = self._book.get(link)
        if len(links) > 1 or (ring is not None and not self.is_ring(ring)):
            awaited = self._judged.lists.get(link, ("", None))[1]
            return "the shares were not made for one sound list of keys", awaited if len(links) == 1 else None
        if ring is None:
            return "the shares were made for a list of keys that is not known here", link
        if gather.without:
            false = self._book.false_dealers(self._number).items()
            gone = {one.cid: peer for peer, complaints in false for one in complaints if one.cid in gather.without}
            if len(gone) != len(gather.without) or not set(gone.values()).isdisjoint(one.author for one in ones):
                undecided = [link for link in gather.without if self._book.complaints.get(link, False) is None]
                why = "it is made without dealers who are not proved false here, or lists one of them"
                return why, undecided[0] if undecided else None
        if not all(self.are_for(one, ring) for one in ones):
            return "the shares are not for all whose keys were gathered, or their dealer vouches for none", None
        return "", None

    def are_for(self, dealt: Said, ring: Said) -> bool:
        """Are these one's shares for all on a sound list of keys, its own key among them, and can they be checked?"""
        at = dealt.cid, ring.cid
        if at not in self._judged.dealt:
            self._judged.dealt[at] = self._are_for(dealt, ring)
        return self._judged.dealt[at]

    def _are_for(self, dealt: Said, ring: Said) -> bool:
        event = cast(Shares, dealt.event)
        keys = self.keys(ring) if event.gather == ring.cid else {}
        if dealt.author not in keys or len(event.sealed) != len(keys):
            return False
        if not len(event.seed_points) == len(event.key_points) == self.threshold:
            return False
        own = keys[dealt.author]
        if (event.seed_points[0], event.key_points[0]) != (own.seed_point, own.for_masks):
            return False
        if not all(map(group.is_point, (*event.seed_points, *event.key_points))):
            return False
        return group.is_proved(event.ephemeral, event.proof, self.setting().purpose(EPHEMERAL, dealt.author))

    def is_ring(self, said: Said) -> bool:
        """Is it a sound list of keys?"""
        event = said.event
        return (
            isinstance(event, Gather)
            and (event.round, event.stage) == (self._number, "keys")
            and said.author == self._book.coordinator(event.term)
            and not self.fault(said)
        )

    def authors(self, gather: Said) -> tuple[PeerId, ...]:
        """Whose keys or shares a sound list names, in order."""
        links = cast(Gather, gather.event).said
        return tuple(sorted(cast(Said, self._book.get(link)).author for link in links))

    def ring_of(self, gather: Said) -> Said:
        """The list of keys below a sound list of shares."""
        first = cast(Said, self._book.get(cast(Gather, gather.event).said[0]))
        return cast(Said, self._book.get(cast(Shares, first.event).gather))

    def mine(self, stage: Literal["keys", "shares"], me: PeerId) -> Said | None:
        """The first list of a stage that I am on, and can go along with."""
        own = self.own(me, Keys if stage == "keys" else Shares)
        if own is None:
            return None
        lists = (
            self.gathers("keys") if stage == "keys" else [one for one in self.open() if not self._is_wronged(one, me)]
        )
        return next((one for one in lists if own.cid in cast(Gather, one.event).said), None)

    def open(self) -> list[Said]:
        """The sound lists of shares that a round can go on with.

        One with a dealer that is proved false is given up for another, but where so many have submitted with it that
        too few are left for that.
        """
        false = self._book.false_dealers(self._number).keys()
        lists = self.gathers("shares")
        return [one for one in lists if not false or not false & set(self.authors(one)) or self._is_bound(one)]

    def _is_bound(self, gather: Said) -> bool:
        submits = self._book.submissions(self._number).values()
        n_with = sum(cast(Submit, said.event).gather == gather.cid for said in submits)
        return n_with > len(self._selected) - self.threshold

    def _is_wronged(self, gather: Said, me: PeerId) -> bool:
        """Has this one complained of a dealer on that list?"""
        own = [event.shares for _, event in self._book.said_by(me, Complain) if event.round == self._number]
        return not set(own).isdisjoint(cast(Gather, gather.event).said)

    # For a coordinator

    def stage(self) -> Stage:
        """What comes next."""
        return "masked" if self.open() else "shares" if self.gathers("keys") else "keys"

    def without(self, stage: Stage) -> tuple[Cid, ...]:
        """The complaints to make a list by."""
        false = self._book.false_dealers(self._number).values() if stage == "shares" else ()
        return tuple(sorted(complaints[0].cid for complaints in false))

    def chosen(self) -> Said | None:
        """The list of shares whose updates are added up: the one that most submitted with; of equal ones, the first."""
        submits = [cast(Submit, said.event).gather for said in self._book.submissions(self._number).values()]
        return max(self.open(), key=lambda one: submits.count(one.cid), default=None)

    def heard(self, stage: Stage) -> tuple[list[Said], int]:
        """What may be gathered now, and from how many it could come."""
        if stage == "keys":
            found = [self.own(peer, Keys) for peer in self._selected]
            return [said for said in found if said is not None and keys_of(said).are_sound], len(self._selected)
        false = self._book.false_dealers(self._number)
        best: tuple[list[Said], int] = ([], 0)
        for ring in self.gathers("keys"):
            holders = [peer for peer in self.authors(ring) if peer not in false]
            own = [self.own(peer, Shares) for peer in holders]
            fits = [said for said in own if said is not None and self.are_for(said, ring)]
            if len(fits) > len(best[0]) or not best[1]:
                best = (fits, len(holders))
        return best

    # For a client

    def keys(self, ring: Said) -> dict[PeerId, PublicKeys]:
        """The keys on a sound list."""
        named = (cast(Said, self._book.get(link)) for link in cast(Gather, ring.event).said)
        return {said.author: keys_of(said) for said in named}

    def parcels(self, gather: Said, holder: PeerId) -> dict[PeerId, Parcel]:
        """What those on a sound list of shares made for one holder."""
        ring = self.ring_of(gather)
        named = (cast(Said, self._book.get(link)) for link in cast(Gather, gather.event).said)
        return {said.author: self.parcel(said, ring, holder) for said in named}

    def parcel(self, dealt: Said, ring: Said, holder: PeerId) -> Parcel:
        """What one made for another on a sound list of keys."""
        event, at = cast(Shares, dealt.event), self.authors(ring).index(holder)
        return Parcel(
            event.sealed[at], *event.digests[at], event.ephemeral, event.proof, event.seed_points, event.key_points
        )

    def active(self, close: Close) -> tuple[PeerId, ...]:
        """Whose updates a close adds up, in order."""
        return tuple(sorted(said.author for said in map(self._book.get, close.submissions) if said is not None))

    def gather_of(self, close: Close) -> Said | None:
        """The one sound list of shares that all of a close's updates are masked with, or None.

        One that is not known here is in no list: it would pass for dropped out, and its mask be laid open.
        """
        links = {
            said.event.gather if said is not None and isinstance(said.event, Submit) else None
            for said in map(self._book.get, close.submissions)
        }
        found = next((one for one in self.gathers("shares") if {one.cid} == links), None)
        return found if found is not None and set(self.active(close)) <= set(self.authors(found)) else None

    # Unmasking

    def unmasking(self, final: Said) -> Unmasking | None:
        """What is known to unmask a final close with; None for one whose updates are not masked alike."""
        close = cast(Close, final.event)
        gather = self.gather_of(close)
        if gather is None:
            return None
        active = self.active(close)
        dropped = tuple(peer for peer in self.authors(gather) if peer not in active)
        keys, dealt = self.keys(self.ring_of(gather)), self.parcels(gather, active[0])
        answers, liars = {}, []
        for peer in active:
            for found in self._answers_of(peer, final, gather, active, dropped):
                if found is not None:
                    answers[peer] = found
                elif peer not in liars:
                    liars.append(peer)
        return Unmasking(self.setting(), keys, dealt, active, dropped, answers, tuple(liars))

    def _answers_of(
        self, peer: PeerId, final: Said, gather: Said, active: tuple[PeerId, ...], dropped: tuple[PeerId, ...]
    ) -> Iterator[Answer | None]:
        """Each answer of a member to a final close, or to another of the same active set; None for a false one.

        A true one counts whatever else its author signs: there is only one, and what it unmasked once stays unmasked.
        """
        every = (event for _, event in self._book.said_by(peer, Unmask) if event.round == self._number)
        same = alike(self._book.said_in(self._number, Close), cast(Close, final.event))
        said = [event for event in every if event.close in same]
        parcels = self.parcels(gather, peer) if said else {}
        for event in dict.fromkeys(said):
            yield self._checked(event, parcels, peer, active, dropped)

    def _checked(
        self,
        said: Unmask,
        parcels: Mapping[PeerId, Parcel],
        holder: PeerId,
        active: tuple[PeerId, ...],
        dropped: tuple[PeerId, ...],
    ) -> Answer | None:
        """An answer whose shares are those that their dealers vouched for, all of them."""
        setting = self.setting()
        if (len(said.own_seeds), len(said.mask_keys)) != (len(active), len(dropped)):
            return None
        answer = Answer(dict(zip(active, said.own_seeds, strict=True)), dict(zip(dropped, said.mask_keys, strict=True)))
        are_true = all(
            setting.digest(SEED_SHARE, share, peer, holder) == parcels[peer].seed_digest
            for peer, share in answer.own_seeds.items()
        ) and all(
            setting.digest(KEY_SHARE, share, peer, holder) == parcels[peer].key_digest
            for peer, share in answer.mask_keys.items()
        )
        return answer if are_true else None


def keys_of(said: Said) -> PublicKeys:
    """The keys in an event of that kind."""
    event = cast(Keys, said.event)
    return PublicKeys(event.for_shares, event.for_masks, event.seed_point)


def consented(book: Book, number: int, me: PeerId) -> tuple[Cid, ...] | None:
    """The one active set of a round that a member has countersigned or answered for; None while there is none."""
    links = [event.close for _, event in book.said_by(me, Unmask) if event.round == number]
    links += [event.close for _, event in book.said_by(me, Vote) if event.round == number]
    for link in links:
        said = book.get(link)
        if said is not None and isinstance(said.event, Close) and not said.event.void:
            return said.event.submissions
    return None


def is_split(book: Book, number: int, promises: Iterable[Said]) -> bool:
    """Do these promises prove that a second active set was countersigned, and the one of the highest term is dead?

    A member countersigns one active set in a round, and answers for no other. So a set can never be final, or be
    unmasked, once too many are bound to another: more than n - t of the selected, or than the active ones less t.
    """
    known = list(promises)
    highest = book.highest_vote(known)
    if highest is None or cast(Close, highest.event).void:
        return False
    listed = cast(Close, highest.event)
    active, threshold = Stages(book, number).active(listed), book.threshold(number)
    others = set()
    for promise in known:
        bound = book.highest_vote([promise])
        if bound is not None and not cast(Close, bound.event).void:
            others |= {promise.author} if cast(Close, bound.event).submissions != listed.submissions else set()
    n_selected = len(book.selected(number) or ())
    return len(others) > n_selected - threshold or len(others & set(active)) > len(active) - threshold


def is_doomed(book: Book, close: Close) -> bool:
    """Are too few of whose updates a close adds up left to unmask it, without dealers that are proved false?

    Those need not answer, and who was dealt false shares has submitted nothing.
    """
    false = book.false_dealers(close.round)
    if not false or close.void:
        return False
    honest = [peer for peer in Stages(book, close.round).active(close) if peer not in false]
    return len(honest) < book.threshold(close.round)
