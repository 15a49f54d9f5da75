"""Real nodes over real kernels' networks that lose, hold back and hide: what they fetch all the same."""

import json
import math
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.holding import until_holds
from tests.netns.network import ANY_PORT, LOUD, NFT, TC, TUN, behind_nat, both_behind_nat, cable, do, relayed, why_not
from tests.netns.nodes import asked, fetch, fetching, heard, node
from tests.netns.relay import MAX_QUEUED_S, Wire


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(1 << 20))  # one block
    return path


@pytest.fixture
def needs(request: pytest.FixtureRequest) -> None:
    if missing := why_not(*request.param):
        pytest.skip(f"network namespaces: {missing}")


@given(st.lists(st.tuples(st.integers(1, 1500), st.floats(0, 0.1)), max_size=50), st.integers(0, 9))
def test_a_wire_keeps_packets_in_order_late_by_its_delay_and_no_faster_than_its_rate(
    sent: list[tuple[int, float]], seed: int
) -> None:
    wire = Wire(random.Random(seed), 0.2, 0.05, 10_000)
    now_s, put = 0.0, []
    for number, (n_bytes, rest_s) in enumerate(sent):
        now_s += rest_s
        packet = number.to_bytes(2, "big") + bytes(n_bytes)
        wire.put(packet, now_s)
        put.append((packet, now_s))
    out, came = [], 0
    while wire.next_s() < math.inf:
        now_s = wire.next_s()
        for packet in wire.take(now_s):
            out.append(packet)
            came += len(packet)
            assert now_s >= dict(put)[packet] + 0.05
            assert came <= 10_000 * (now_s - 0.05) + 1e-6
    assert out == [packet for packet, _ in put if packet in set(out)]
    assert len(out) + wire.n_lost == len(sent)


def test_a_wire_that_is_full_drops_and_one_that_is_cut_loses_all() -> None:
    wire = Wire(random.Random(1), 0.0, 0.0, 1000)
    for _ in range(5):
        wire.put(bytes(400), 0.0)
    assert wire.n_lost == 3 and wire.next_s() == 0.4 < MAX_QUEUED_S
    wire.loss_frac = 1.0
    wire.put(b"lost", 9.0)
    assert wire.n_lost == 4


@pytest.mark.parametrize("needs", [(NFT,)], indirect=True)
def test_a_node_behind_a_router_that_lets_nobody_in_gives_what_it_has_over_the_connection_it_made(
    needs: None, file: Path, tmp_path: Path
) -> None:
    with behind_nat() as ends:
        row = fetch(ends.near, ends.far, file, tmp_path, giver_dials=True)
    assert row["n_bytes"] >= 1 << 20 and row["n_duplicates"] == 0


@pytest.mark.parametrize("needs", [(NFT,)], indirect=True)
def test_two_nodes_behind_routers_that_let_nobody_in_fetch_from_each_other_over_a_relay(
    needs: None, file: Path, tmp_path: Path
) -> None:
    with both_behind_nat() as ends, node(ends.open, "relay", "0.0.0.0") as relay:
        address = heard(relay)
        assert address.startswith((f"/ip4/{ends.open.address}/", "/ip4/45.78.1.2/"))
        row = fetch(ends.one, ends.other, file, tmp_path, relay=address)
    assert row["n_bytes"] >= 1 << 20 and row["n_duplicates"] == 0


@pytest.mark.parametrize("needs", [(NFT,)], indirect=True)
def test_two_nodes_behind_routers_meet_and_what_they_fetch_goes_past_the_relay(
    needs: None, file: Path, tmp_path: Path
) -> None:
    with both_behind_nat() as ends, node(ends.open, "relay", "0.0.0.0") as relay:
        row = fetch(ends.one, ends.other, file, tmp_path, relay=heard(relay), direct_s=20)
        n_carried = int(asked(relay))
    assert row["ways"] == ["punched"] and row["n_bytes"] >= 1 << 20
    assert 0 < n_carried < 100_000


@pytest.mark.long
@pytest.mark.parametrize("needs", [(NFT, TUN)], indirect=True)
def test_two_nodes_meet_through_routers_that_refuse_strangers_aloud_when_their_packets_cross(
    needs: None, file: Path, tmp_path: Path
) -> None:
    with both_behind_nat(manner=LOUD, delay_ms=20) as ends, node(ends.open, "relay", "0.0.0.0") as relay:
        row = fetch(ends.one, ends.other, file, tmp_path, relay=heard(relay), direct_s=30)
    assert row["ways"] == ["punched"]


@pytest.mark.long
@pytest.mark.parametrize("needs", [(NFT,)], indirect=True)
def test_routers_that_give_each_connection_another_port_leave_two_nodes_to_the_relay(
    needs: None, file: Path, tmp_path: Path
) -> None:
    with both_behind_nat(ports=ANY_PORT) as ends, node(ends.open, "relay", "0.0.0.0") as relay:
        row = fetch(ends.one, ends.other, file, tmp_path, relay=heard(relay), direct_s=25)
        assert int(asked(relay)) > 1 << 20
    assert row["ways"] == ["relayed"] and row["n_bytes"] >= 1 << 20


@pytest.mark.long
@pytest.mark.parametrize("needs", [(NFT,)], indirect=True)
def test_a_node_behind_a_router_hears_that_it_cannot_be_dialled_and_one_in_the_open_that_it_can(needs: None) -> None:
    for network, answer in ((behind_nat(), "false"), (cable(), "true")):
        with (
            network as ends,
            node(ends.far, "relay", "0.0.0.0") as server,
            node(ends.near, "ask", "0.0.0.0", heard(server)) as asking,
        ):
            assert heard(asking) == answer


@pytest.mark.long
@pytest.mark.parametrize("needs", [(NFT,)], indirect=True)
def test_a_fetch_goes_on_over_another_circuit_when_one_carried_all_that_the_relay_allows(
    needs: None, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(random.Random(1).randbytes(12 << 20))
    with both_behind_nat() as ends, node(ends.open, "relay", "0.0.0.0", str(5 << 20)) as relay:
        row = fetch(ends.one, ends.other, tmp_path / "file", tmp_path, relay=heard(relay))
    assert row["n_bytes"] >= 12 << 20


@pytest.mark.long
@pytest.mark.parametrize("needs", [(TUN,)], indirect=True)
def test_content_comes_over_a_link_that_loses_packets_and_is_cut_for_a_while(
    needs: None, file: Path, tmp_path: Path
) -> None:
    with (
        relayed("--loss", "0.05", "--delay-ms", "50") as ends,
        fetching(ends.near, ends.far, file, tmp_path) as getting,
    ):
        time.sleep(1)
        ends.set_loss(1)
        time.sleep(3)
        ends.set_loss(0.05)
        row = json.loads(heard(getting))
    assert row["n_bytes"] >= file.stat().st_size


@pytest.mark.parametrize("needs", [(TC,)], indirect=True)
def test_a_fetch_goes_on_when_its_machine_gets_another_address(needs: None, file: Path, tmp_path: Path) -> None:
    """Nobody hears of that: both ends still have a connection."""
    with (
        cable(mbit_per_s=2) as ends,
        fetching(ends.near, ends.far, file, tmp_path, idle_timeout_s=30) as getting,
    ):
        until_holds(tmp_path / "taken", 1 << 18)
        for verb, address in (("del", ends.far.address), ("add", "45.77.0.3")):
            do("ip", "-n", ends.far.name, "addr", verb, f"{address}/24", "dev", "cable")
        row = json.loads(heard(getting))
    assert row["n_bytes"] >= file.stat().st_size


@pytest.mark.long
@pytest.mark.parametrize("needs", [(TC,)], indirect=True)
def test_a_block_that_takes_longer_than_a_fetch_waits_for_silence_comes(
    needs: None, file: Path, tmp_path: Path
) -> None:
    with cable(mbit_per_s=0.2) as ends:
        row = fetch(ends.near, ends.far, file, tmp_path, idle_timeout_s=10)
    assert row["took_s"] > 30 and row["n_duplicates"] == 0
