"""What `covey fl` tells beside a result: names, who is in it, how far it is, and what to do next, once."""

import os
import socket
import sys
from types import SimpleNamespace

import pytest
import trio

from agents.errors import BadData
from agents.federation.results.verify import Finding
from agents.federation.tasks import Fitted, task_of
from agents.federation.tasks.module import Module
from agents.federation.updates.tensors import Layout, flush, new_vector
from daemon import experiments
from daemon.api.operation import operations
from daemon.api.operations import fl
from daemon.cli import client, generate
from daemon.cli.fl_forms import planned as lines_of_plan
from daemon.cli.fl_forms import started, status, verified, watched_to_the_end
from storage.keys import Identity
from tests.daemon.test_fl_operations import ALONE, OTHER, data, over, planned

__all__ = ["data"]


async def test_what_to_do_next_is_said_once_behind_the_last_line_of_a_watch(node_here, data, monkeypatch, capsys):
    experiment = await planned(node_here)
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    row = await over(node_here, experiment)
    rows = [row | {"n_joined": n_joined} for n_joined in range(3)]
    monkeypatch.setattr(client, "stream", lambda home, name, params, wait: iter(rows))
    generate._run(node_here.node.home, operations()["fl/watch"], {}, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and [line.startswith("next: covey fl result") for line in lines] == [False] * 3 + [True]
    generate._run(node_here.node.home, operations()["fl/watch"], {}, as_json=True)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_watch_of_which_nobody_reads_any_more_ends_before_anything_changes(monkeypatch):
    (near, far), (reader, writer) = socket.socketpair(), os.pipe()
    with near, far, open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        far.send(b"x")
        client.while_read(near)
        near.recv(1)
        os.close(reader)
        with pytest.raises(client.Unread):
            client.while_read(near)


def test_a_watch_goes_on_where_the_system_cannot_look_at_what_it_prints_to(monkeypatch):
    """As macOS cannot at terminals; it says the same of a file that is closed."""
    (near, far), (reader, writer) = socket.socketpair(), os.pipe()
    with near, far:
        os.close(writer)
        os.close(reader)
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: writer))
        client.while_read(near)


async def test_a_watch_prints_no_line_again_of_which_nothing_changed(node_here, monkeypatch, capsys):
    (row,) = (await node_here.post("fl/status", experiment=await planned(node_here))).json
    rows = [row, row | {"members": []}, row | {"state": "other"}, row]
    monkeypatch.setattr(client, "stream", lambda home, name, params, wait: iter(rows))
    for as_json, n_lines in ((False, 3), (True, 4)):
        generate._run(node_here.node.home, operations()["fl/watch"], {}, as_json=as_json)
        assert len(capsys.readouterr().out.splitlines()) == n_lines


@pytest.mark.parametrize(("n_rounds", "n_shown"), [(2, 0), (3, 2)])
async def test_curves_are_drawn_in_the_terminal_once_there_are_rounds_enough(node_here, data, n_rounds, n_shown):
    experiment = await planned(node_here, rounds=n_rounds)
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    row = await over(node_here, experiment)
    with trio.fail_after(60):
        while not all(one["n_scores"] for one in row["rounds"]):  # they may come in any order
            await trio.sleep(0.05)
            row = await over(node_here, experiment)
    for lines in (list(status([row])), list(watched_to_the_end(row))):
        assert sum(line.endswith("3 rounds") for line in lines) == n_shown
        assert sum("\u2812\u2812 result, held out" in line for line in lines) == n_shown
    row["rounds"] = [one | {"result_loss": None, "result_accuracy": None, "loss": None} for one in row["rounds"]]
    assert not any("held out" in line for line in status([row]))


async def test_what_matters_of_several_experiments_fits_eighty_columns_and_a_row_begins_with_what_names_it(node_here):
    both = [await planned(node_here, title="long " * 20), await planned(node_here, title="other")]
    rows = (await node_here.post("fl/status")).json
    lines = [line[:80] for line in status(rows)][1:]
    assert all(row["state"] in line for row, line in zip(rows, lines, strict=True))
    found = [(await node_here.post("fl/status", experiment=line.split()[0])).json for line in lines]
    assert [row["experiment"] for (row,) in found] == [row["experiment"] for row in rows]
    assert {row["experiment"] for row in rows} == set(both)


async def test_a_budget_that_cannot_be_read_is_told_of_its_experiment_and_hides_no_other(node_here, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'title = "private"\nmin_participants = 1\n[task]\ntask = "softmax"\nn_features = 4\nn_classes = 3\n'
        '[privacy]\nnoise = "central"\nbound = 1.0\nmultiplier = 1.0\nbudget = { epsilon = 8.0, delta = 1e-5 }\n'
    )
    private = (await node_here.post("fl/plan", file=str(tmp_path / "plan.toml"))).json["experiment"]
    await planned(node_here)
    (node_here.node.home.rounds / f"{private}.budget").write_bytes(b"{")
    rows = (await node_here.post("fl/status")).json
    assert {row["epsilon"] for row in rows} == {None} and len(rows) == 2
    assert [row["experiment"] for row in rows if "cannot be read" in row["trouble"]] == [private]
    assert (await node_here.post("fl/report", experiment=private, out=str(tmp_path / "report.html"))).status == 200


async def test_how_results_do_stands_within_eighty_columns(node_here, data):
    experiment = await planned(node_here)
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    row = await over(node_here, experiment)
    heading = next(line for line in status([row]) if line.startswith("ROUND"))
    assert {"PHASE", "LOSS", "ACCURACY", "CLOSED", "REFUSED", "UPDATES"} <= set(heading[:80].split())


async def test_nothing_of_a_finding_or_of_what_a_member_did_is_cut_at_eighty_columns(node_here, data, monkeypatch):
    experiment = await planned(node_here)
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    row = await over(node_here, experiment)
    told = (await node_here.post("fl/verify", what=experiment)).lines[-1]
    told["findings"][0]["what"] = what = f"{experiment} {'was not heard of ' * 20}"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    lines = list(verified(told))
    assert what.split() == " ".join(lines[1:-1]).split()[3:] and max(map(len, lines[2:])) <= 80
    members = list(status([row]))[-3:]
    assert " ".join(" ".join(members).split()).endswith("joined, selected, submitted, voted")


async def test_who_is_in_it_is_told_in_fields_too_at_the_start_and_later(node_here, data):
    experiment = await planned(node_here, members=[OTHER], min_participants=1)
    await node_here.post("fl/join", experiment=experiment, data=data)
    for _ in range(2):
        told = (await node_here.post("fl/start", experiment=experiment)).json
        assert told["participants"] == [{"peer": str(node_here.node.identity.peer_id), "name": "me"}]
        assert told["others"] == [{"peer": OTHER, "name": None}]
        assert list(started(told)) == [told["text"]]


async def test_who_is_to_blame_is_called_by_the_name_that_the_user_gave(node_here, monkeypatch):
    experiment = await planned(node_here)
    peer = Identity(b"o" * 32).peer_id
    node_here.node.catalog.peers.add(peer, [], 0.0, "olga")
    found = [Finding(1, "refuted", "it lied", peer), Finding(2, "refuted", "so did it", Identity(b"p" * 32).peer_id)]
    monkeypatch.setattr(experiments, "audit", lambda *_: found)
    (told,) = [line for line in (await node_here.post("fl/verify", what=experiment)).lines if "findings" in line]
    assert [(one["by"], one["name"]) for one in told["findings"]] == [
        (str(found[0].by), "olga"),
        (str(found[1].by), None),
    ]
    table = "\n".join(verified(told))
    assert "olga" in table and str(found[1].by)[-8:] in table and str(found[0].by)[-8:] not in table


async def test_that_the_engine_is_started_for_a_plan_is_told_before_it_is(node_here, monkeypatch):
    told = []

    async def fit(wish):
        assert told, "told while it is waited for"
        layout = Layout.of({"w": (2, 3)})
        flush(new_vector(wish.out, layout), wish.out)
        return Fitted(1, 1, 0.0, None)

    monkeypatch.setattr(Module, "_look_for_factory", lambda self: None)
    monkeypatch.setattr(node_here.node.rounds, "engine", SimpleNamespace(fit=fit))
    wish = fl.Plan(title="net", task="torch", settings=("factory=net",), rounds=1, min_participants=1)
    assert (await experiments.make_plan(node_here.node, wish, told.append)).n_params == 6
    assert [one.step for one in told] == ["having the engine make the first tensors"]
    await experiments.make_plan(node_here.node, fl.Plan(**ALONE | {"settings": tuple(ALONE["settings"])}), told.append)
    assert len(told) == 1


def test_a_text_that_is_not_utf_8_is_named_by_its_file_and_line(tmp_path):
    (tmp_path / "poem.txt").write_bytes(b"roses\nvi\xf6lets\n")
    with pytest.raises(BadData, match=r"^poem.txt: line 2: byte 0xf6 is not UTF-8"):
        task_of({"task": "lora", "base": "any"}).check(tmp_path / "poem.txt")


async def test_an_author_is_told_of_grants_where_nobody_else_trains_without_one(node_here, tmp_path):
    (tmp_path / "plan.toml").write_text('joining = "granted"\nlet_in = { direct = 0, each = 0, depth = 0 }\n')
    asked = {**ALONE, "members": [OTHER], "file": str(tmp_path / "plan.toml")}
    for given, n_told in ((asked, 1), (ALONE, 0)):
        made = (await node_here.post("fl/plan", **given)).json
        told = [line for line in lines_of_plan(made) if f"covey fl grant {made['experiment']} PEER" in line]
        assert made["needs_grants"] == bool(n_told) and len(told) == n_told


async def test_a_reason_of_several_lines_stands_on_one(node_here):
    """Whoever cancels writes it, and it stands in the middle of what this node says."""
    experiment = await planned(node_here)
    await node_here.post("fl/cancel", experiment=experiment, reason="enough\nleft: this node trains no more")
    (row,) = (await node_here.post("fl/status")).json
    assert row["state"] == "cancelled: enough left: this node trains no more"
    text = (await node_here.post("fl/leave", experiment=experiment)).json["text"]
    assert text == f"nobody trains in it any more: it is {row['state']}"
