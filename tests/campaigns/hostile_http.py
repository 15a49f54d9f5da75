"""Attacks over HTTP: on the gateway and its routing, and by a gateway that the daemon asks."""

import contextlib
import secrets
import threading
from typing import Final

import trio

from daemon import wall
from protocols import ipns
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore
from storage.unixfs import add_path
from tests.campaigns.hostile_bombs import MODES
from tests.campaigns.hostile_scene import Attack, Scene

N_LORIS: Final = 200
LORIS_LIMIT_S: Final = 60.0
ANSWER_LIMIT_S: Final = 20.0
N_NAMES: Final = 500
N_BROKEN_OFF: Final = 10_000
N_PIPELINED: Final = 2000
MAX_ANSWER_BYTES: Final = 64 << 20
DRIP_S: Final = 0.5
NONSENSE: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS
    secrets.token_bytes(5000),
    b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 200) for n in range(5000)) + b"\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\nffffffffffffffff\r\n",
    b"GET /ipfs/../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /ipfs/%00%2f%2e%2e HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
)


async def _gateway(scene: Scene) -> tuple[str, int]:
    url = (await scene.ask("status"))[0]["gateway"]
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    return host, int(port)


async def _say(at: tuple[str, int], data: bytes) -> bytes:
    """Say this on a connection of its own, and hear what comes until it is closed. Raises: trio.TooSlowError."""
    heard = b""
    with trio.fail_after(ANSWER_LIMIT_S):
        async with await trio.open_tcp_stream(*at) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                while (piece := await stream.receive_some(1 << 16)) and len(heard) < MAX_ANSWER_BYTES:
                    heard += piece
    return heard


def _get(path: str, *headers: str) -> bytes:
    lines = (f"GET {path} HTTP/1.1", "host: 127.0.0.1", "connection: close", *headers)
    return "\r\n".join((*lines, "", "")).encode()


async def gateway_nonsense(scene: Scene) -> str:
    """What is no request, requests without end, ranges by the thousand, a CAR of everything, and masses at once."""
    at = await _gateway(scene)
    for data in NONSENSE:
        heard = await _say(at, data)
        assert not heard or heard.startswith(b"HTTP/1.1 4"), heard[:100]
    wide = "range: bytes=" + ",".join(f"{n}-{n + 1}" for n in range(0, 3000, 3))
    n_bytes = len(await _say(at, _get(f"/ipfs/{scene.cid}", wide)))
    assert n_bytes < 9 << 20, f"{n_bytes} bytes for a thousand ranges"
    for path in (f"/ipfs/{scene.cid}/" + "a/" * 500, "/routing/v1/providers/" + "b" * 3000, "/ipns/" + "k" * 3000):
        heard = await _say(at, _get(path))
        assert heard.startswith(b"HTTP/1.1 4"), (path[:40], heard[:100])
    one = f"HEAD /ipfs/{scene.cid} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    heard = await _say(at, one * N_PIPELINED + _get(f"/ipfs/{scene.cid}", "range: bytes=0-9"))
    assert heard.count(b"HTTP/1.1 ") <= N_PIPELINED + 1
    heard = await _say(at, _get(f"/ipfs/{scene.cid}", "range: bytes=0-9"))
    assert heard.startswith(b"HTTP/1.1 206"), heard[:100]
    return f"{len(NONSENSE)} refused or cut; paths and ranges over the limits refused; served behind it"


async def gateway_http2(scene: Scene) -> str:
    """HTTP/2 without a word about it before, with streams that are opened and broken off by the ten thousand."""
    at = await _gateway(scene)
    path = b"/ipfs/" + str(scene.cid).encode()
    fields = b"\x82\x86\x04" + bytes([len(path)]) + path + b"\x41\x01x"  # GET, http, the path, a host; as HPACK has it
    streams = b"".join(
        len(fields).to_bytes(3) + b"\x01\x05" + number.to_bytes(4) + fields
        + b"\x00\x00\x04\x03\x00" + number.to_bytes(4) + b"\x00\x00\x00\x08"
        for number in range(1, 2 * N_BROKEN_OFF, 2)
    )  # fmt: skip
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    began_s = trio.current_time()
    heard = await _say(at, hello + streams)
    assert not heard.startswith(b"\x00\x00"), f"it speaks HTTP/2, for {trio.current_time() - began_s:.1f} s"
    upgrade = ("upgrade: h2c", "connection: upgrade, http2-settings", "http2-settings: AAMAAABkAAQAAP__")
    heard = await _say(at, _get(f"/ipfs/{scene.cid}", "range: bytes=0-9", *upgrade))
    assert b"101" not in heard[:20], "it speaks HTTP/2 when it is asked to"
    return "HTTP/2 is not spoken"


async def names_put(scene: Scene) -> str:
    """Records of names put to its routing: no records, another's, old ones, replayed ones, and masses of good ones."""
    at, owner = await _gateway(scene), Identity.generate()
    now_s = wall.unix_s()

    def record(by: Identity, sequence: int, unix_s: float) -> bytes:
        return ipns.make_record(by, f"/ipfs/{scene.cid}", sequence=sequence, unix_s=unix_s, lifetime_s=3600)

    async def put(name: PeerId, body: bytes) -> bytes:
        lines = (f"PUT /routing/v1/ipns/{ipns.name_text(name)} HTTP/1.1", "host: x", "connection: close")
        more = ("content-type: application/vnd.ipfs.ipns-record", f"content-length: {len(body)}")
        return (await _quietly(at, "\r\n".join((*lines, *more, "", "")).encode() + body))[9:12]

    newest = record(owner, 2, now_s)
    assert await put(owner.peer_id, newest) == b"200", "it takes no records of names"
    forged = record(Identity.generate(), 4, now_s)
    bad = (
        b"",
        secrets.token_bytes(5000),
        bytes(1 << 20),
        forged,
        record(owner, 3, now_s - 7200),
        newest[:-9] + bytes(9),
    )
    said = [await put(owner.peer_id, body) for body in bad]
    assert b"200" not in said, said
    await put(owner.peer_id, record(owner, 1, now_s))
    heard = await _say(at, _get(f"/routing/v1/ipns/{ipns.name_text(owner.peer_id)}"))
    assert heard.endswith(newest), "an older record took its place"
    n_taken = 0
    for _ in range(N_NAMES):
        one = Identity.generate()
        n_taken += await put(one.peer_id, record(one, 1, now_s)) == b"200"
    return f"{len(bad)} refused, the newest stays; of {N_NAMES} good ones at once {n_taken} taken"


async def gateway_loris(scene: Scene) -> str:
    """Hundreds of requests whose heads come byte by byte, and replies that nobody reads."""
    at = await _gateway(scene)
    n_ended = 0

    async def trickle(number: int) -> None:
        nonlocal n_ended
        with trio.move_on_after(LORIS_LIMIT_S) as time, contextlib.suppress(trio.BrokenResourceError, OSError):
            async with await trio.open_tcp_stream(*at) as stream:
                if number % 2:
                    await stream.send_all(_get(f"/ipfs/{scene.cid}"))
                    await trio.sleep(LORIS_LIMIT_S / 2)  # takes nothing of 8 MiB
                for byte in _get("/" + "x" * 1000):
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(DRIP_S)
        n_ended += not time.cancelled_caught

    async with trio.open_nursery() as nursery:
        for number in range(N_LORIS):
            nursery.start_soon(trickle, number)
        await trio.sleep(2)
        with trio.move_on_after(LORIS_LIMIT_S) as served:
            while not (await _quietly(at, _get(f"/ipfs/{scene.cid}", "range: bytes=0-9"))).startswith(b"HTTP/1.1 206"):
                await trio.sleep(0.5)
        assert not served.cancelled_caught, "nobody else is served"
    assert n_ended == N_LORIS, f"{N_LORIS - n_ended} of {N_LORIS} stand"
    return f"all {n_ended} cut; others served meanwhile"


async def _quietly(at: tuple[str, int], data: bytes) -> bytes:
    try:
        return await _say(at, data)
    except (OSError, trio.TooSlowError):
        return b""


# --- a server that the daemon asks


async def hostile_gateway(scene: Scene) -> str:
    """A gateway that the user named sends bombs: compressed, endless, dripping, other bytes, heads, circles."""
    server = scene.bomber
    assert server is not None
    n_asked = []
    for mode in MODES:
        server.mode, server.n_asked = mode, 0
        content = scene.folder / f"wanted-{secrets.token_hex(4)}"
        content.write_bytes(secrets.token_bytes(1000))
        cid = str(add_path(MemoryBlockstore(), content))
        began_mib = scene.daemon.resident_mib
        try:
            await scene.ask("get", cid, "--out", f"{content}.out", "--timeout-s", "5")
        except AssertionError:
            pass
        else:
            raise AssertionError(f"it got something by {mode}")
        assert server.n_asked or mode == "providers", f"it was not asked in {mode}"
        grew_bytes = (scene.daemon.resident_mib - began_mib) * (1 << 20)
        assert grew_bytes < (32 << 20), f"{mode}: it took {grew_bytes / (1 << 20):.0f} MiB"
        n_asked.append(server.n_asked)
        server.is_over.set()
        server.is_over = threading.Event()
    return f"nothing taken, in {len(MODES)} ways; asked {sum(n_asked)} times in all"


ATTACKS: Final[dict[str, Attack]] = {
    "gateway-nonsense": gateway_nonsense,
    "gateway-http2": gateway_http2,
    "names-put": names_put,
    "gateway-loris": gateway_loris,
    "hostile-gateway": hostile_gateway,
}
