"""`covey agent` on one node: agents are declared, announced by their cards, and do the steps that are theirs."""

import http.server
import json
import threading

import pytest
import trio

from daemon import agents
from storage.cid import Cid
from storage.keys import Identity

SEARCH = """
name = "search"
role = "search"
tools = ["file-search"]
model = {{ kind = "scripted" }}
policy = {{ folder = "{folder}" }}
"""
SUMMARY = """
name = "summary"
role = "editor"
capabilities = ["summarise"]
memory = 2
[model]
kind = "scripted"
style = "lead"
"""
PLAN = """
title = "look"
max_tokens = 500
[[steps]]
name = "find"
do = "file-search"
role = "search"
input = {query = "birds"}
[[steps]]
name = "sum"
do = "model"
agent = "summary"
input = {prompt = "Sum up:\\n\\n{find}"}
"""


@pytest.fixture
def ask(in_village, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("A flock is many birds. They fly. They sing.")
    return in_village


async def test_two_agents_do_a_run_and_the_history_tells_how(ask):
    await ask.add(SEARCH.format(folder=ask.folder / "docs"))
    added = await ask.add(SUMMARY)
    assert added["name"] == "summary" and added["host_name"] == "me" and added["model"]["kind"] == "scripted"
    assert [row["name"] for row in await ask("agent/ls")] == ["search", "summary"]
    (ask.folder / "plan.toml").write_text(PLAN)
    await ask("run/start", file=str(ask.folder / "plan.toml"))
    with trio.fail_after(20):
        while (row := (await ask("run/ls"))[0])["state"] != "done":
            await trio.sleep(0.05)
    assert [step["agent"] for step in row["steps"]] == ["search", "summary"]
    assert row["steps"][1]["output"] == "[a.md, line 1] A flock is many birds. They fly."
    assert 0 < row["n_tokens"] < row["max_tokens"] == 500
    commit = row["steps"][1]["commit"]
    shown = (await ask.post("provenance/show", cid=commit, is_verify=True)).json
    assert "from prompt Sum up:" in shown["text"] and all(check["is_ok"] for check in shown["checks"])
    car = str(ask.folder / "village.car")
    assert (await ask("ws/export", out=car))[-1]["n_missing"] == 0
    assert (await ask.post("provenance/show", cid=commit, is_verify=True, car=car)).json == shown
    assert [one["is_same"] for one in await ask("run/replay", run="look", is_live=True)] == [True, True]
    made = (await ask("ws/log"))[-1]["content"]["output"]["made"]
    assert made["card"] == added["card"] and made["prompt"][-1]["content"].startswith("Sum up:")
    assert made["usage"]["n_tokens"] + made["usage"]["n_prompt_tokens"] == row["n_tokens"]


async def test_a_card_is_shown_by_name_and_by_its_cid(ask):
    added = await ask.add(SUMMARY)
    by_name = await ask("agent/card", name="summary")
    assert by_name == await ask("agent/card", workspace=added["card"])
    assert by_name["host"] == str(ask.node.identity.peer_id) and by_name["card"]["skills"][0]["id"] == "summarise"
    assert (await ask("agent/card", name="nobody"))["error"]["code"] == "unknown_agent"


async def test_a_card_that_nobody_gives_is_said_not_to_be_found(ask, monkeypatch):
    monkeypatch.setattr(agents, "FETCH_LIMIT_S", 0.05)
    refused = (await ask("agent/card", workspace="bafyreibdjatinztwkiymenotoazucsecl7tywhpxt3doifg7zo4ibmzo7y"))[
        "error"
    ]
    assert refused["code"] == "not_found" and "is not here" in refused["text"]


ASKER = """
name = "asker"
tools = ["agent-ask"]
policy = { asks = ["summary", "asker"] }
[model]
kind = "scripted"
rules = [
    { has = "returned this", say = "they say it" },
    { has = "Find out", say = '{"tool": "agent-ask", "input": {"agent": "summary", "prompt": "One. Two. Three."}}' },
    { has = "Ask yourself", say = '{"tool": "agent-ask", "input": {"agent": "asker", "prompt": "Ask yourself"}}' },
]
"""


async def test_an_agent_is_asked_and_asks_another_within_its_policy(ask):
    await ask.add(SUMMARY)
    await ask.add(ASKER)
    asked = await ask("agent/ask", agent="summary", prompt="One. Two. Three.", name_of_run="q")
    assert asked["answer"] == "One. Two." and asked["n_tokens"] > 0
    assert await ask("agent/ask", agent="summary", prompt="other", name_of_run="q") == asked
    assert (await ask("agent/ask", agent="asker", prompt="Find out"))["answer"] == "they say it"
    runs = {row["run"]: row for row in await ask("run/ls")}
    inner = next(row for name, row in runs.items() if name.startswith("ask.1."))
    assert inner["state"] == "done" and inner["steps"][0]["agent"] == "summary"
    assert (await ask("agent/ask", agent="nobody", prompt="x"))["error"]["code"] == "unknown_agent"


async def test_agents_that_ask_one_another_without_end_are_stopped(ask):
    await ask.add(ASKER)
    assert (await ask("agent/ask", agent="asker", prompt="Ask yourself"))["answer"] == "they say it"
    outputs = [str(entry["content"]["output"]) for entry in await ask("ws/log") if entry["kind"] == "commit"]
    assert any("somebody has to answer" in output for output in outputs)


async def test_what_no_workspace_tells_of_has_no_origin(ask):
    added = await ask.add(SUMMARY)
    assert "agents/summary" in (await ask.post("provenance/show", cid=added["card"])).json["text"]
    nobody = await ask.post("provenance/show", cid="bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e")
    assert nobody.status == 404 and nobody.json["error"]["code"] == "no_origin"


async def test_an_agent_that_is_removed_does_no_more(ask):
    await ask.add(SUMMARY)
    await ask("agent/rm", name="summary")
    assert await ask("agent/ls") == []
    assert (await ask("agent/rm", name="summary"))["error"]["code"] == "unknown_agent"
    assert not list((ask.node.home.agents).glob("*/*.toml"))


async def test_what_declares_no_agent_is_refused(ask):
    assert (await ask.add("name = 1"))["error"]["code"] == "bad_agent"
    assert (await ask("agent/add", file="/nowhere"))["error"]["code"] == "no_such_file"
    assert await ask("agent/ls") == []


async def test_an_agent_without_its_model_fails_its_step_in_words(ask):
    await ask.add('name = "summary"\nmodel = { kind = "engine", name = "none-such" }')
    text = PLAN[PLAN.index('[[steps]]\nname = "sum"') :].replace("[[steps]]", 'title = "x"\n[[steps]]\nmax_tries = 1')
    (ask.folder / "plan.toml").write_text(text)
    await ask("run/start", file=str(ask.folder / "plan.toml"), name="x")
    with trio.fail_after(20):
        while (row := (await ask("run/ls"))[0])["state"] != "failed":
            await trio.sleep(0.05)
    assert "given up after 1 attempts" in row["why"]


class Replies(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = f"{self.headers.get('authorization') or self.headers.get('x-api-key')} {asked['model']}"
        if self.path.endswith("/messages"):
            body = json.dumps({"content": [{"type": "text", "text": said}], "usage": {"output_tokens": 2}}).encode()
        else:
            told = {"choices": [{"index": 0, "delta": {"content": said}, "finish_reason": "stop"}]}
            body = f"data: {json.dumps(told)}\n\ndata: [DONE]\n\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("kind", "said"), [("openai", "Bearer hush large"), ("anthropic", "hush large")])
async def test_an_agent_thinks_with_a_server_whose_token_stays_in_the_daemons_environment(ask, monkeypatch, kind, said):
    monkeypatch.setenv("FAR_TOKEN", "hush")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replies) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        await ask.add(f'name = "far"\n[model]\nkind = "{kind}"\nname = "large"\nurl = "{url}"\ntoken_env = "FAR_TOKEN"')
        answer = await ask("agent/ask", agent="far", prompt="hello")
        server.shutdown()
        thread.join()
    assert answer["answer"] == said and answer["n_tokens"] > 0
    assert "FAR_TOKEN" not in json.dumps(await ask("ws/log")), "where the token stands is its host's to know"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ('kind = "openai"\nname = "x"\nurl = "http://127.0.0.1:1/v1"\ntoken_env = "NO_SUCH"', "NO_SUCH"),
        ('kind = "anthropic"\nname = "x"\nurl = "http://127.0.0.1:1/v1"', "does not answer"),
        ('kind = "peer"\npeer = "nobody-here"', "nobody-here"),
    ],
)
async def test_a_model_that_cannot_be_had_fails_its_step_and_the_node_goes_on(ask, model, why):
    await ask.add(f'name = "summary"\n[model]\n{model}')
    text = PLAN[PLAN.index('[[steps]]\nname = "sum"') :].replace("[[steps]]", 'title = "x"\n[[steps]]\nmax_tries = 1')
    (ask.folder / "plan.toml").write_text(text)
    await ask("run/start", file=str(ask.folder / "plan.toml"), name="x")
    with trio.fail_after(20):
        while (await ask("run/ls"))[0]["state"] != "failed":
            await trio.sleep(0.05)
    [event] = [one for one in ask.node.catalog.events.since() if one.kind == "run_step_failed"]
    assert why in event.fields["text"]
    assert (await ask("ws/say", text="still here"))["code"] == ""


async def test_a_card_is_shown_to_who_joins_later_and_not_to_who_was_removed(ask):
    added = await ask.add(SUMMARY)
    late = Identity.generate().peer_id
    roots, card = ask.node.roots, Cid.parse(added["card"])
    assert late not in roots.members(card)
    await ask("ws/invite", peer=str(late))
    with trio.fail_after(20):
        while late not in roots.members(card):
            await trio.sleep(0.05)
        await ask("ws/revoke", peer=str(late))
        while late in roots.members(card):
            await trio.sleep(0.05)


async def test_a_tool_is_used_whether_or_not_the_agents_model_can_be_had(ask):
    await ask.add(SEARCH.format(folder=ask.folder / "docs").replace('"scripted"', '"engine", name = "none-such"'))
    text = PLAN[: PLAN.index('[[steps]]\nname = "sum"')]
    (ask.folder / "plan.toml").write_text(text)
    await ask("run/start", file=str(ask.folder / "plan.toml"), name="x")
    with trio.fail_after(20):
        while (await ask("run/ls"))[0]["state"] != "done":
            await trio.sleep(0.05)


async def test_content_is_sealed_to_those_who_have_a_role_in_a_workspace(ask, tmp_path):
    (tmp_path / "plan").write_text("for editors alone")
    sealed = {"path": str(tmp_path / "plan"), "to": ["role:editor@village"]}
    assert (await ask.post("sealed/seal", **sealed)).json["error"]["code"] == "not_found"
    await ask.add(SUMMARY)
    (me,) = await ask("ws/members")
    made = (await ask.post("sealed/seal", **sealed)).lines[-1]
    assert made["recipients"] == [me["peer"]]
    for to, code in (
        ("role:cook@village", "not_found"),
        ("role:editor@city", "unknown_workspace"),
        ("role:", "unknown_workspace"),
    ):
        refused = await ask.post("sealed/seal", path=str(tmp_path / "plan"), to=[to])
        assert (refused.lines[-1] if refused.status == 200 else refused.json)["error"]["code"] == code
