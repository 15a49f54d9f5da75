"""AutoNAT and DCUtR with Kubo, over network namespaces with addresses of the public internet."""

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import trio

from tests.interop.conftest import kubo_arguments, start
from tests.netns.network import NFT, Ends, behind_nat, both_behind_nat, cable, do, why_not
from tests.netns.nodes import heard, node


@pytest.fixture(autouse=True)
def namespaces_work() -> None:
    if missing := why_not(NFT):
        pytest.skip(f"network namespaces: {missing}")


def configured(monkeypatch: pytest.MonkeyPatch, port: str, **sections: dict[str, object]) -> None:
    swarm = [f"/ip4/0.0.0.0/tcp/{port}"]
    monkeypatch.setenv("KUBO_CONFIG", json.dumps({"Addresses": {"Swarm": swarm, "API": [], "Gateway": []}} | sections))


@pytest.mark.parametrize(("network", "expected"), [(behind_nat, "false"), (cable, "true")])
async def test_kubo_tells_a_node_whether_it_can_be_dialled(
    nursery: trio.Nursery,
    kubo_command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: "type[AbstractContextManager[Ends]]",
    expected: str,
) -> None:
    arguments = kubo_arguments(tmp_path)
    configured(monkeypatch, arguments[1], AutoNAT={"ServiceMode": "enabled"})
    with network() as ends:
        kubo = await start(nursery, ends.far.command(*kubo_command, *arguments), tmp_path)
        address = f"/ip4/{ends.far.address}/tcp/{arguments[1]}/p2p/{kubo.info.peer}"
        with node(ends.near, "ask", "0.0.0.0", address) as asking:
            assert await trio.to_thread.run_sync(heard, asking) == expected
        kubo.process.kill()


async def test_kubo_is_dialled_when_it_asks(
    nursery: trio.Nursery, kubo_command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = kubo_arguments(tmp_path)
    configured(monkeypatch, arguments[1], Internal={"Libp2pForceReachability": None})
    with cable() as ends, node(ends.far, "relay", "0.0.0.0") as server:
        address = await trio.to_thread.run_sync(heard, server)
        kubo = await start(nursery, ends.near.command(*kubo_command, *arguments), tmp_path)
        await kubo.ask(do="connect", address=address)
        said = await trio.to_thread.run_sync(heard, server)
        assert said == f"yes /ip4/{ends.near.address}/tcp/{arguments[1]}"
        kubo.process.kill()


MEET_LIMIT_S = 60
OBSERVERS = 4  # so many addresses have to see it before Kubo believes where it is


@pytest.mark.parametrize("is_kubo_brought", [False, True])
async def test_kubo_and_a_node_meet_through_their_routers(
    nursery: trio.Nursery,
    kubo_command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_kubo_brought: bool,
) -> None:
    arguments = kubo_arguments(tmp_path)
    with both_behind_nat() as ends, node(ends.open, "relay", "0.0.0.0") as relay:
        where = [f"45.79.{number}.1" for number in range(OBSERVERS)]
        for address in where:
            do("ip", "-n", ends.open.name, "addr", "add", f"{address}/32", "dev", "lo")
        text = await trio.to_thread.run_sync(heard, relay)
        swarm = {"RelayClient": {"Enabled": True, "StaticRelays": [text]}, "RelayService": {"Enabled": False}}
        private = {"Libp2pForceReachability": "private"}
        configured(monkeypatch, arguments[1], Swarm=swarm | {"EnableHolePunching": True}, Internal=private)
        how = "came" if is_kubo_brought else "brought"
        with node(ends.open, "observe", *where) as observers, node(ends.one, "meet", text, how) as meeting:
            seeing = [await trio.to_thread.run_sync(heard, observers) for _ in where]
            circuit = await trio.to_thread.run_sync(heard, meeting)
            kubo = await start(nursery, ends.other.command(*kubo_command, *arguments), tmp_path)
            for address in seeing:
                await kubo.ask(do="connect", address=address)
            await trio.sleep(10)  # Kubo looks now and then whether enough peers have told it where it is
            if is_kubo_brought:
                assert meeting.stdin is not None
                meeting.stdin.write(f"{text}/p2p-circuit/p2p/{kubo.info.peer}\n")
                meeting.stdin.flush()
            else:
                await kubo.ask(do="connect", address=circuit)
            with trio.move_on_after(MEET_LIMIT_S):
                assert await trio.to_thread.run_sync(heard, meeting, abandon_on_cancel=True) == "punched 2"
                kubo.process.kill()
                return
            pytest.fail("they did not meet")
