"""A client's secrets of the rounds that go on, in one file that only this node's user can read.

They are on the disk before anybody hears of their public keys, and destroyed once the round has its result: what was
told of them by then opens no more than the sum.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from agents.errors import AgentError
from agents.federation.secure.masks import SEED_BYTES
from agents.federation.secure.sides import State
from protocols.rounds import Round
from storage.cid import Cid
from storage.durable import write_file

MAX_VAULT_BYTES: Final = 1 << 16
MAX_ROUNDS_KEPT: Final = 64

Seed = Annotated[bytes, Meta(min_length=SEED_BYTES, max_length=SEED_BYTES)]


class BadVault(AgentError):
    """The secrets of a secure round cannot be read. This node drops out of it, and takes part in the next."""

    code = "bad_vault"


class _Secrets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    round: Round
    share_key: Seed
    mask_key: Seed
    own_seed: Seed


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    experiment: str
    rounds: Annotated[tuple[_Secrets, ...], Meta(max_length=MAX_ROUNDS_KEPT)] = ()
    format: Literal[1] = 1


def read(data: bytes) -> _File:
    """The file, from its bytes. Raises: ValueError, msgspec.DecodeError."""
    if len(data) > MAX_VAULT_BYTES:
        raise ValueError("it is larger than any such file")
    return msgspec.json.decode(data, type=_File)


class Vault:
    """One experiment's. For one thread at a time."""

    def __init__(self, path: Path, experiment: Cid) -> None:
        self._path = path
        self._experiment = str(experiment)

    def get(self, number: int) -> State:
        """The secrets of a round whose keys were said. Raises: BadVault."""
        for one in self._read().rounds:
            if one.round == number:
                return State(one.share_key, one.mask_key, one.own_seed, {})
        raise BadVault(f"{self._path} holds no secrets of round {number}: an older copy of this home was put back")

    def make(self, number: int) -> State:
        """The secrets of a round, drawn and durable, or those that were drawn before. Raises: BadVault, StoreFull."""
        file = self._read()
        if any(one.round == number for one in file.rounds):
            return self.get(number)
        new = State.new()
        kept = [one for one in file.rounds if one.round > number - MAX_ROUNDS_KEPT][-(MAX_ROUNDS_KEPT - 1) :]
        self._write((*kept, _Secrets(number, new.share_key, new.mask_key, new.own_seed)))
        return new

    def forget(self, before: int) -> None:
        """Destroy the secrets of rounds that are over. Raises: BadVault, StoreFull."""
        rounds = self._read().rounds
        kept = tuple(one for one in rounds if one.round >= before)
        if len(kept) != len(rounds):
            self._write(kept)

    def _write(self, rounds: tuple[_Secrets, ...]) -> None:
        write_file(self._path, msgspec.json.encode(_File(self._experiment, rounds)))

    def _read(self) -> _File:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_VAULT_BYTES + 1)
        except FileNotFoundError:
            return _File(self._experiment)
        try:
            found = read(data)
        except (ValueError, msgspec.DecodeError) as error:
            raise BadVault(f"{self._path} cannot be read: {error}. Move it away to take part in later rounds") from None
        if found.experiment != self._experiment:
            raise BadVault(f"{self._path} belongs to another experiment")
        return found
