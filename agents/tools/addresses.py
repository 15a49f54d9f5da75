"""Which addresses a tool may connect to: none of this machine's, its network's or a cloud's own, unless allowed."""

from functools import partial

from agents.tools.tool import ToolFailed, ToolRefused
from protocols.addresses import holder_of, is_public
from protocols.resolving import look_up_in
from protocols.web_http import look_up


async def resolve(host: str, port: int, *, may_reach_private: bool) -> str:
    """The address to connect to: looked up once, and used as it was checked. Raises: ToolRefused, ToolFailed."""
    try:
        if holder_of(host):  # a number, which waits behind no names that nobody answers for
            texts = [host]
        else:
            texts = await look_up_in("tools", partial(look_up, host, port))
    except OSError as error:
        raise ToolFailed(f"{host} is not found: {error.strerror or error}") from None
    except UnicodeError as error:  # a name that cannot be one: over 63 letters, or none, between two dots
        raise ToolFailed(f"{host[:100]} is no name of a host: {error}") from None
    if not texts:
        raise ToolFailed(f"{host} has no address")
    if not may_reach_private and not all(map(is_public, texts)):
        raise ToolRefused(f"{host} is an address of a private network (policy.may_reach_private)")
    return texts[0]


def is_allowed(host: str, port: int, usual_port: int, patterns: tuple[str, ...]) -> bool:
    """Is a host, at this port, one of those? A pattern is HOST, HOST:PORT or *.HOST."""
    host = host.casefold().rstrip(".")
    for pattern in patterns:
        name, _, number = pattern.casefold().partition(":")
        if port != (int(number) if number.isdecimal() else usual_port):
            continue
        if host == name or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False
