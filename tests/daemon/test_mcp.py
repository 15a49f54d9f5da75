"""`covey mcp`: workspaces as the tools of an MCP server; what is wrong is answered, and ends nothing."""

import io
import json
import threading

import pytest
import trio

from daemon.api.operation import operations
from daemon.cli.mcp import CHANGES, MAX_CALLS, MAX_LINE_CHARS, TOOLS, Server, serve
from daemon.paths import Home


def talk(home, *messages):
    """What is answered to each line."""
    out = io.StringIO()
    lines = [message if isinstance(message, str) else json.dumps({"jsonrpc": "2.0"} | message) for message in messages]
    serve(Server(home), io.StringIO("\n".join(lines) + "\n"), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture
def nowhere(tmp_path):
    return Home(tmp_path)


def test_a_client_agrees_on_a_version_and_is_told_the_tools(nowhere):
    hello, tools, pong = talk(
        nowhere,
        {"id": 1, "method": "initialize", "params": {"protocolVersion": "2024-11-05"}},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/list"},
        {"id": "3", "method": "ping"},
    )
    assert hello["result"]["protocolVersion"] == "2024-11-05" and hello["id"] == 1
    assert pong == {"jsonrpc": "2.0", "id": "3", "result": {}}
    found = {tool["name"]: tool for tool in tools["result"]["tools"]}
    assert found.keys() == {name.replace("/", "_") for name in TOOLS}
    assert all(tool["inputSchema"]["type"] == "object" and tool["description"] for tool in found.values())
    assert "follow" not in found["ws_log"]["inputSchema"]["properties"]
    assert found["ws_say"]["inputSchema"]["required"] == ["workspace", "text"]
    newer = talk(nowhere, {"id": 1, "method": "initialize", "params": {"protocolVersion": "2099-01-01"}})
    assert newer[0]["result"]["protocolVersion"] == "2025-06-18"


def test_no_tool_takes_a_path_of_this_machine_and_all_that_change_something_say_so():
    for name, without in TOOLS.items():
        schema = json.dumps(operations()[name].params.__struct_fields__)
        assert not {"file", "out", "car", "plan"} & (set(json.loads(schema)) - set(without)), name
    assert set(TOOLS) >= CHANGES


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", -32700),
        ("[1]", -32600),
        ('{"jsonrpc": "2.0", "id": 1}', -32600),
        ('{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600),
        ('{"jsonrpc": "2.0", "id": 1, "method": "resources/list"}', -32601),
        ('{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}', -32602),
        ('{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "repo_gc"}}', -32602),
        ('{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "ws_log", "arguments": [1]}}', -32602),
        (
            '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", '
            '"params": {"name": "ws_log", "arguments": {"workspace": "x", "follow": true}}}',
            -32602,
        ),
        ("[" * 100_000, -32700),
        ("x" * (MAX_LINE_CHARS + 1), -32600),
    ],
)
def test_what_is_wrong_is_answered_and_the_next_is_heard(nowhere, line, code):
    wrong, pong = talk(nowhere, line, {"id": 2, "method": "ping"})
    assert wrong["error"]["code"] == code and pong["id"] == 2


def test_without_a_daemon_a_call_says_so(nowhere):
    [answer] = talk(nowhere, {"id": 1, "method": "tools/call", "params": {"name": "ws_ls"}})
    assert answer["result"]["isError"] and "covey up" in answer["result"]["content"][0]["text"]


async def test_tools_are_called_and_what_the_daemon_refuses_is_an_error_of_the_tool(node_here):
    await node_here.post("ws/create", title="village")

    said, log, none = [
        (await trio.to_thread.run_sync(talk, node_here.node.home, one))[0]
        for one in (
            call(1, "ws_say", workspace="village", text="hello"),
            call(1, "ws_log", workspace="village"),
            call(1, "ws_get", workspace="village", key="nothing"),
        )
    ]
    assert json.loads(said["result"]["content"][0]["text"])["code"] == ""
    assert json.loads(log["result"]["content"][0]["text"])[-1]["content"]["text"] == "hello"
    assert none["result"]["isError"] and "nothing" in none["result"]["content"][0]["text"]


def call(id_, name, **given):
    return {"id": id_, "method": "tools/call", "params": {"name": name, "arguments": given}}


async def test_a_slow_call_keeps_no_other_waiting_and_ends_when_it_is_taken_back(node_here, tmp_path):
    await node_here.post("ws/create", title="village")
    (tmp_path / "slow.toml").write_text('name = "slow"\nmodel = { kind = "scripted", wait_s = 600.0 }\n')
    await node_here.post("agent/add", workspace="village", file=str(tmp_path / "slow.toml"))
    with trio.fail_after(20):
        said, pong = await trio.to_thread.run_sync(
            talk,
            node_here.node.home,
            call("one", "agent_ask", workspace="village", agent="slow", prompt="hello"),
            call("two", "ws_say", workspace="village", text="hello"),
            {"method": "notifications/cancelled", "params": {"requestId": "none"}},
            {"method": "notifications/cancelled", "params": {"requestId": "one"}},
            {"id": 3, "method": "ping"},
        )
    assert {said["id"], pong["id"]} == {"two", 3}


class Waiting(Server):
    """Holds every call until all those are there that may be there at once."""

    def __init__(self):
        super().__init__(Home("/nowhere"))
        self.n_here = self.n_most = 0
        self.all_here = threading.Barrier(MAX_CALLS)
        self.counting = threading.Lock()

    def _called(self, params, wait):
        with self.counting:
            self.n_here += 1
            self.n_most = max(self.n_most, self.n_here)
        self.all_here.wait(20)
        with self.counting:
            self.n_here -= 1
        return params["name"]


def test_calls_are_made_beside_each_other_up_to_a_bound_and_each_is_answered_in_a_line_of_its_own():
    server, out = Waiting(), io.StringIO()
    lines = [json.dumps({"jsonrpc": "2.0"} | call(number, f"n{number}")) for number in range(3 * MAX_CALLS)]
    serve(server, io.StringIO("\n".join(lines)), out)
    found = {one["id"]: one["result"] for one in map(json.loads, out.getvalue().splitlines())}
    assert found == {number: f"n{number}" for number in range(3 * MAX_CALLS)}
    assert server.n_most == MAX_CALLS


def test_a_call_that_breaks_the_server_is_not_passed_over_in_silence(nowhere):
    class Broken(Server):
        def _called(self, params, wait):
            raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="mistake"):
        serve(Broken(nowhere), io.StringIO(json.dumps({"jsonrpc": "2.0"} | call(1, "x"))), io.StringIO())
