"""How content of other publishers is fetched and passed on, adapters and artifacts of every kind alike."""

from typing import Final

from protocols.adapters import Audience
from storage.blockstore import Visibility

MAX_PROVIDERS: Final = 16
# Who may have from us what we fetched, by the audience that its publisher signed.
PASSED_ON: Final[dict[Audience, Visibility]] = {
    "members": Visibility.PRIVATE,
    "flock": Visibility.FLOCK,
    "public": Visibility.PUBLIC,
}
