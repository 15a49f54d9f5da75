"""What a peer may try, each refused with its reason in `covey events`, the node unharmed."""

import pytest
import trio

from protocols import adapters as wire
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity, PeerId
from storage.unixfs import add_path

pytestmark = pytest.mark.e2e


def refused(node, code, since=0):
    return node.wait("adapter_refused", lambda fields: fields["code"] == code, since=since)


@pytest.fixture
def bob(new_node, with_model):
    return with_model(new_node("bob")).up()


@pytest.fixture
async def friend(mallory, bob):
    """Mallory, whom Bob knows and trusts: the worst kind."""
    await trio.to_thread.run_sync(bob.ok, "peer", "add", mallory.address)
    await trio.to_thread.run_sync(bob.ok, "peer", "trust", str(mallory.identity.peer_id), "--kinds", "adapters")
    return mallory


async def in_thread(call, *args):
    return await trio.to_thread.run_sync(call, *args)


async def test_a_tampered_block_is_refused_and_the_sender_named(bob, friend, adapter_folder):
    folder = adapter_folder()
    files = add_path(friend.store, folder)
    n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    manifest = friend.plant(files, n_bytes=n_bytes)
    friend.store.lies = b"not what was asked for"

    await friend.tell(bob, friend.announcement(manifest, n_bytes=n_bytes))

    event = await in_thread(refused, bob, "tampered")
    assert event["fields"]["peer"] == str(friend.identity.peer_id)
    assert await in_thread(lambda: bob.is_alive)


async def test_an_announcement_signed_by_another_than_its_sender_is_refused(bob, friend):
    manifest = friend.plant(Cid.of(b"files"))

    await friend.tell(bob, friend.announcement(manifest, signer=Identity.generate()))

    await in_thread(refused, bob, "forged")
    assert await in_thread(lambda: bob.is_alive)


async def test_a_manifest_signed_by_another_than_its_announcer_is_refused(bob, friend):
    manifest = friend.plant(Cid.of(b"files"), signer=Identity.generate())

    await friend.tell(bob, friend.announcement(manifest))

    await in_thread(refused, bob, "forged")
    assert await in_thread(lambda: bob.is_alive)


async def test_a_replayed_announcement_is_passed_over_and_refused_after_a_restart(bob, friend):
    base = str(Cid.of(b"other", DAG_CBOR))
    announcement = friend.announcement(manifest := friend.plant(Cid.of(b"files"), base=base))
    await friend.tell(bob, announcement)
    await in_thread(refused, bob, "wrong_base")

    await friend.tell(bob, announcement)  # gossip knows it by its content
    await friend.tell(bob, friend.announcement(other := friend.plant(Cid.of(b"others"), base=base), version=2))
    await in_thread(bob.wait, "adapter_refused", lambda fields: fields.get("manifest") == str(other))
    events = await in_thread(bob.events)
    assert [str(manifest) in str(event) for event in events].count(True) == 1
    await in_thread(bob.kill)
    await in_thread(bob.up)
    await in_thread(bob.ok, "peer", "add", friend.address)
    await friend.tell(bob, announcement)

    await in_thread(refused, bob, "replayed", events[-1]["id"])
    assert await in_thread(lambda: bob.is_alive)


async def test_an_adapter_for_another_base_model_is_refused(bob, friend):
    manifest = friend.plant(Cid.of(b"files"), base=str(Cid.of(b"another base", DAG_CBOR)))

    await friend.tell(bob, friend.announcement(manifest))

    event = await in_thread(refused, bob, "wrong_base")
    assert "covey model pull" in event["fields"]["text"]


async def test_an_untrusted_publisher_is_refused_and_the_remedy_named(bob, mallory):
    await in_thread(bob.ok, "peer", "add", mallory.address)

    await mallory.tell(bob, mallory.announcement(mallory.plant(Cid.of(b"files"))))

    event = await in_thread(refused, bob, "untrusted")
    assert f"covey peer trust {mallory.identity.peer_id}" in event["fields"]["text"]


async def test_garbage_on_the_topic_and_on_every_protocol_harms_nobody(bob, friend):
    await friend.tell(bob, b"\xff" * 4096)
    for protocol in (wire.PROTOCOL, "/ipfs/bitswap/1.2.0", "/ipfs/kad/1.0.0", "/ipfs/id/1.0.0"):
        try:
            stream = await friend.network.open_stream((await peer_of(bob)), [protocol])
            await stream.write(b"\xff" * 100_000)
            await stream.aclose()
        except Exception:  # noqa: BLE001 - being refused early is fine
            pass

    assert await in_thread(lambda: bob.is_alive)


async def peer_of(node):
    return PeerId.parse(await in_thread(lambda: node.peer))


def test_a_private_block_is_invisible_to_a_stranger_and_a_public_one_is_not(new_node, bob, tmp_path):
    ada = new_node("ada").up()
    secret, notice = tmp_path / "secret.txt", tmp_path / "notice.txt"
    secret.write_text("for Ada alone")
    notice.write_text("for everybody")
    private = ada.ask("add", str(secret))["cid"]
    public = ada.ask("add", str(notice), "--visibility", "public")["cid"]

    got = bob.covey("get", public, "--provider", ada.address, "--out", str(tmp_path / "got.txt"))
    refused = bob.covey(
        "get", private, "--provider", ada.address, "--out", str(tmp_path / "no.txt"), "--timeout-s", "3"
    )

    assert got.returncode == 0, got.stderr
    assert (tmp_path / "got.txt").read_text() == "for everybody"
    assert refused.returncode != 0
    assert not (tmp_path / "no.txt").exists()
    told = ada.wait("block_withheld", lambda fields: fields["cid"] == private)
    assert told["fields"]["peer"] == bob.peer
    assert ada.is_alive
