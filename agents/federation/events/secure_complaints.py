"""Who dealt false shares: proved by the client that got them, to everybody, before any update rests on them.

Shares are sealed, so their holder alone sees that they are false. It says what its key and the dealer's agree on, with
a proof that it is that: with this anybody opens that one parcel, and sees the same. Nobody can prove an honest dealer
false: what it sealed opens, to shares that fit. A complaint tells what its dealer knew anyway, and no other secret.
"""

from agents.federation.events.book import Book, Said
from agents.federation.events.secure_stages import Stages
from agents.federation.secure import group
from agents.federation.secure.sides import COMPLAINT, FalseParcel, opened
from protocols.rounds import Complain, Shares
from storage.keys import PeerId


def proved_false(book: Book, number: int) -> dict[PeerId, list[Said]]:
    """The dealers of a round that complaints prove false, with those.

    It follows from signed events alone, so all that know the same name the same; and who is proved false stays so.
    """
    found: dict[PeerId, list[Said]] = {}
    complaints = book.said_in(number, Complain)
    if not complaints or book.secure is None or book.selected(number) is None:
        return found
    stages = Stages(book, number)
    for said, event in complaints:
        dealt = book.get(event.shares)
        if dealt is not None and not isinstance(dealt.event, Shares):
            book.complaints[said.cid] = False
        ring = book.get(dealt.event.gather) if dealt is not None and isinstance(dealt.event, Shares) else None
        if dealt is None or ring is None or not stages.is_ring(ring):
            continue
        if book.complaints[said.cid] is None:  # each is looked at once: there may be many, and all false
            book.complaints[said.cid] = _is_proof(stages, said, event, dealt, ring)
        if book.complaints[said.cid]:
            found.setdefault(dealt.author, []).append(said)
    return found


def _is_proof(stages: Stages, said: Said, event: Complain, dealt: Said, ring: Said) -> bool:
    keys = stages.keys(ring)
    if said.author not in keys or not stages.are_for(dealt, ring):
        return False
    setting, parcel = stages.setting(), stages.parcel(dealt, ring, said.author)
    about = setting.purpose(COMPLAINT, dealt.author, said.author)
    if not group.is_proved(keys[said.author].for_shares, event.proof, about, (parcel.ephemeral, event.shared)):
        return False
    try:
        opened(setting, dealt.author, said.author, parcel, event.shared)
    except FalseParcel:
        return True
    return False


def because(said: Said) -> str:
    """What a complaint that was looked at proves, in words."""
    return f"it dealt shares that are not those of its secrets: {said.author} proves it by {said.cid}"
