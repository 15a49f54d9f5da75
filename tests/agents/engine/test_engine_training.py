"""With torch: what a training learns, that it resumes to the bit, and that PEFT reads what comes out."""

import json
import math
import os
import signal
from itertools import count
from pathlib import Path

import msgspec
import pytest

from agents.adapters.inspect import inspect_folder
from agents.engine.client import open_engine
from agents.engine.messages import Measure, Train, TrainCheckpoint, Trained, TrainPaused, TrainReady, TrainStep
from agents.errors import BadAdapter, BadData, CannotResume, EngineDied, EngineFailed, UnlikeRun
from agents.training import runs
from agents.training.settings import Settings

pytestmark = pytest.mark.engine
FOX = "the quick brown fox jumps over the lazy dog, and dog {n} of {m} sleeps on. "
# Everything at once that a checkpoint has to hold: chance, half a pass, held-out losses, the best so far.
ALL_OF_IT = Settings(
    n_steps=9, checkpoint_every=4, dropout=0.2, batch=2, accumulate=2, eval_every=2, patience=3, context_tokens=24,
    weight_decay=0.01, learning_rate=5e-3, n_eval=4,
)  # fmt: skip


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "fox.txt"
    path.write_text("".join(FOX.format(n=n, m=n * n) for n in range(30)))
    return path


@pytest.fixture
def do(tiny_model, tmp_path, data):
    """Train in this process: `do(settings, name)`; with `until`, pause at the so many'th look at the clock."""
    import torch

    from agents.engine.worker.training.train import train

    torch.set_num_threads(1)  # as the workers here: another number of threads adds in another order
    seeds = count(1000)

    def run(settings, name="fox", until=math.inf, told=None, **fields):
        looks = count(1)
        torch.manual_seed(next(seeds))  # what is left of an earlier training decides nothing
        told = [] if told is None else told
        request = Train(
            model=str(tiny_model), name=name, run=str(tmp_path / "runs" / name), out=str(tmp_path / name),
            settings=settings, **{"data": str(data)} | fields,
        )  # fmt: skip
        return train(request, told.append, lambda: next(looks) > until)

    return run


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_training_tells_its_steps_and_leaves_an_adapter_with_its_record(do, tmp_path, data):
    told = []
    trained = do(Settings(n_steps=6, context_tokens=24, eval_every=3), told=told)
    assert isinstance(told[0], TrainReady) and told[0].n_steps == 6 and told[0].step == 0
    steps = [item for item in told if isinstance(item, TrainStep)]
    assert [item.step for item in steps] == [1, 2, 3, 4, 5, 6]
    assert [item.step for item in steps if item.held_out_loss is not None] == [3, 6]
    assert trained.loss_after == steps[-1].held_out_loss < trained.loss_before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox", "fox.txt", "runs"]
    assert not (tmp_path / "runs" / "fox").exists()
    assert trained.cid == str(runs.data_cid(tmp_path / "fox"))
    facts = inspect_folder(tmp_path / "fox").training
    assert facts["data"] == str(runs.data_cid(data)) and facts["n_steps"] == 6
    record = json.loads((tmp_path / "fox" / "training.json").read_text())
    assert record["settings"]["form"] == "text" and record["environment"]["threads"] >= 1
    assert [step for step, _ in record["losses"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in record["held_out_losses"]] == [0, 3, 6]
    card = (tmp_path / "fox" / "README.md").read_text()
    assert facts["base"] in card and facts["data"] in card and facts["checkpoint"] in card


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_reads_what_comes_out_and_computes_the_same_loss(do, tiny_model, tmp_path):
    import torch
    from peft import PeftModel
    from torch.nn import functional
    from transformers import AutoModelForCausalLM

    from agents.engine.worker.models import load_model
    from agents.engine.worker.training.train import _plan

    for name, settings in {
        "plain": Settings(n_steps=4, context_tokens=24, rank=4),
        "rs": Settings(n_steps=4, context_tokens=24, rank=4, use_rslora=True, targets=("k_proj", "down_proj")),
    }.items():
        do(settings, name)
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / name).eval()
        trained = json.loads((tmp_path / name / "training.json").read_text())
        run = runs.Run(
            name=name, model="tiny", base="", trained_on="", data="", data_name="fox.txt",
            settings=msgspec.structs.replace(settings, form="text"),
        )  # fmt: skip
        runs.begin(tmp_path / "again", run, (tmp_path / "fox.txt").read_bytes())
        plan, _, _ = _plan(load_model(tiny_model), run, tmp_path / "again", is_each_alone=False)
        total = n = 0
        with torch.no_grad():
            for row in plan.held_out:
                ids = torch.tensor([list(row[0].tokens.ids)])
                logits = theirs(input_ids=ids).logits[0, :-1]
                total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
                n += ids.shape[1] - 1
        assert total / n == pytest.approx(trained["loss_after"], abs=1e-4)


def test_the_gradients_are_those_of_the_formula_written_out(tiny_model):
    import torch

    from agents.engine.worker.models import load_model
    from agents.engine.worker.training.lowrank import LowRanks

    loaded = load_model(tiny_model)
    lora = LowRanks(loaded, Settings(targets=("q_proj", "down_proj"), rank=3))
    with torch.no_grad():
        lora.flat.copy_(torch.randn(lora.flat.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    layer = loaded.model.get_submodule("model.layers.1.mlp.down_proj")
    x = torch.randn(2, 5, layer.base.in_features, requires_grad=True)
    layer(x).square().sum().backward()
    ours = [x.grad.clone(), layer.a.grad.clone(), layer.b.grad.clone()]
    x.grad = None
    a, b = (half.detach().clone().requires_grad_() for half in (layer.a, layer.b))
    (layer.base(x) + (x @ a.T @ b.T) * layer.scale).square().sum().backward()
    for mine, other in zip(ours, [x.grad, a.grad, b.grad], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)
    lora.take_off()
    assert not any("base" in name for name, _ in loaded.model.named_modules())


def made(loaded, lines, tmp_path, n_context=200):
    from agents.engine.worker.training.examples import make_examples
    from agents.training.check import read

    data = b"\n".join(json.dumps(line).encode() for line in lines)
    return make_examples(loaded, read("x.jsonl", data, None, "")[1], n_context)


def learned(loaded, tokens):
    return loaded.tokenizer.decode([label for label in tokens.labels if label >= 0])


def test_only_the_words_of_the_assistant_and_its_end_are_learned(tiny_model, tmp_path):
    from agents.engine.worker.models import load_model

    loaded = load_model(tiny_model)
    turns = [("system", "be kind"), ("user", "a b"), ("assistant", "c d"), ("user", "e"), ("assistant", "f")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (example,) = made(loaded, [chat], tmp_path).examples
    assert learned(loaded, example.tokens) == "c d<|im_end|>\nf<|im_end|>\n"
    (example,) = made(loaded, [{"instruction": "say", "output": "yes"}], tmp_path).examples
    assert learned(loaded, example.tokens) == "yes<|im_end|>\n"
    (example,) = made(loaded, [{"prompt": "one", "completion": " two"}], tmp_path).examples
    assert learned(loaded, example.tokens) == " two<|im_end|>"
    assert loaded.tokenizer.decode(list(example.tokens.ids)) == "one two<|im_end|>"
    (example,) = made(loaded, [{"prompt": "one", "chosen": " two", "rejected": " three"}], tmp_path).examples
    assert (learned(loaded, example.tokens), learned(loaded, example.worse)) == (" two<|im_end|>", " three<|im_end|>")


def test_what_is_too_long_is_cut_or_left_out_and_documents_go_on(tiny_model, tmp_path):
    from agents.engine.worker.models import load_model

    loaded = load_model(tiny_model)
    lines = [{"prompt": "a" * 400, "completion": "b"}, {"prompt": "a", "completion": "b " * 200}]
    found = made(loaded, lines, tmp_path, n_context=16)
    assert (len(found.examples), found.n_cut, found.n_dropped) == (1, 1, 1)
    found = made(loaded, [{"text": "word " * 50}], tmp_path, n_context=16)
    assert len(found.examples) > 1 and found.n_cut == 0
    whole = [token for example in found.examples for token in example.tokens.ids]
    assert loaded.decode(whole) == "word " * 50
    with pytest.raises(BadData, match="context"):
        made(loaded, lines[:1], tmp_path, n_context=16)


def test_packed_rows_have_the_loss_and_the_gradient_of_their_examples_alone(tiny_model, tmp_path):
    import torch

    from agents.engine.worker.models import load_model
    from agents.engine.worker.training.lowrank import LowRanks
    from agents.engine.worker.training.objective import count_labels, token_loss

    loaded = load_model(tiny_model)
    lora = LowRanks(loaded, Settings(targets=("q_proj", "v_proj")))
    lines = [{"prompt": "say " * n, "completion": " this" * (n + 1)} for n in range(1, 6)]
    examples = made(loaded, lines, tmp_path).examples
    found = []
    for rows in ([[example] for example in examples], [examples[:3], examples[3:]], [examples]):
        loss = token_loss(loaded.model, rows, loaded.device, torch.float32)
        loss.backward()
        found.append((float(loss.detach()), lora.flat.grad.clone(), count_labels(rows)))
        lora.flat.grad.zero_()
    for loss, gradient, n in found[1:]:
        assert n == found[0][2]
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-4)


def test_a_packed_training_sees_each_example_once_a_pass(do, tmp_path, data):
    data.write_text("\n".join(json.dumps({"text": f"story {n} " + "tells more " * (n % 4)}) for n in range(24)))
    told = []
    packed = do(Settings(n_epochs=1, context_tokens=48, pack=True, batch=1, form="text"), told=told)
    steps = sum(isinstance(item, TrainStep) for item in told)
    told = []
    plain = do(Settings(n_epochs=1, context_tokens=48, batch=1, form="text"), "other", told=told)
    assert packed.n_tokens == plain.n_tokens
    assert steps < sum(isinstance(item, TrainStep) for item in told) / 1.5


@pytest.mark.parametrize("until", [1, 4, 7, 9, 13, 18, 22, 27, 33])
def test_a_paused_training_ends_with_the_bytes_of_one_that_never_paused(do, tmp_path, until):
    whole = do(ALL_OF_IT, "whole")
    told = []
    paused = do(ALL_OF_IT, "whole2", until=until, told=told)
    if not isinstance(paused, Trained):
        assert isinstance(paused, TrainPaused)
        told = []
        again = do(ALL_OF_IT, "whole2", until=until, told=told)  # by the same command, and once more in between
        if isinstance(again, TrainPaused):
            assert again.step >= paused.step
            again = do(ALL_OF_IT, "whole2", data=None)
        assert weights(tmp_path / "whole2") == weights(tmp_path / "whole")
        record, other = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "whole2"))
        assert other["losses"] == record["losses"] and other["held_out_losses"] == record["held_out_losses"]
        assert again.loss_after == whole.loss_after


def test_the_same_run_gives_the_same_cid_of_the_whole_folder(do, tmp_path):
    cids = []
    for until in (math.inf, 11):
        done = do(ALL_OF_IT, until=until)
        done = done if isinstance(done, Trained) else do(ALL_OF_IT)
        cids.append(done.cid)
    assert cids[0] == cids[1]


def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(do, tmp_path):
    do(ALL_OF_IT, "whole")
    told = []
    do(ALL_OF_IT, until=26, told=told)
    last = runs.checkpoints(tmp_path / "runs" / "fox")[0]
    assert last.step > 4
    (last.folder / runs.OPTIMIZER_FILE).write_bytes(b"\0" * 100)
    told = []
    do(ALL_OF_IT, told=told)
    assert told[0].step == 4 and any("damaged" in note for note in told[0].notes)
    assert weights(tmp_path / "fox") == weights(tmp_path / "whole")


def test_another_machine_is_told_and_refused_unless_forced(do, tmp_path, monkeypatch):
    from agents.engine.worker.training import train as module

    do(ALL_OF_IT, until=20)
    there = module.environment
    monkeypatch.setattr(module, "environment", lambda *args: there(*args) | {"cpu": "abacus", "torch": "0.1"})
    with pytest.raises(CannotResume, match=r"cpu was .*, is abacus; torch was .*--force"):
        do(ALL_OF_IT)
    told = []
    assert isinstance(do(ALL_OF_IT, told=told, is_forced=True), Trained)
    assert sum("last bits" in note for note in told[0].notes) == 2


def test_another_training_of_the_name_is_refused_unless_it_begins_anew(do, tmp_path, data):
    do(ALL_OF_IT, until=20)
    with pytest.raises(UnlikeRun, match=r"rank was 8, is 4.*covey training resume fox.*--fresh"):
        do(msgspec.structs.replace(ALL_OF_IT, rank=4))
    data.write_text(data.read_text() + "one more.")
    with pytest.raises(UnlikeRun, match="the data is another"):
        do(ALL_OF_IT)
    told = []
    do(ALL_OF_IT, told=told, is_fresh=True)
    assert told[0].step == 0


def test_what_is_resumed_needs_a_run_and_its_data(do, tmp_path):
    with pytest.raises(runs.NoRun, match="no unfinished training"):
        do(ALL_OF_IT, data=None)
    do(ALL_OF_IT, until=20)
    (tmp_path / "runs" / "fox" / "data").write_text("tampered")
    with pytest.raises(CannotResume, match="damaged"):
        do(ALL_OF_IT, data=None)


def test_early_stopping_keeps_the_best_adapter(do, tmp_path):
    settings = Settings(
        n_steps=40, context_tokens=24, eval_every=2, patience=2, learning_rate=0.3, schedule="constant", clip_norm=100.0
    )
    told = []
    trained = do(settings, told=told)
    losses = {item.step: item.held_out_loss for item in told if isinstance(item, TrainStep) and item.held_out_loss}
    assert trained.n_steps < 40
    if trained.best_step != trained.n_steps:
        assert trained.loss_after == losses[trained.best_step] == min(losses.values())


def test_preferences_begin_at_the_logarithm_of_two_and_leave_the_reference_alone(do, data):
    rows = [{"prompt": f"tell {n}", "chosen": " a good answer", "rejected": " nonsense and more"} for n in range(20)]
    path = data.with_name("pairs.jsonl")
    path.write_text("\n".join(json.dumps(row) for row in rows))
    told = []
    trained = do(Settings(n_steps=8, learning_rate=5e-3), data=str(path), told=told)
    assert told[0].loss_before == pytest.approx(math.log(2), abs=1e-6)
    assert trained.loss_after < 0.6
    assert "pair" in (Path(trained.folder) / "README.md").read_text()


def test_thrift_changes_no_bit_and_half_precision_still_learns(do, tmp_path):
    plain = do(Settings(n_steps=3, context_tokens=24, dropout=0.1))
    thrifty = do(Settings(n_steps=3, context_tokens=24, dropout=0.1, is_thrifty=True), "thrifty")
    assert weights(tmp_path / "fox") == weights(tmp_path / "thrifty")
    half = do(Settings(n_steps=6, context_tokens=24, precision="bf16"), "half")
    assert half.loss_after < half.loss_before
    assert thrifty.loss_after == plain.loss_after


def test_accumulated_batches_make_the_step_of_one_large_batch(do, tmp_path):
    from safetensors.numpy import load_file

    do(Settings(n_steps=3, context_tokens=24, batch=4))
    do(Settings(n_steps=3, context_tokens=24, batch=1, accumulate=4), "four")
    one, four = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("fox", "four"))
    assert all(abs(one[name] - four[name]).max() < 2e-4 for name in one)


def test_what_cannot_be_trained_leaves_nothing(do, tmp_path, data):
    with pytest.raises(EngineFailed, match=r"no linear layers named nothing; it has .*q_proj"):
        do(Settings(targets=("q_proj", "nothing")))
    (notes := tmp_path / "notes").mkdir()
    with pytest.raises(EngineFailed, match="something else"):
        do(Settings(n_steps=1), "notes")
    assert list(notes.iterdir()) == []
    data.write_bytes(b'{"messages": 3}\n')
    with pytest.raises(BadData, match="line 1"):
        do(Settings(form="chat"), data=str(data.rename(tmp_path / "chat.jsonl")), is_fresh=True)
    assert not (tmp_path / "fox").exists() and not (tmp_path / "runs" / "fox").exists()


@pytest.mark.parametrize("at_step", [2, 6])
async def test_a_training_whose_worker_is_killed_ends_with_the_same_bytes(do, tiny_model, tmp_path, data, at_step):
    do(ALL_OF_IT, "whole")
    request = Train(
        model=str(tiny_model), name="fox", data=str(data), run=str(tmp_path / "runs" / "fox"),
        out=str(tmp_path / "fox"), settings=ALL_OF_IT,
    )  # fmt: skip
    async with open_engine(threads=1) as engine:
        with pytest.raises(EngineDied, match="SIGKILL"):
            await killed_at(engine, request, at_step)
        async with engine.call(request) as replies:
            told = [reply async for reply in replies]
    assert told[0].step == at_step // 4 * 4
    assert isinstance(told[-1], Trained)
    assert weights(tmp_path / "fox") == weights(tmp_path / "whole")


async def killed_at(engine, request, step):
    async with engine.call(request) as replies:
        async for reply in replies:
            if isinstance(reply, TrainStep) and reply.step == step:
                os.kill(engine.pid, signal.SIGKILL)


async def test_a_training_that_is_left_pauses_with_a_checkpoint(tiny_model, tmp_path, data):
    request = Train(
        model=str(tiny_model), name="fox", data=str(data), run=str(tmp_path / "runs" / "fox"),
        out=str(tmp_path / "fox"), settings=Settings(n_steps=100_000, context_tokens=24, checkpoint_every=100_000),
    )  # fmt: skip
    async with open_engine(threads=1) as engine, engine.call(request) as replies:
        while not isinstance(await replies.__anext__(), TrainStep):
            pass
        replies.cancel()
        told = [reply async for reply in replies]
    assert isinstance(told[-2], TrainCheckpoint) and isinstance(told[-1], TrainPaused)
    assert told[-2].step == told[-1].step
    assert not (tmp_path / "fox").exists()


SHORT = Settings(n_steps=4, context_tokens=24, batch=2, split_seed=3, learning_rate=5e-3, n_eval=8)


def test_a_training_goes_on_from_an_adapter_and_the_same_seed_gives_the_same_bytes(do, tmp_path):
    do(SHORT, "first")
    first = tmp_path / "first" / "adapter_model.safetensors"
    told = []
    on = do(SHORT, "on", initial=str(first), told=told)
    again = do(SHORT, "again", initial=str(first))
    assert weights(tmp_path / "on") == weights(tmp_path / "again") != weights(tmp_path / "first")
    assert told[0].loss_before == on.loss_before == again.loss_before > on.loss_after
    assert json.loads((tmp_path / "on" / "training.json").read_text())["initial"] == str(runs.data_cid(first))


def test_an_unfinished_training_that_began_with_another_adapter_is_not_gone_on_with(do, tmp_path):
    do(SHORT, "first")
    first = str(tmp_path / "first" / "adapter_model.safetensors")
    assert isinstance(do(SHORT, "on", initial=first, until=9), TrainPaused)
    with pytest.raises(UnlikeRun, match="the adapter to begin with is another"):
        do(SHORT, "on")


@pytest.mark.parametrize("changes", [{"rank": 4}, {"targets": ("k_proj",)}])
def test_an_adapter_to_begin_with_that_does_not_fit_is_refused(do, tmp_path, changes):
    do(SHORT, "first")
    with pytest.raises(BadAdapter, match="to begin with"):
        do(
            msgspec.structs.replace(SHORT, **changes),
            "on",
            initial=str(tmp_path / "first" / "adapter_model.safetensors"),
        )
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(BadAdapter, match="cannot be read"):
        do(SHORT, "other", initial=str(tmp_path / "junk"))


def test_what_is_held_out_follows_from_its_own_seed_and_is_measured_as_the_training_does(
    do, tiny_model, tmp_path, data
):
    from agents.engine.worker.training.measure import measure

    one = do(SHORT, "one")
    other = do(msgspec.structs.replace(SHORT, seed=77), "other")
    assert one.loss_before == other.loss_before and one.loss_after != other.loss_after
    first = tmp_path / "one" / "adapter_model.safetensors"
    request = Measure(model=str(tiny_model), data=str(data), initial=str(first), settings=SHORT)
    measured = measure(request, lambda: False)
    assert measured.loss == pytest.approx(one.loss_after, abs=1e-6)
    assert 0 < measured.accuracy < 1 and measured.n_labels > measured.n_examples > 0
    with pytest.raises(EngineFailed, match="cancelled"):
        measure(request, lambda: True)
    with pytest.raises(BadAdapter):
        measure(msgspec.structs.replace(request, initial=str(data)), lambda: False)


def test_preferences_are_measured_in_pairs(do, tiny_model, tmp_path):
    from agents.engine.worker.training.measure import measure

    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"say {n} ", "chosen": f"yes {n}", "rejected": f"no, not {n}"}) + "\n"
            for n in range(20)
        )
    )
    one = do(SHORT, "pairs", data=str(path))
    first = tmp_path / "pairs" / "adapter_model.safetensors"
    measured = measure(
        Measure(model=str(tiny_model), data=str(path), initial=str(first), settings=SHORT), lambda: False
    )
    assert measured.loss == pytest.approx(one.loss_after, abs=1e-6) and measured.n_labels == measured.n_examples


@pytest.mark.parametrize("half", ["A", "B"])
def test_a_frozen_half_stays_as_it_begins_and_the_other_learns(do, tmp_path, half):
    import safetensors.torch

    do(SHORT, "first")
    first = tmp_path / "first" / "adapter_model.safetensors"
    do(msgspec.structs.replace(SHORT, frozen=half.lower()), "on", initial=str(first))
    before = safetensors.torch.load_file(first)
    after = safetensors.torch.load_file(tmp_path / "on" / "adapter_model.safetensors")
    assert {name.rpartition("lora_")[2][0] for name in before if before[name].equal(after[name])} == {half}


def test_a_half_that_is_frozen_does_not_decay_either(do):
    with pytest.raises(EngineFailed, match="leave weight_decay at 0"):
        do(msgspec.structs.replace(SHORT, frozen="a", weight_decay=0.1), "on")
