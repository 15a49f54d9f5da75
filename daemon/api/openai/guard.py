"""Who may ask: a program on this machine, or one that is let in by name, with the token; never a web page elsewhere."""

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.types import Scope

from daemon.api.openai.face import Token
from daemon.api.openai.problems import INVALID, Problem, Refusal, bad_key, invalid

MAX_HEADER_CHARS: Final = 1024
LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on


def check(scope: Scope, token: Token, hosts: tuple[str, ...]) -> None:
    """Raises: Refusal for a foreign Host or Origin, then for a token that is missing or wrong.

    Host and Origin are looked at first: a page that was made to point its own name at this machine learns nothing.
    """
    if scope["http_version"] not in ("1.0", "1.1"):
        raise invalid("this server speaks HTTP/1.1", code="http_version", status=505)
    host = _header(scope, b"host")
    if not _is_known(_name(f"//{host}"), hosts):
        raise _foreign("Host")
    origin = _header(scope, b"origin")
    if origin and urlsplit(origin).netloc.lower() != host.lower():
        raise _foreign("Origin")
    kind, _, given = _header(scope, b"authorization").partition(" ")
    if kind.lower() != "bearer" or not given.strip():
        raise bad_key(is_missing=True)
    if not token.is_(given.strip()):
        raise bad_key(is_missing=False)


def _is_known(name: str, hosts: tuple[str, ...]) -> bool:
    if name in LOCAL or name in hosts:
        return True
    # Listening on all addresses, it is called by any of them; a name could be anybody's.
    return not ANY_ADDRESS.isdisjoint(hosts) and _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _header(scope: Scope, name: bytes) -> str:
    """The header's text, empty without it. Raises: Refusal for more than one, or too long a one."""
    found = [value for key, value in scope["headers"] if key == name]
    if len(found) > 1 or any(len(value) > MAX_HEADER_CHARS for value in found):
        raise invalid(f"the header {name.decode()} is there more than once, or too long")
    return found[0].decode("latin-1").strip() if found else ""


def _foreign(header: str) -> Refusal:
    text = f"the {header} header names another site: this server answers programs, not other sites' pages"
    return Refusal(403, Problem(message=text, type=INVALID, code="foreign_origin"))
