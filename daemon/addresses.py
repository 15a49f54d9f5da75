"""Addresses in the settings: those that no daemon could start with are refused where they are written."""

import ipaddress
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from daemon.errors import BadConfig


def refuse(setting: str, values: Any, name: str) -> None:
    """Raises: BadConfig, which begins with `name`, where a value of this setting has to be an address and is none."""
    from protocols.errors import Malformed

    for value in ([values] if isinstance(values, str) else values) if setting in SETTINGS else ():
        try:
            SETTINGS[setting](value)
        except (Malformed, ValueError) as error:
            raise BadConfig(f"{name}: {setting}: {error}") from None


def _peer(text: str) -> None:
    from protocols.net import PeerInfo

    PeerInfo.parse(text)


def _server(text: str) -> None:
    from protocols.sources import KUBO, HttpSource

    if text.startswith(KUBO):
        raise ValueError(f"{KUBO} does not stand before a URL here; for the Kubo of kubo.api set fetch.has_kubo")
    HttpSource.parse(text)


def _backend(text: str) -> None:
    if text and (urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).hostname):
        raise ValueError(f"{text!r} is no URL of the form http://HOST:PORT/v1")


SETTINGS: Final[dict[str, Callable[[str], object]]] = {
    "network.host": ipaddress.ip_address,
    "network.bootstrap": _peer,
    "fetch.gateways": _server,
    "fetch.routers": _server,
    "kubo.api": _server,
    "backend.url": _backend,
}
