"""A large adapter on its way while publishers and subscribers are killed."""

import pytest

from tests.ports import held_port

pytestmark = pytest.mark.e2e

SOME = 32 << 20  # of 224 MiB


@pytest.fixture
def flock(new_node, with_model, adapter_folder):
    """Ada has published a large adapter that Bob has not heard of: their names, and where it stands."""
    ada = with_model(new_node("ada")).up()
    bob = with_model(new_node("bob"))
    folder = adapter_folder(is_large=True)
    ada.ok("adapter", "publish", str(folder), "--visibility", "public")
    return ada, bob


def test_a_fetch_completes_after_its_publisher_was_killed_and_restarted(flock):
    ada, bob = flock
    port = ada.address.split("/tcp/")[1].split("/")[0]
    ada.set({"network.port": port})
    bob.up().knows(ada)
    bob.until_holds(SOME)
    ada.kill()
    with held_port(port=int(port)):  # else anybody may have it before she is back
        assert "adapter_ready" not in [event["kind"] for event in bob.events()], "it was too quick to be killed"

        ada.up()

    assert f"/tcp/{port}/" in ada.address
    ready = bob.wait("adapter_ready")
    assert ready["fields"]["name"] == "poet"


def test_a_second_provider_takes_over_when_the_publisher_stays_dead(flock, new_node, with_model):
    ada, bob = flock
    eve = with_model(new_node("eve")).up()
    eve.knows(ada)
    eve.wait("adapter_ready")
    bob.up().knows(eve, trusts=False)
    bob.knows(ada)
    eve.ok("peer", "trust", bob.peer, "--kinds", "adapters")
    bob.until_holds(SOME)
    ada.kill()
    assert not [event for event in bob.events() if event["kind"] == "adapter_ready"], "it was too quick to be killed"

    ready = bob.wait("adapter_ready")

    assert ready["fields"]["publisher"] == ada.ask("id")["peer"]


def test_a_subscriber_killed_in_mid_fetch_goes_on_where_it_was(flock):
    ada, bob = flock
    bob.up().knows(ada)
    bob.until_holds(SOME)
    bob.kill()
    killed_at = bob.last_event_on_disk()

    bob.up()

    n_total_bytes = bob.wait("adapter_progress")["fields"]["n_total_bytes"]
    ready = bob.wait("adapter_ready", since=killed_at)["fields"]
    assert ready["n_reused_bytes"] > 0
    assert ready["n_fetched_bytes"] < n_total_bytes
    assert ready["n_fetched_bytes"] + ready["n_reused_bytes"] >= n_total_bytes
