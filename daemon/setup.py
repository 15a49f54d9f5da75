"""A new home: folders, an identity, and a settings file that says where to look."""

from typing import Final

from daemon.errors import BadHome
from daemon.paths import Home, make_home
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
