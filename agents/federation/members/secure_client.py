"""What one client does in a secure round: from the book and its own secrets, the events that it owes. No IO.

Every answer follows from signed events; what the client consented to is among them, so a restart forgets nothing.
"""

from typing import cast

from agents.federation.events.book import Book, Said
from agents.federation.events.secure_stages import Stages, consented
from agents.federation.secure import group
from agents.federation.secure.quantise import Words
from agents.federation.secure.sides import COMPLAINT, Client, FalseParcel, SecureRefused, State
from protocols.rounds import Close, Complain, Gather, Keys, Shares, Unmask
from storage.cid import Cid
from storage.keys import PeerId


def keys_event(book: Book, number: int, me: PeerId, state: State) -> Keys:
    """The own public keys."""
    keys = Client(Stages(book, number).setting(), me, state).keys()
    return Keys(round=number, for_shares=keys.for_shares, for_masks=keys.for_masks, seed_point=keys.seed_point)


def shares_event(book: Book, number: int, me: PeerId, state: State, gather: Cid) -> Shares:
    """The own secrets, split for those whose keys a list gathers. Raises: SecureRefused."""
    stages = Stages(book, number)
    ring = stages.mine("keys", me)
    if ring is None or ring.cid != gather:
        raise SecureRefused("this is not the first sound list of keys that mine are on")
    dealt = Client(stages.setting(), me, state).shares(stages.keys(ring))
    parcels = [dealt[peer] for peer in stages.authors(ring)]
    common = parcels[0]
    return Shares(
        round=number,
        gather=gather,
        sealed=tuple(one.sealed for one in parcels),
        digests=tuple((one.seed_digest, one.key_digest) for one in parcels),
        seed_points=common.seed_points,
        key_points=common.key_points,
        ephemeral=common.ephemeral,
        proof=common.proof,
    )


def complaints(book: Book, number: int, me: PeerId, state: State, gather: Cid) -> tuple[Complain, ...]:
    """What there is to say of the shares that those on a list made for this client: nothing of those that are true.

    Raises: SecureRefused.
    """
    stages, said = Stages(book, number), book.get(gather)
    if said is None or said not in stages.gathers("shares"):
        return ()
    client = _restored(stages, me, state, said)
    links = {one.author: link for link in cast(Gather, said.event).said if (one := book.get(link)) is not None}
    found = []
    for dealer, parcel in stages.parcels(said, me).items():
        try:
            client.open(dealer, parcel)
        except FalseParcel:
            about = stages.setting().purpose(COMPLAINT, dealer, me)
            proof = group.prove(state.share_key, about, parcel.ephemeral)
            shared = client.shared(parcel)
            found.append(Complain(round=number, shares=links[dealer], shared=shared, proof=proof))
    return tuple(found)


def masked(book: Book, number: int, me: PeerId, state: State, levels: Words) -> tuple[Words, Cid]:
    """The update's levels, hidden, and the list of sharers with whom. `levels` is used up. Raises: SecureRefused."""
    stages = Stages(book, number)
    gather = stages.mine("shares", me)
    if gather is None:
        raise SecureRefused("no list of shares is known that mine are on")
    client = _restored(stages, me, state, gather)
    return client.masked(stages.parcels(gather, me), levels), gather.cid


def unmask_event(book: Book, number: int, me: PeerId, state: State, close: Cid) -> Unmask:
    """The shares that unmask a final close, for one active set a round. Raises: SecureRefused."""
    stages, final = Stages(book, number), book.final(number)
    if final is None or final.cid != close or cast(Close, final.event).void:
        raise SecureRefused("this close is not final: what it adds up is not unmasked")
    listed = cast(Close, final.event)
    gather = stages.gather_of(listed)
    if gather is None:
        raise SecureRefused("the updates of this close are not all masked with one list of sharers")
    if consented(book, number, me) not in (None, listed.submissions):
        raise SecureRefused("this client has consented to another active set of this round")
    active = stages.active(listed)
    dropped = [peer for peer in stages.authors(gather) if peer not in active]
    agreed = book.countersigners(number).get((listed.term, close), ())
    client = _restored(stages, me, state, gather)
    client.state = client.state._replace(shares=client.opened(stages.parcels(gather, me)))
    client.consent(active)
    answer = client.answer(active, dropped, agreed)
    return Unmask(
        round=number,
        close=close,
        own_seeds=tuple(answer.own_seeds[peer] for peer in active),
        mask_keys=tuple(answer.mask_keys[peer] for peer in dropped),
    )


def _restored(stages: Stages, me: PeerId, state: State, gather: Said) -> Client:
    return Client(stages.setting(), me, state._replace(keys=stages.keys(stages.ring_of(gather))))
