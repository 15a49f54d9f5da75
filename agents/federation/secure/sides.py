"""The two sides of secure aggregation, without IO: clients that hide their updates, and whoever adds them up.

Steps, each with those that are left: keys -> shares -> masked updates -> consent to one active set -> unmasking. Any
number may drop out at any step, as long as `threshold` are left.

A client tells one of two secrets of a peer, never both: of an active one the share of what hides it alone, of one that
dropped out the share of what hides it with others. It answers for one active set in a round, once and for all; whoever
keeps a client's state must have it on the disk before the answer leaves.
"""

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np

from agents.errors import AgentError
from agents.federation.secure import masks, shamir
from agents.federation.secure.quantise import Words
from storage.cid import Cid
from storage.keys import PeerId

_SHARE: Final = b"share"
_MASK: Final = b"mask"
SEED: Final = b"seed"
SEED_SHARE: Final = b"share of a seed"
KEY_SHARE: Final = b"share of a key"


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
    """A client's two public keys: one to send it shares, one to agree on masks with it. Signed by its identity.

    seed_digest: of its own seed, by which whoever puts the seed together sees that it is the one.
    """

    for_shares: bytes
    for_masks: bytes
    seed_digest: bytes


class Parcel(NamedTuple):
    """A client's two shares for one holder, sealed, with a digest of each: a false one is known when it is told."""

    sealed: bytes
    seed_digest: bytes
    key_digest: bytes


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
        return Keys(
            masks.public_key(self.state.share_key),
            masks.public_key(self.state.mask_key),
            self._setting.digest(SEED, self.state.own_seed, self._me),
        )

    def shares(self, keys: Mapping[PeerId, Keys]) -> dict[PeerId, Parcel]:
        """Both secrets, split for all that sent keys, each part hidden for its holder. Raises: SecureRefused."""
        setting = self._setting
        if not keys.keys() <= set(setting.clients) or keys.get(self._me) != self.keys():
            raise SecureRefused("the list of keys is not that of this round's clients, or holds another key of mine")
        if len({key for one in keys.values() for key in one[:2]}) != 2 * len(keys):
            raise SecureRefused("two clients have one key")
        if len(keys) < setting.threshold:
            raise SecureRefused(f"{len(keys)} clients sent keys, and {setting.threshold} are needed")
        n_shares = len(setting.clients)
        own = shamir.split(self.state.own_seed, setting.threshold, n_shares)
        mask = shamir.split(self.state.mask_key, setting.threshold, n_shares)
        self.state = self.state._replace(keys=dict(keys))
        hidden = {}
        for peer, theirs in keys.items():
            at = setting.place(peer)
            seed = self._agree(self.state.share_key, theirs.for_shares, setting.purpose(_SHARE, self._me, peer))
            hidden[peer] = Parcel(
                masks.hide(seed, own[at] + mask[at], setting.purpose(_SHARE, self._me, peer)),
                setting.digest(SEED_SHARE, own[at], self._me, peer),
                setting.digest(KEY_SHARE, mask[at], self._me, peer),
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
        shares = {}
        for peer, parcel in hidden.items():
            purpose = setting.purpose(_SHARE, peer, self._me)
            seed = self._agree(state.share_key, state.keys[peer].for_shares, purpose)
            try:
                both = masks.reveal(seed, parcel.sealed, purpose)
            except masks.BadKey as error:
                raise SecureRefused(f"the shares of {peer}: {error}") from None
            if len(both) != 2 * shamir.SHARE_BYTES:
                raise SecureRefused(f"the shares of {peer} are not two")
            one, other = both[: shamir.SHARE_BYTES], both[shamir.SHARE_BYTES :]
            if (setting.digest(SEED_SHARE, one, peer, self._me), setting.digest(KEY_SHARE, other, peer, self._me)) != (
                parcel.seed_digest,
                parcel.key_digest,
            ):
                raise SecureRefused(f"the shares of {peer} are not those that it vouched for")
            shares[peer] = (one, other)
        return shares

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
        return cls(secrets.token_bytes(32), secrets.token_bytes(32), secrets.token_bytes(32), {})


class Adder:
    """Adds masked updates as they come, one at a time in memory, and takes the masks away at the end."""

    def __init__(self, setting: Setting, keys: Mapping[PeerId, Keys], sharers: Iterable[PeerId], n_words: int) -> None:
        """`sharers` are the clients that sent shares: those whose masks the updates hold."""
        self._setting = setting
        self._keys = dict(keys)
        self._sharers = set(sharers)
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
            seed = self._secret(peer, {one: answer.own_seeds.get(peer) for one, answer in answers.items()})
            if self._setting.digest(SEED, seed, peer) != self._keys[peer].seed_digest:
                raise FalseShares("the seed that came of the shares is not the one it vouched for", peer)
            masks.apply(self._total, seed, -1)
        for gone in sorted(self.dropped):
            key = self._secret(gone, {one: answer.mask_keys.get(gone) for one, answer in answers.items()})
            if masks.public_key(key) != self._keys[gone].for_masks:
                raise FalseShares("the key that came of the shares is not the one it signed", gone)
            for peer in sorted(self.active):
                purpose = self._setting.purpose(_MASK, *sorted((gone, peer)))
                try:
                    seed = masks.agree(key, self._keys[peer].for_masks, purpose)
                except masks.BadKey as error:
                    raise FalseShares(f"its public key is bad: {error}", peer) from None
                masks.apply(self._total, seed, -1 if peer < gone else 1)
        return self._total

    def _secret(self, peer: PeerId, parts: Mapping[PeerId, bytes | None]) -> bytes:
        found = {self._setting.place(one): part for one, part in parts.items() if part is not None}
        try:
            return shamir.combine(found, self._setting.threshold)
        except shamir.BadShares as error:
            raise FalseShares(str(error), peer) from None
