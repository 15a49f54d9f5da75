"""The two sides of secure aggregation, without IO: clients that hide their updates, and whoever adds them up.

Steps, each with those that are left: keys -> shares -> masked updates -> consent to one active set -> unmasking. Any
number may drop out at any step, as long as `threshold` are left.

Shares are verifiable: a client sees whether those that it was dealt are of the secrets that their dealer vouched for,
and goes along with nobody who dealt it others (`complaints` has all see it too). So whoever sends an update can answer.

A client tells one of two secrets of a peer, never both: of an active one the share of what hides it alone, of one that
dropped out the share of what hides it with others. It answers for one active set in a round, once and for all; whoever
keeps a client's state must have it on the disk before the answer leaves.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np

from agents.errors import AgentError
from agents.federation.secure import group, masks, shamir
from agents.federation.secure.quantise import Words
from storage.cid import Cid
from storage.keys import PeerId

_SHARE: Final = b"share"
_MASK: Final = b"mask"
SEED_SHARE: Final = b"share of a seed"
KEY_SHARE: Final = b"share of a key"
EPHEMERAL: Final = b"key that seals"
COMPLAINT: Final = b"complaint"


class SecureRefused(AgentError):
    """Secure aggregation cannot go on, or a coordinator asked for what would lay an update open. The round is void."""

    code = "secure_refused"


class FalseShares(SecureRefused):
    """A client dealt shares of no secret that it vouched for: the sum cannot be unmasked, and it is to blame."""

    code = "false_shares"

    def __init__(self, why: str, dealer: PeerId | None = None) -> None:
        super().__init__(f"the secret of {dealer} cannot be put together: {why}")
        self.dealer = dealer


class Setting(NamedTuple):
    """One round's aggregation: what it is for, who takes part, and how many of them it takes to unmask."""

    plan: Cid
    round: int
    model: Cid
    clients: tuple[PeerId, ...]
    threshold: int

    def place(self, peer: PeerId) -> int:
        """Whose share is which: the place among the clients, from 1 on."""
        return self.clients.index(peer) + 1

    def purpose(self, kind: bytes, *peers: PeerId) -> bytes:
        """What a seed between these peers is good for. Each part has a length before it, so none runs into another."""
        parts = (b"covey secure aggregation", kind, bytes(self.plan), bytes(self.model), *peers)
        return self.round.to_bytes(8) + b"".join(len(part).to_bytes(2) + part for part in parts)

    def digest(self, kind: bytes, data: bytes, *peers: PeerId) -> bytes:
        """What commits to a secret of 32 random bytes or more, and tells nothing of it."""
        return hashlib.sha256(self.purpose(kind, *peers) + data).digest()


class Keys(NamedTuple):
    """A client's public keys: one to send it shares, one to agree on masks with it. Signed by its identity.

    seed_point: of its own seed, by which whoever puts the seed together sees that it is the one.
    """

    for_shares: bytes
    for_masks: bytes
    seed_point: bytes

    @property
    def are_sound(self) -> bool:
        """Can others use them?"""
        return all(map(group.is_point, self))


class Parcel(NamedTuple):
    """A client's two shares for one holder, sealed, with a digest of each: a false one is known when it is told.

    ephemeral: the key that seals them, made for these shares alone: who shows what it and the holder's agree on lays
    open this parcel, and no other. proof: its maker knows what stands behind it. With another's key in its place, who
    complains would lay open what that one sealed.
    seed_points, key_points: Feldman's commitments, the same for all holders.
    """

    sealed: bytes
    seed_digest: bytes
    key_digest: bytes
    ephemeral: bytes
    proof: bytes
    seed_points: tuple[bytes, ...]
    key_points: tuple[bytes, ...]


class FalseParcel(SecureRefused):
    """A client was dealt what are no shares of its dealer's secrets. It says so, and the round goes on without him."""

    code = "false_parcel"

    def __init__(self, why: str, dealer: PeerId | None = None) -> None:
        super().__init__(f"the shares of {dealer} {why}")
        self.dealer = dealer


def opened(setting: Setting, dealer: PeerId, holder: PeerId, parcel: Parcel, shared: bytes) -> tuple[bytes, bytes]:
    """The shares in a parcel, by what its key and its holder's agree on. Raises: FalseParcel."""
    purpose = setting.purpose(_SHARE, dealer, holder)
    try:
        both = masks.reveal(masks.derive(shared, purpose), parcel.sealed, purpose)
    except masks.BadKey as error:
        raise FalseParcel(f"cannot be had: {error}", dealer) from None
    if len(both) != 2 * shamir.SHARE_BYTES:
        raise FalseParcel("are not two", dealer)
    one, other = both[: shamir.SHARE_BYTES], both[shamir.SHARE_BYTES :]
    digests = setting.digest(SEED_SHARE, one, dealer, holder), setting.digest(KEY_SHARE, other, dealer, holder)
    if digests != (parcel.seed_digest, parcel.key_digest):
        raise FalseParcel("are not those that it vouched for", dealer)
    at = setting.place(holder)
    if not (shamir.fits(one, at, parcel.seed_points) and shamir.fits(other, at, parcel.key_points)):
        raise FalseParcel("are not of its secrets", dealer)
    return one, other


class Answer(NamedTuple):
    """A client's shares for unmasking: of the active ones' own seeds, and of the dropped ones' mask keys."""

    own_seeds: dict[PeerId, bytes]
    mask_keys: dict[PeerId, bytes]


class Client:
    """One client of one round. `state` is what to keep between the steps, and what to go on from after a crash."""

    def __init__(self, setting: Setting, me: PeerId, state: "State | None" = None) -> None:
        self._setting = setting
        self._me = me
        self.state = state or State.new()

    def keys(self) -> Keys:
        """The first step."""
        return Keys(*map(group.public, (self.state.share_key, self.state.mask_key, self.state.own_seed)))

    def shares(self, keys: Mapping[PeerId, Keys]) -> dict[PeerId, Parcel]:
        """Both secrets, split for all that sent keys, each part hidden for its holder. Raises: SecureRefused."""
        setting = self._setting
        if not keys.keys() <= set(setting.clients) or keys.get(self._me) != self.keys():
            raise SecureRefused("the list of keys is not that of this round's clients, or holds another key of mine")
        if len(keys) < setting.threshold:
            raise SecureRefused(f"{len(keys)} clients sent keys, and {setting.threshold} are needed")
        n_shares = len(setting.clients)
        own = shamir.split(self.state.own_seed, setting.threshold, n_shares)
        mask = shamir.split(self.state.mask_key, setting.threshold, n_shares)
        self.state = self.state._replace(keys=dict(keys))
        key = group.new_secret()
        proof = group.prove(key, setting.purpose(EPHEMERAL, self._me))
        hidden = {}
        for peer, theirs in keys.items():
            at, purpose = setting.place(peer), setting.purpose(_SHARE, self._me, peer)
            seed = self._agree(key, theirs.for_shares, purpose)
            hidden[peer] = Parcel(
                masks.hide(seed, own.shares[at] + mask.shares[at], purpose),
                setting.digest(SEED_SHARE, own.shares[at], self._me, peer),
                setting.digest(KEY_SHARE, mask.shares[at], self._me, peer),
                group.public(key),
                proof,
                own.commitments,
                mask.commitments,
            )
        return hidden

    def masked(self, hidden: Mapping[PeerId, Parcel], levels: Words) -> Words:
        """The update, hidden; `levels` is used up. `hidden` are the shares that others made for this client.

        Raises: SecureRefused.
        """
        state, setting = self.state, self._setting
        if state.shares is not None:
            raise SecureRefused("this client has sent its update for this round: it sends no second one")
        shares = self.opened(hidden)
        masks.apply(levels, state.own_seed, 1)
        for peer in sorted(hidden):
            if peer != self._me:
                purpose = setting.purpose(_MASK, *sorted((self._me, peer)))
                seed = self._agree(state.mask_key, state.keys[peer].for_masks, purpose)
                masks.apply(levels, seed, 1 if self._me < peer else -1)
        self.state = state._replace(shares=shares)
        return levels

    def opened(self, hidden: Mapping[PeerId, Parcel]) -> dict[PeerId, tuple[bytes, bytes]]:
        """The shares in these parcels, which are those of all whose masks go into updates. Raises: SecureRefused."""
        state, setting = self.state, self._setting
        if self._me not in hidden or not hidden.keys() <= state.keys.keys():
            raise SecureRefused("shares came from who sent no keys, or my own are missing")
        if len(hidden) < setting.threshold:
            raise SecureRefused(f"{len(hidden)} clients sent shares, and {setting.threshold} are needed")
        return {peer: self.open(peer, parcel) for peer, parcel in hidden.items()}

    def open(self, dealer: PeerId, parcel: Parcel) -> tuple[bytes, bytes]:
        """The shares that another made for this client. Raises: FalseParcel."""
        return opened(self._setting, dealer, self._me, parcel, self.shared(parcel))

    def shared(self, parcel: Parcel) -> bytes:
        """What this client's key for shares and a parcel's agree on. Raises: SecureRefused."""
        try:
            return group.times(self.state.share_key, parcel.ephemeral)
        except group.BadPoint as error:
            raise SecureRefused(f"a parcel's key is bad: {error}") from None

    def consent(self, active: Iterable[PeerId]) -> tuple[PeerId, ...]:
        """The active set, to be signed, in order. Only one is ever consented to. Raises: SecureRefused."""
        chosen = tuple(sorted(active))
        if self.state.shares is None or self.state.answered not in (None, chosen):
            raise SecureRefused(
                "this client has consented to another active set of this round, or sent no update in it"
            )
        if len(set(chosen)) != len(chosen) or not set(chosen) <= self.state.shares.keys() or self._me not in chosen:
            raise SecureRefused("the active set is not one of clients that shared their secrets, me among them")
        if len(chosen) < self._setting.threshold:
            raise SecureRefused(f"{len(chosen)} clients are active, and {self._setting.threshold} are needed")
        self.state = self.state._replace(answered=chosen)
        return chosen

    def answer(self, active: Iterable[PeerId], dropped: Iterable[PeerId], consents: Iterable[PeerId]) -> Answer:
        """What unmasks the sum. `consents` are those whose signature under this very set was checked.

        Raises: SecureRefused.
        """
        chosen, gone = tuple(sorted(active)), set(dropped)
        shares = self.state.shares
        if shares is None or self.state.answered != chosen:
            raise SecureRefused("this is not the active set that I consented to")
        if both := gone & set(chosen):
            raise SecureRefused(f"{min(both)} is on both lists, active and dropped: both its secrets would be told")
        if gone != shares.keys() - set(chosen):
            raise SecureRefused("the dropped are not those that shared secrets and are not active")
        agreed = set(consents)
        if not agreed <= set(self._setting.clients) or len(agreed) < self._setting.threshold:
            raise SecureRefused(f"{len(agreed)} clients consented, and {self._setting.threshold} are needed")
        return Answer({peer: shares[peer][0] for peer in chosen}, {peer: shares[peer][1] for peer in gone})

    def _agree(self, secret: bytes, public: bytes, purpose: bytes) -> bytes:
        try:
            return masks.agree(secret, public, purpose)
        except masks.BadKey as error:
            raise SecureRefused(f"a key of another client is bad: {error}") from None


class State(NamedTuple):
    """A client's secrets and what it has seen: to be kept for the length of a round, and destroyed with it."""

    share_key: bytes
    mask_key: bytes
    own_seed: bytes
    keys: Mapping[PeerId, Keys]
    shares: dict[PeerId, tuple[bytes, bytes]] | None = None
    answered: tuple[PeerId, ...] | None = None

    @classmethod
    def new(cls) -> "State":
        """Secrets from the system's source of them."""
        return cls(group.new_secret(), group.new_secret(), group.new_secret(), {})


class Adder:
    """Adds masked updates as they come, one at a time in memory, and takes the masks away at the end."""

    def __init__(
        self, setting: Setting, keys: Mapping[PeerId, Keys], dealt: Mapping[PeerId, Parcel], n_words: int
    ) -> None:
        """`dealt` holds a parcel of each client that sent shares: of those whose masks the updates hold."""
        self._setting = setting
        self._keys = dict(keys)
        self._dealt = dict(dealt)
        self._sharers = set(dealt)
        self._total = np.zeros(n_words, np.uint32)
        self.active: set[PeerId] = set()

    def add(self, peer: PeerId, words: Words) -> None:
        """Take in one client's masked update. Raises: SecureRefused."""
        if peer not in self._sharers or peer in self.active:
            raise SecureRefused(f"{peer} shared no secrets, or sent its update before")
        if words.shape != self._total.shape or words.dtype != np.uint32:
            raise SecureRefused(
                f"the masked update of {peer} has {words.size} words, and {self._total.size} are wanted"
            )
        np.add(self._total, words, out=self._total)
        self.active.add(peer)

    @property
    def dropped(self) -> set[PeerId]:
        """Who shared secrets and sent no update."""
        return self._sharers - self.active

    def total(self, answers: Mapping[PeerId, Answer]) -> Words:
        """The sum of the active clients' levels. Raises: SecureRefused when too few have answered, or falsely."""
        for peer in sorted(self.active):
            parts = {one: answer.own_seeds.get(peer) for one, answer in answers.items()}
            masks.apply(self._total, self._secret(peer, parts, self._dealt[peer].seed_points), -1)
        for gone in sorted(self.dropped):
            parts = {one: answer.mask_keys.get(gone) for one, answer in answers.items()}
            key = self._secret(gone, parts, self._dealt[gone].key_points)
            for peer in sorted(self.active):
                purpose = self._setting.purpose(_MASK, *sorted((gone, peer)))
                try:
                    seed = masks.agree(key, self._keys[peer].for_masks, purpose)
                except masks.BadKey as error:
                    raise FalseShares(f"its public key is bad: {error}", peer) from None
                masks.apply(self._total, seed, -1 if peer < gone else 1)
        return self._total

    def _secret(self, peer: PeerId, parts: Mapping[PeerId, bytes | None], points: tuple[bytes, ...]) -> bytes:
        """The one secret that `points` stand for. Shares that are not of it are left out, where others are enough."""
        found = {self._setting.place(one): part for one, part in parts.items() if part is not None}
        try:
            return combined(found, self._setting.threshold, points)
        except shamir.BadShares as error:
            true = {x: share for x, share in found.items() if shamir.fits(share, x, points)}
            if len(true) < self._setting.threshold:
                raise FalseShares(str(error), peer) from None
            return shamir.combine(true, self._setting.threshold)


def combined(shares: Mapping[int, bytes], threshold: int, points: tuple[bytes, ...]) -> bytes:
    """The secret of shares that all fit together, and are of the one that was vouched for. Raises: BadShares."""
    secret = shamir.combine(shares, threshold)
    if group.secret_of(0) == secret or group.public(secret) != points[0]:
        raise shamir.BadShares("what came of the shares is not the secret that it vouched for")
    return secret
