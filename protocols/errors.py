"""What the wire can fail with: Local is our bug or our limit, Remote is the other side's lie, silence or refusal."""

from typing import ClassVar


class ProtocolError(Exception):
    """A protocol failed."""


class Local(ProtocolError):
    """This node used a protocol wrongly. Please report it with the log."""


class Remote(ProtocolError):
    """A peer broke a protocol. Nothing was accepted from it."""

    code: ClassVar[str] = "remote"


class DialFailed(Remote):
    """The peer cannot be reached. Check that it runs (`covey status` there) and that its address is right."""

    code = "dial_failed"


class ProtocolRefused(Remote):
    """The peer does not speak this protocol. It may be another program, or an older Covey."""

    code = "protocol_refused"


class RelayRefused(Remote):
    """The peer does not relay that. Ask its owner to trust both ends and to set network.relay to "server" there."""

    code = "relay_refused"

    def __init__(self, text: str, *, is_denied: bool = False) -> None:
        super().__init__(text)
        self.is_denied = is_denied  # its owner has to trust this node first, which may come at any time


class StreamBroken(Remote):
    """The peer went away in mid-stream. Covey tries again where it can."""

    code = "stream_broken"


class TimedOut(Remote):
    """The peer did not answer in time."""

    code = "timed_out"


class Malformed(Remote):
    """The peer's bytes do not follow the protocol."""

    code = "malformed"


class Unknown(Malformed):
    """It says what this version knows nothing of, and a later one may."""


class TooBig(Remote):
    """The peer's message is over the size limit."""

    code = "too_big"


class Oversize(TooBig):
    """What this node would send or sign is over the size limit; no peer is to blame. Say less at once."""


class Forged(Remote):
    """A signature does not fit the message, its purpose or its author."""

    code = "forged"


class Expired(Remote):
    """A message's time is over, or lies in the future. If it came from a friend, compare both clocks."""

    code = "expired"


class Replayed(Remote):
    """A message that was accepted before came again."""

    code = "replayed"


class BadFlockKey(ProtocolError):
    """The key of a private flock cannot be used. Get the file again from another member: `covey init --flock FILE`."""

    code = "bad_flock_key"


class NoProviders(Remote):
    """Nobody who can be reached shows it to this node. Check that a node that has it is connected (`covey peer ls`)
    and shares it with this one: what is private, or for peers that its owner trusts, looks to others as if not there.
    """

    code = "no_providers"


class Tampered(Remote):
    """A peer sent other bytes than the CID names; they were thrown away. Fetch from another peer, and ban this one."""

    code = "tampered"


class KuboUnreachable(Remote):
    """The Kubo node does not answer. Start it, and compare the setting kubo.api with its Addresses.API."""

    code = "kubo_unreachable"


class KuboRefused(Remote):
    """The Kubo node refused that. Its own words stand before; `ipfs log tail` there may say more."""

    code = "kubo_refused"


class HttpFailed(Remote):
    """The server does not answer over HTTP as it should. Compare the settings of `fetch` with its address."""

    code = "http_failed"
