"""`covey fl` on one node: plans that hold and plans that do not, and what each operation says of an experiment."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trio

from agents.federation.files.audit import Refuted, Undecided
from agents.federation.node import service
from agents.federation.node.experiment import Experiment
from agents.federation.updates.tensors import BadTensors
from daemon.api.faults import EXIT_FAILED, EXIT_NOT_FOUND, fault_of
from daemon.cli.fl_forms import status, watched
from daemon.experiments import bring_all, bring_results
from protocols.errors import NoProviders
from storage.cid import RAW, Cid
from storage.errors import DiskFull, OverQuota, StoreFull
from storage.keys import Identity

OTHER = str(Identity(b"o" * 32).peer_id)
CIDS = [Cid.of(bytes([n]), RAW) for n in range(3)]
SETTINGS = {"task": "softmax", "settings": ["n_features=4", "n_classes=3"]}
ALONE = {"title": "alone", "rounds": 1, "min_participants": 1, **SETTINGS}


@pytest.fixture
def data(tmp_path: Path) -> str:
    noise = np.random.default_rng(1)
    labels = noise.integers(0, 3, 30)
    np.savez(tmp_path / "data.npz", x=noise.normal(size=(30, 4)), y=labels)
    return str(tmp_path / "data.npz")


async def planned(node_here, **changes):
    answer = await node_here.post("fl/plan", **ALONE | changes)
    assert answer.status == 200, answer.json
    return answer.json["experiment"]


async def over(node_here, experiment):
    with trio.fail_after(60):
        while True:
            (row,) = (await node_here.post("fl/status", experiment=experiment)).json
            if row["is_over"]:
                return row
            await trio.sleep(0.1)


async def test_one_member_trains_alone_proves_it_and_exports_it(node_here, data, tmp_path):
    experiment = await planned(node_here)
    joined = (await node_here.post("fl/join", experiment=experiment, data=data)).json
    assert joined["is_training"] and joined["state"] == "waiting for its start"
    assert (await node_here.post("fl/start", experiment=experiment)).status == 200
    row = await over(node_here, experiment)
    assert row["state"] == "over" and row["rounds"][0]["n_submitted"] == 1
    verified = (await node_here.post("fl/verify", what=experiment)).lines[-1]
    assert verified["verdict"] == "proved" and [one["round"] for one in verified["findings"]] == [1]
    with trio.fail_after(60):
        while not row["rounds"][0]["n_scores"]:
            await trio.sleep(0.1)
            row = await over(node_here, experiment)
    scored = row["rounds"][0]
    assert scored["result_loss"] > 0 and 0 <= scored["result_accuracy"] <= 1 and scored["n_refused"] == 0
    assert scored["update_bytes"] > 60
    got = (await node_here.post("fl/result", experiment=experiment, out=str(tmp_path / "out.safetensors"))).json
    assert got["result"] == row["rounds"][0]["result"] and (tmp_path / "out.safetensors").stat().st_size > 60
    car = str(tmp_path / "all.car")
    exported = (await node_here.post("fl/export", experiment=experiment, out=car)).lines[-1]
    assert exported["n_missing"] == 0
    assert (await node_here.post("fl/verify", what=car)).lines[-1]["verdict"] == "proved"
    again = (await node_here.post("fl/export", experiment=experiment, out=car)).lines[-1]
    assert again["error"]["code"] == "target_exists"


@pytest.mark.parametrize("what", ["/nowhere/all.car", "all.car", "nowhere/all"])
async def test_a_car_that_is_not_there_is_missing_and_no_false_cid(node_here, what):
    error = (await node_here.post("fl/verify", what=what)).lines[-1]["error"]
    assert error["code"] == "not_found" and f"there is no file {what}" in error["text"]


async def test_what_the_least_round_falls_short_of_is_told_at_the_plan(node_here, tmp_path):
    (tmp_path / "plan.toml").write_text('[rule]\nrule = "trimmed_mean"\nn_bad = 1\n')
    many = [str(Identity(bytes([n]) * 32).peer_id) for n in range(1, 4)]
    answer = await node_here.post("fl/plan", **ALONE | {"members": many, "file": str(tmp_path / "plan.toml")})
    assert answer.status == 200 and any("a round of 1 updates, the minimum" in one for one in answer.json["limits"])


async def test_a_plan_comes_from_a_file_and_options_go_before_it(node_here, tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text(
        f'title = "from the file"\nrounds = 3\nmin_participants = 2\nmembers = ["{OTHER}"]\nrule = "median"\n'
        '[task]\ntask = "softmax"\nn_features = 4\nn_classes = 3\n'
    )
    answer = await node_here.post("fl/plan", file=str(file), rounds=7)
    assert answer.json["title"] == "from the file" and answer.json["n_members"] == 2 and answer.json["n_params"] == 15
    one = node_here.node.rounds.all()[0]
    assert one.plan.n_rounds == 7 and one.plan.rule == {"rule": "median"}
    assert one.plan.deputies[0] == node_here.node.identity.peer_id


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"title": ""}, "bad_plan", "it has no title"),
        ({"rule": "krum"}, "cannot_aggregate", 'A plan\'s file has them: { rule = "krum", ... }'),
        ({"n_bad": 1}, "bad_plan", "nothing in this plan bears a number of bad updates"),
        ({"n_bad": 1, "rule": "median", "before": ["bucketing"]}, "bad_plan", "nothing in this plan bears"),
        ({"task": "wishing"}, "bad_task", "there is no task 'wishing' here; there are:"),
        ({"settings": ["n_features=4"]}, "bad_task", "n_classes"),
        ({"settings": ["n_features"]}, "bad_plan", "is no setting"),
        ({"rule": "wishing"}, "cannot_aggregate", "there is no rule"),
        ({"selected": 4, "min_participants": 2, "members": [OTHER]}, "bad_plan", "a minimum of 3 to 4"),
        ({"min_participants": 3, "members": [OTHER]}, "bad_plan", "there are 2 members"),
        ({"deputies": [OTHER]}, "bad_plan", "every deputy is a member"),
        ({"deadline_s": 1.0, "lease_s": 5.0}, "bad_plan", "shorter than the lease"),
        ({"members": ["nobody"]}, "not_found", "neither a peer id nor the name of a peer"),
        ({"initial": "/nowhere"}, "no_such_file", "nowhere"),
        ({"initial": __file__}, "bad_plan", "test_fl_operations.py holds no tensors to begin with"),
    ],
)
async def test_a_plan_that_would_not_hold_is_refused_with_the_reason(node_here, changes, code, says):
    error = (await node_here.post("fl/plan", **ALONE | changes)).json["error"]
    assert error["code"] == code and says in error["text"]
    assert node_here.node.rounds.all() == []


async def test_how_many_bad_updates_are_borne_can_be_an_option(node_here, tmp_path):
    many = [str(Identity(bytes([n]) * 32).peer_id) for n in range(1, 4)]
    await planned(node_here, members=many, rule="trimmed_mean", before=["nnm"], n_bad=1)
    (one,) = node_here.node.rounds.all()
    assert one.plan.rule == {"rule": "trimmed_mean", "n_bad": 1}
    assert one.plan.before == ({"before": "nnm", "n_bad": 1},)
    (tmp_path / "plan.toml").write_text(
        'before = [{ before = "nnm", n_bad = 9 }]\nrule = { rule = "krum", n_bad = 9 }\n'
    )
    answer = await node_here.post(
        "fl/plan", **ALONE | {"file": str(tmp_path / "plan.toml"), "n_bad": 0, "members": many}
    )
    assert answer.status == 200, answer.json
    (tmp_path / "plan.toml").write_text("before = [5, { before = [] }]\nrule = { rule = [] }\n")
    answer = await node_here.post("fl/plan", **ALONE | {"file": str(tmp_path / "plan.toml"), "n_bad": 1})
    assert answer.json["error"]["code"] == "bad_plan"


async def test_a_plan_that_cannot_be_followed_leaves_no_tensors_behind_that_stay_for_ever(node_here, monkeypatch):
    monkeypatch.setattr(service, "MAX_EXPERIMENTS", 0)
    assert (await node_here.post("fl/plan", **ALONE)).json["error"]["code"] == "too_many_experiments"
    assert node_here.node.pins.list() == []
    monkeypatch.undo()
    await planned(node_here)
    assert {pin.name for pin in node_here.node.pins.list()} == {node_here.node.rounds.all()[0].keep.pin}


@pytest.mark.parametrize(
    "text",
    [
        "rounds = ",
        "wish = 1",
        "members = 5",
        "members = [5]",
        "task = 5",
        "before = 5",
        "initial = 5",
        'title = "no task"',
    ],
)
async def test_a_file_that_is_no_plan_is_refused(node_here, tmp_path, text):
    (tmp_path / "plan.toml").write_text(text)
    answer = await node_here.post("fl/plan", file=str(tmp_path / "plan.toml"))
    assert answer.json["error"]["code"] == "bad_plan"


SECURE_FILE = (
    'title = "private"\nmin_participants = {minimum}\nmembers = ["{other}"]\nmax_norm = {max_norm}\n'
    '[task]\ntask = "softmax"\nn_features = 4\nn_classes = 3\n[secure]\nn_colluders = 1\n{more}'
)
NOISE = '[privacy]\nnoise = "{noise}"\nbound = 1.0\nmultiplier = 1.0\nbudget = {{ epsilon = 8.0, delta = 1e-5 }}\n'


@pytest.mark.parametrize(
    ("minimum", "max_norm", "more", "says"),
    [
        (2, 1.0, "", ""),
        (2, 1.0, NOISE.format(noise="distributed"), ""),
        (2, 1.0, NOISE.format(noise="central"), "take distributed noise"),
        (2, 1.0, NOISE.format(noise="examples"), ""),
        (2, 1.0, NOISE.format(noise="distributed") + "quantile = 0.5\ncount_noise = 0.1\n", "alone costs more"),
        (1, 1.0, "", "below the threshold of 2"),
        (2, 1.0, "threshold = 1\n", "too low for 1 colluders"),
        (2, 0.0, "", "set max_norm"),
    ],
)
async def test_a_secure_plan_comes_from_a_file_or_is_refused_with_the_reason(
    node_here, tmp_path, minimum, max_norm, more, says
):
    (tmp_path / "plan.toml").write_text(SECURE_FILE.format(minimum=minimum, other=OTHER, max_norm=max_norm, more=more))
    answer = await node_here.post("fl/plan", file=str(tmp_path / "plan.toml"))
    if says:
        assert answer.json["error"]["code"] == "bad_plan" and says in answer.json["error"]["text"]
        return
    (row,) = (await node_here.post("fl/status")).json
    assert (row["epsilon"], row["epsilon_budget"]) == ((0.0, 8.0) if more else (None, None))


async def test_one_that_hides_its_examples_is_told_what_that_means_and_what_it_costs(node_here, tmp_path, data):
    (tmp_path / "plan.toml").write_text(
        'title = "hidden"\nmin_participants = 1\nrounds = 2\n'
        '[task]\ntask = "softmax"\nn_features = 4\nn_classes = 3\nbatch = 4\n' + NOISE.format(noise="examples")
    )
    answer = (await node_here.post("fl/plan", file=str(tmp_path / "plan.toml"))).json
    assert any("not the participant" in one for one in answer["limits"])
    assert any("its own secret" in one for one in answer["undecidable"])
    experiment = answer["experiment"]
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    row = await over(node_here, experiment)
    assert 0.0 < row["epsilon"] <= 8.0 == row["epsilon_budget"]
    assert {(one["clip_bound"], one["loss"]) for one in row["rounds"]} == {(1.0, None)}
    assert "clipped to 1 " in " ".join(watched(row)) and "CLIP BOUND" in "\n".join(status([row])).upper()
    verified = (await node_here.post("fl/verify", what=experiment)).lines[-1]
    assert verified["verdict"] == "proved"
    assert any("its own secret" in one["what"] for one in verified["findings"] if one["verdict"] == "not decidable")


async def test_data_that_do_not_fit_the_task_are_refused_at_once(node_here, tmp_path):
    experiment = await planned(node_here)
    (tmp_path / "bad.csv").write_text("1,2,3\n")
    error = (await node_here.post("fl/join", experiment=experiment, data=str(tmp_path / "bad.csv"))).json["error"]
    assert error["code"] == "bad_task" and "expected are (n, 4)" in error["text"]


async def test_too_few_to_start_what_is_not_known_and_what_has_no_result_are_told(node_here):
    experiment = await planned(node_here, members=[OTHER], min_participants=2)
    error = (await node_here.post("fl/start", experiment=experiment)).json["error"]
    assert error["code"] == "unfit" and "0 have joined, and 2 are needed" in error["text"]
    assert (await node_here.post("fl/result", experiment=experiment)).json["error"]["code"] == "not_found"
    unknown = "bafyreibdjatinztwkiymenotoazucsecl7tywhpxt3doifg7zo4ibmzo7y"
    assert (await node_here.post("fl/watch", experiment=unknown)).json["error"]["code"] == "unknown_experiment"
    assert (await node_here.post("fl/join", experiment=unknown)).json["error"]["code"] == "unknown_experiment"
    verified = (await node_here.post("fl/verify", what=experiment, is_offline=True)).lines
    assert verified[-2]["verdict"] == "not decidable" and verified[-1]["error"]["code"] == "undecided"


async def test_who_left_trains_no_more_and_what_is_cancelled_is_over(node_here, data):
    experiment = await planned(node_here)
    await node_here.post("fl/join", experiment=experiment, data=data)
    assert "left" in (await node_here.post("fl/leave", experiment=experiment)).json["text"]
    (row,) = (await node_here.post("fl/status")).json
    assert not row["is_training"] and row["state"] == "waiting for participants"
    assert (await node_here.post("fl/cancel", experiment=experiment[-12:], reason="no time")).status == 200
    row = await over(node_here, experiment)
    assert row["state"] == "cancelled: no time" and "covey fl result" not in " ".join(watched(row))
    again = await node_here.post("fl/cancel", experiment=experiment[-12:], reason="really")
    assert again.json["text"].startswith("it was over already")


def test_what_is_refuted_and_what_is_not_decidable_end_with_codes_of_their_own():
    assert fault_of(Refuted("x")).exit_code == EXIT_FAILED
    assert fault_of(Undecided("x")).exit_code == EXIT_NOT_FOUND


async def test_a_report_is_written_as_a_page_or_a_picture(node_here, data, tmp_path):
    experiment = await planned(node_here, title="<b>alone</b>")
    early, page, picture = (tmp_path / name for name in ("early.html", "report.html", "report.png"))
    assert (await node_here.post("fl/report", experiment=experiment, out=str(early))).json["n_rounds"] == 0
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    await over(node_here, experiment)
    written = (await node_here.post("fl/report", experiment=experiment, out=str(page))).json
    assert written["n_rounds"] == 1 and written["n_bytes"] == page.stat().st_size
    assert "&lt;b&gt;alone&lt;/b&gt;" in page.read_text() and "<b>" not in page.read_text()
    assert str(node_here.node.identity.peer_id) in page.read_text()  # and not "me", which it is to nobody else
    await node_here.post("fl/report", experiment=experiment, out=str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    answer = await node_here.post("fl/report", experiment=experiment, out=str(tmp_path / "report.pdf"))
    assert answer.status == 409 and ".html or .png" in answer.json["error"]["text"]
    answer = await node_here.post("fl/report", experiment=experiment, out=str(tmp_path / "nowhere" / "report.png"))
    assert answer.status == 404 and f"no folder {tmp_path / 'nowhere'} to write" in answer.json["error"]["text"]


async def test_a_report_takes_no_other_files_place(node_here, tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"the sea")
    experiment = await planned(node_here)
    answer = await node_here.post("fl/report", experiment=experiment, out=str(tmp_path / "holiday.png"))
    assert answer.json["error"]["code"] == "target_exists" and (tmp_path / "holiday.png").read_bytes() == b"the sea"


async def test_a_report_tells_what_each_round_spent_of_a_budget_and_that_nothing_is_left(node_here, data, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'title = "spent"\nmin_participants = 1\nrounds = 9\n'
        '[task]\ntask = "softmax"\nn_features = 4\nn_classes = 3\n' + NOISE.format(noise="central")
    )
    experiment = (await node_here.post("fl/plan", file=str(tmp_path / "plan.toml"))).json["experiment"]
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    row = await over(node_here, experiment)
    await node_here.post("fl/report", experiment=experiment, out=str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert row["state"] == "over: its privacy budget is spent" and row["state"] in page
    assert "<title>Privacy spent</title>" in page and page.count("<td>settled</td>") == len(row["rounds"]) > 1
    assert page.count(f"<td>{row['epsilon']:.4g}</td>") == 1


async def test_a_result_that_is_no_adapter_is_not_kept_as_one(node_here, data):
    experiment = await planned(node_here)
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    await over(node_here, experiment)
    answer = await node_here.post("fl/result", experiment=experiment, as_adapter="mine")
    assert answer.json["error"]["code"] == "bad_task" and "no adapter" in answer.json["error"]["text"]
    assert not list((node_here.node.home.training).glob("*mine*"))
    node_here.node.training_now.add("mine")
    answer = await node_here.post("fl/result", experiment=experiment, as_adapter="mine")
    assert answer.json["error"]["code"] == "already_training"


async def test_a_compressed_experiment_sends_fewer_bytes_and_is_proved(node_here, data, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('compression = "int8"\n')
    experiment = await planned(node_here, file=str(path), settings=["n_features=4", "n_classes=3"], rounds=2)
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    row = await over(node_here, experiment)
    assert [one["update_bytes"] for one in row["rounds"]] == [15 + 4, 15 + 4]  # a byte for each number, and one scale
    assert (await node_here.post("fl/verify", what=experiment)).lines[-1]["verdict"] == "proved"
    memories = node_here.node.home.rounds / f"{experiment}.memories"
    assert len(list(memories.iterdir())) == 2


async def test_a_plan_for_a_base_that_is_not_here_says_how_to_get_it(node_here):
    answer = await node_here.post("fl/plan", title="t", task="lora", settings=["base=nowhere"])
    assert answer.json["error"]["code"] == "bad_task" and "covey model pull nowhere" in answer.json["error"]["text"]


@pytest.mark.parametrize("error", [StoreFull("full"), OverQuota("full"), DiskFull("full")])
async def test_that_there_is_no_room_for_what_is_proved_is_said_and_what_members_lack_or_lie_about_is_left_out(error):
    raised = [BadTensors("no tensors"), NoProviders("nobody"), error]

    async def fail(_cid):
        raise raised.pop(0)

    plan = SimpleNamespace(initial=CIDS[0], n_rounds=0)
    book = SimpleNamespace(current=lambda: 3, result=lambda number: CIDS[number])
    one = SimpleNamespace(plan=plan, book=book, fetch_file=fail, bring_result=fail, is_let_out=False)
    await bring_results(one)
    with pytest.raises(type(error)):
        await bring_all(one, lambda progress: None)
    one.is_let_out = True
    await bring_all(one, lambda progress: None)  # nobody would give it anything, and it asks for nothing


async def test_who_was_let_out_is_told_so_and_watches_no_longer(node_here, monkeypatch):
    experiment = await planned(node_here)
    monkeypatch.setattr(Experiment, "is_let_out", True)
    (row,) = (await node_here.post("fl/status", experiment=experiment)).json
    assert row["state"] == "let out: this node hears of it no more. The last: waiting for participants"
    with trio.fail_after(60):
        assert (await node_here.post("fl/watch", experiment=experiment)).lines[-1]["state"] == row["state"]


async def test_grants_let_members_in_and_out_where_the_plan_asks_for_them(node_here, tmp_path, data):
    plan = f'title = "asked"\njoining = "granted"\nlet_in = {{ direct = 1 }}\nmembers = ["{OTHER}"]\n'
    plan += '[task]\ntask = "softmax"\n'
    (tmp_path / "plan.toml").write_text(plan + "n_features = 4\nn_classes = 3\n")
    experiment = (await node_here.post("fl/plan", file=str(tmp_path / "plan.toml"))).json["experiment"]
    joined = (await node_here.post("fl/join", experiment=experiment, data=data)).json
    assert joined["is_training"] and joined["let_in_by"] == "the plan"  # its author
    revoke = await node_here.post("fl/revoke", experiment=experiment, peer=OTHER)
    assert revoke.json["error"]["code"] == "no_grant"
    assert "may train" in (await node_here.post("fl/grant", experiment=experiment, peer=OTHER, depth=2)).json["text"]
    assert "no more" in (await node_here.post("fl/revoke", experiment=experiment, peer=OTHER)).json["text"]
    brief = await node_here.post("fl/grant", experiment=experiment, peer=OTHER, lifetime_s=60)
    assert "if it comes into a round within 60 s" in brief.json["text"]
    strangers = [str(Identity(bytes([number]) * 32).peer_id) for number in (7, 8)]
    told = (await node_here.post("fl/grant", experiment=experiment, peer=strangers[0])).json["text"]
    where = node_here.node.network.addresses()[0]  # who is not known here has met nobody yet
    assert f"once it has joined with `covey fl join {experiment} --from {where} --data PATH`" in told
    (row,) = (await node_here.post("fl/status")).json
    assert (row["n_members"], {one["peer"] for one in row["members"]} & set(strangers)) == (3, {strangers[0]})
    answer = await node_here.post("fl/grant", experiment=experiment, peer=strangers[1])
    assert answer.json["error"]["code"] == "no_grant" and "has let in 1 whom the plan" in answer.json["error"]["text"]
    assert (await node_here.post("fl/grant", experiment=experiment, peer=OTHER, depth=9)).status == 400
    other = await planned(node_here, title="open")
    answer = await node_here.post("fl/grant", experiment=other, peer=OTHER)
    assert answer.json["error"]["code"] == "unfit" and "every member may train" in answer.json["error"]["text"]


@pytest.mark.parametrize(("joining", "rank", "says"), [("members", 3, "leave out --rank"), ("anybody", 0, "joining")])
async def test_what_a_plan_does_not_let_participants_choose_is_refused(node_here, tmp_path, data, joining, rank, says):
    plan = f'title = "t"\njoining = "{joining}"\n[task]\ntask = "softmax"\nn_features = 4\nn_classes = 3\n'
    (tmp_path / "plan.toml").write_text(plan)
    answer = await node_here.post("fl/plan", file=str(tmp_path / "plan.toml"))
    if rank:
        answer = await node_here.post("fl/join", experiment=answer.json["experiment"], data=data, rank=rank)
    assert says in answer.json["error"]["text"]
