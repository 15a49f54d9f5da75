"""A new home: folders, an identity, a settings file that says where to look, and the key of a private flock."""

from pathlib import Path
from typing import Final

from daemon.errors import BadHome, BadInput, Unfit
from daemon.paths import Home, make_home
from protocols.pnet import MAX_FILE_BYTES, FlockKey
from storage.durable import write_file
from storage.keys import Identity

_FIRST_CONFIG: Final = b"""# Settings of this Covey node. All of them with their values: covey config show
# Change one: covey config set network.port 4702    (the daemon reads this file when it starts)
"""


def initialise(home: Home) -> tuple[Identity, bool]:
    """Make the home, unless it is there; return its identity, and whether that is new. Raises: BadHome, InvalidKey."""
    make_home(home)
    if not home.config.exists():
        write_file(home.config, _FIRST_CONFIG)
    if home.key.exists():
        return Identity.load(home.key), False
    if home.catalog.exists() or home.index.exists():
        raise BadHome(
            f"{home.key} is missing, yet this home was in use. Restore the key from a backup: without it the node is "
            "another one to its peers"
        )
    identity = Identity.generate()
    identity.save(home.key)
    return identity, True


def join_flock(home: Home, file: Path | None) -> FlockKey:
    """Keep the key in `file`, or a new one; it holds from the next start. Raises: BadFlockKey, BadInput, Unfit."""
    key = FlockKey.generate() if file is None else read_flock_key(file)
    if not home.flock_key.exists():
        key.save(home.flock_key)
    elif file is None or FlockKey.load(home.flock_key) != key:
        raise Unfit(f"this node is in another flock. To leave that one, move {home.flock_key} away")
    return key


def read_flock_key(file: Path) -> FlockKey:
    """A key on its way here: it may lie on a stick, where no file is its owner's alone. Raises as `join_flock`."""
    try:
        with file.open("rb") as source:
            return FlockKey.parse(source.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None
