"""Private flocks: the cipher against another implementation, the key file, and who can connect to whom."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from nacl.secret import SecretBox

from protocols.errors import BadFlockKey, DialFailed
from protocols.net import PeerInfo, Stream
from protocols.net_libp2p import NetConfig, dialling, open_network
from protocols.pnet import MAX_FILE_BYTES, FlockKey, hsalsa20
from storage.keys import Identity

KEY = FlockKey(bytes(range(32)))
OTHER_KEY = FlockKey(bytes(32))
FILE = b"/key/swarm/psk/1.0.0/\n/base16/\n" + KEY.key.hex().encode()


def test_the_derived_key_is_that_of_the_paper() -> None:
    first = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
    second = bytes.fromhex("dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4")
    assert hsalsa20(first, bytes.fromhex("69696ee955b62b73cd62bda875fc73d6")) == second


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24), st.binary(max_size=300))
def test_the_stream_is_that_of_another_implementation(key: bytes, nonce: bytes, message: bytes) -> None:
    """A secret box (NaCl) is a tag, then the message under XSalsa20 from its 32nd byte on."""
    stream = FlockKey(key).cipher(nonce).encrypt(bytes(32) + message)
    assert stream[32:] == SecretBox(key).encrypt(message, nonce).ciphertext[16:]


def test_a_stream_goes_on_wherever_it_was_cut() -> None:
    whole = KEY.cipher(bytes(24)).encrypt(bytes(1000))
    cut = KEY.cipher(bytes(24))
    assert cut.encrypt(bytes(1)) + cut.encrypt(bytes(700)) + cut.encrypt(bytes(299)) == whole


def test_a_saved_key_is_read_again_and_never_overwritten(tmp_path: Path) -> None:
    KEY.save(tmp_path / "swarm.key")
    assert FlockKey.load(tmp_path / "swarm.key") == KEY
    assert (tmp_path / "swarm.key").read_bytes() == FILE + b"\n"
    with pytest.raises(FileExistsError):
        OTHER_KEY.save(tmp_path / "swarm.key")
    (tmp_path / "swarm.key").chmod(0o640)
    with pytest.raises(BadFlockKey, match="chmod 600"):
        FlockKey.load(tmp_path / "swarm.key")


def test_a_key_file_is_read_in_each_of_its_encodings() -> None:
    header = b"/key/swarm/psk/1.0.0/\n"
    assert FlockKey.parse(header + b"/base64/\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n") == KEY
    assert FlockKey.parse(header + b"/bin/\n" + KEY.key) == KEY
    assert FlockKey.parse(FILE.replace(b"\n", b"\r\n")) == KEY


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        KEY.key,
        FILE[1:],
        FILE[:-1],
        FILE[:-2],
        FILE + b"00",
        FILE.replace(b"base16", b"base58"),
        FILE.replace(b"base16", b"base64"),
        FILE[:-1] + b"\xff",
        FILE + b" " * MAX_FILE_BYTES,
    ],
)
def test_what_is_no_key_is_refused(raw: bytes) -> None:
    with pytest.raises(BadFlockKey):
        FlockKey.parse(raw)


@given(st.binary(max_size=100))
def test_any_bytes_behind_the_header_are_a_key_or_refused(raw: bytes) -> None:
    with suppress(BadFlockKey):
        assert len(FlockKey.parse(b"/key/swarm/psk/1.0.0/\n" + raw).key) == 32


def test_a_key_shows_itself_in_no_text() -> None:
    assert KEY.key.hex() not in repr(KEY) and repr(KEY.key) not in repr(KEY)
    assert KEY.key.hex()[:16] != KEY.fingerprint


def member(key: FlockKey | None) -> Any:
    listening = NetConfig(listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, flock_key=key)
    return open_network(Identity.generate(), listening)


async def test_members_speak_with_each_other() -> None:
    content = os.urandom(3_000_000)

    async def give(stream: Stream) -> None:
        await stream.write(content)

    async with member(KEY) as a, member(KEY) as b:
        b.serve("/content", give)
        await a.connect(PeerInfo.parse(b.addresses()[0]))
        stream = await a.open_stream(b.peer_id, ["/content"])
        with trio.fail_after(20):
            got = b""
            while len(got) < len(content):
                got += await stream.read(1 << 20)
        assert got == content
        assert a.flock == b.flock == KEY.fingerprint


@pytest.mark.parametrize("key", [None, OTHER_KEY])
async def test_strangers_get_in_neither_way_and_learn_it_at_once(
    key: FlockKey | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "DIAL_TIMEOUT_S", math.inf)
    async with member(KEY) as inside, member(key) as outside:
        for a, b in ((inside, outside), (outside, inside)):
            with trio.fail_after(20), pytest.raises(DialFailed, match=r"may be in \w+ private flock"):
                await a.connect(PeerInfo.parse(b.addresses()[0]))
        assert inside.peers() == outside.peers() == []
