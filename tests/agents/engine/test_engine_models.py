"""With torch: the engine's own LoRA against PEFT's, training, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from agents.engine.client import open_engine
from agents.engine.messages import Finished, Generate, Import, Imported, Load, Stage, Token, Train, Turn
from agents.errors import BadAdapter, BadModel, EngineFailed, TooLong, WrongBase
from agents.training.settings import Settings

pytestmark = pytest.mark.engine
ASK = (Turn("user", "What does the import statement do?"),)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="session")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that was trained on program text."""
    from agents.engine.worker.training.train import train

    folder = tmp_path_factory.mktemp("adapters")
    data = folder / "code.txt"
    data.write_text(Path(json.__file__).with_name("decoder.py").read_text() * 2)
    request = Train(
        model=str(tiny_model),
        name="code",
        data=str(data),
        run=str(folder / "run"),
        out=str(folder / "code"),
        settings=Settings(n_steps=15, targets=ALL, learning_rate=5e-3),
    )
    trained = train(request, lambda told: None, lambda: False)
    assert trained.loss_after < trained.loss_before - 0.2
    return folder / "code"


async def answer(engine, adapter=None, **options):
    text = ""
    async with engine.call(Generate(turns=ASK, adapter=adapter and str(adapter), **options)) as replies:
        async for reply in replies:
            if isinstance(reply, Token):
                text += reply.text
    assert isinstance(reply, Finished)
    return text, reply


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers by an old name
def test_greedy_tokens_and_logits_equal_those_of_peft(tiny_model, adapter):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from agents.engine.worker.models import load_model

    ours = load_model(tiny_model)
    ours.adapters.wear(ours.adapters.stage(adapter))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).eval()
    ids = torch.tensor([ours.encode("The import statement")])
    with torch.inference_mode():
        torch.testing.assert_close(ours.model(input_ids=ids).logits, theirs(input_ids=ids).logits)
        mine, other = (
            model.generate(input_ids=ids, max_new_tokens=32, do_sample=False) for model in (ours.model, theirs)
        )
    assert torch.equal(mine, other)
    ours.adapters.wear(None)
    with torch.inference_mode(), theirs.disable_adapter():
        assert torch.equal(ours.model(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_our_loop_makes_the_tokens_of_transformers_generate(tiny_model):
    import torch

    from agents.engine.worker.generation.batch import Batch, Limits
    from agents.engine.worker.generation.prompt import render
    from agents.engine.worker.models import load_model

    loaded = load_model(tiny_model)
    batch, replies = Batch(loaded, Limits(64 << 20)), []
    batch.start(Generate(turns=ASK, max_tokens=32), replies.append, lambda: False)
    while not batch.is_idle:
        batch.step()
    pieces = [reply.text for reply in replies if isinstance(reply, Token)]
    ids = torch.tensor([loaded.encode(render(loaded, ASK, is_open=True))])
    out = loaded.model.generate(input_ids=ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]
    assert "".join(pieces) == loaded.decode(out.tolist())


async def test_a_chat_swaps_adapters_between_turns_and_back(tiny_model, adapter):
    async with open_engine(threads=1) as engine:
        await engine.one(Load(folder=str(tiny_model)))
        await engine.one(Stage(adapter=str(adapter)))
        base, finished = await answer(engine, max_tokens=24)
        worn, _ = await answer(engine, adapter, max_tokens=24)
        again, _ = await answer(engine, max_tokens=24)
        assert base == again != worn
        assert finished.n_tokens <= 24
        sampled = [await answer(engine, temperature=1.0, top_p=0.9, seed=7, max_tokens=16) for _ in range(2)]
        assert sampled[0][0] == sampled[1][0]
        stopped, finished = await answer(engine, max_tokens=24, stop=(base[5:8],))
        assert stopped == base[: base.find(base[5:8])] and finished.reason == "stop"
        with pytest.raises(TooLong, match="shorten"):
            await engine.one(Generate(turns=(Turn("user", "word " * 2000),)))
        await cancelled_halfway(engine)


async def cancelled_halfway(engine):
    async with engine.call(Generate(turns=ASK, max_tokens=900)) as replies:
        await replies.__anext__()
    _, finished = await answer(engine, max_tokens=4)
    assert finished.n_tokens <= 4


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("use_dora", True, "(?i)dora"),
        ("bias", "all", "bias"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("alpha_pattern", {"(q|v)_proj": 3}, "alpha_pattern"),
        ("peft_type", "IA3", "peft_type"),
        ("target_modules", "(a+)+$", "target_modules"),
    ],
)
def test_variants_that_are_not_served_are_refused_by_name(tiny_model, adapter, tmp_path, key, value, said):
    from agents.engine.worker.lora import Adapters
    from agents.engine.worker.models import load_model

    copy = shutil.copytree(adapter, tmp_path / "copy")
    config = json.loads((copy / "adapter_config.json").read_text()) | {key: value}
    (copy / "adapter_config.json").write_text(json.dumps(config))
    adapters: Adapters = load_model(tiny_model).adapters
    with pytest.raises(BadAdapter, match=said):
        adapters.stage(copy)


def test_nan_and_foreign_shapes_are_refused_and_rslora_is_scaled(tiny_model, adapter, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from agents.engine.worker.models import load_model

    adapters = load_model(tiny_model).adapters
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(tensors))

    def variant(folder, changed, **keys):
        copy = shutil.copytree(adapter, tmp_path / folder)
        save_file(changed, copy / "adapter_model.safetensors")
        config = json.loads((copy / "adapter_config.json").read_text()) | keys
        (copy / "adapter_config.json").write_text(json.dumps(config))
        return copy

    with pytest.raises(BadAdapter, match="NaN"):
        adapters.stage(variant("nan", tensors | {name: torch.full_like(tensors[name], torch.nan)}))
    wide = {key: torch.zeros(8, 64) if "lora_A" in key else torch.zeros(64, 8) for key in tensors}
    with pytest.raises(WrongBase):
        adapters.stage(variant("wide", wide))
    deep = {key.replace("layers.0", "layers.40"): tensor for key, tensor in tensors.items()}
    with pytest.raises(WrongBase, match="adapts layer 40, tiny has 4 layers"):
        adapters.stage(variant("deep", deep))
    foreign = {key.replace("layers.0.", "0."): tensor for key, tensor in tensors.items()}
    with pytest.raises(WrongBase, match="no linear layer"):
        adapters.stage(variant("foreign", foreign))
    note = {"base": "bafyreiother"}
    (noted := variant("noted", tensors)).joinpath("training.json").write_text(json.dumps(note))
    with pytest.raises(WrongBase, match="trained on the base bafyreiother, which tiny is not"):
        adapters.stage(noted)
    plain = next(iter(adapters.stage(adapter).layers.values()))
    scaled = next(iter(adapters.stage(variant("rs", tensors, use_rslora=True)).layers.values()))
    stored = tensors[next(name for name in tensors if "lora_B" in name)]
    torch.testing.assert_close(plain.b * plain.scale, stored * 16 / 8)
    torch.testing.assert_close(scaled.b * scaled.scale, stored * 16 / 8**0.5)
    patterned = adapters.stage(variant("pattern", tensors, alpha_pattern={"q_proj": 4})).layers
    name = next(layer for layer in patterned if layer.endswith("q_proj"))
    stored = tensors[f"base_model.model.{name}.lora_B.weight"]
    torch.testing.assert_close(patterned[name].b * patterned[name].scale, stored * 4 / 8)


def test_numbers_that_overflow_in_the_models_own_kind_are_refused(tiny_model, adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    from agents.engine.worker.models import load_model

    copy = shutil.copytree(adapter, tmp_path / "large")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor * 0 + 40_000 for name, tensor in tensors.items()}, copy / "adapter_model.safetensors")
    assert load_model(tiny_model).adapters.stage(copy)  # a scale of two brings it over what float16 holds
    with pytest.raises(
        BadAdapter, match=r"lora_B\.weight holds numbers too large for float16, .* engine\.dtype to float"
    ):
        load_model(tiny_model, "float16").adapters.stage(copy)


def test_staged_adapters_stay_within_their_budget(tiny_model, adapter):
    from agents.engine.worker.lora import Adapters
    from agents.engine.worker.models import load_model

    adapters = Adapters(load_model(tiny_model).model, max_bytes=1)
    for name in ("a", "b"):
        adapters.stage(shutil.copytree(adapter, adapter.with_name(name)))
    assert len(adapters._staged) == 1


@pytest.mark.parametrize("source", ["/nowhere", "wheel:no-such-package-at-all", "not a model"])
async def test_what_is_no_model_is_refused_and_leaves_nothing(tmp_path, source):
    async with open_engine(threads=1) as engine:
        with pytest.raises(EngineFailed):
            await engine.one(Import(source=source, folder=str(tmp_path / "m"), name="m"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_pickled_weights_is_refused(tiny_model, tmp_path):
    from agents.engine.worker.imports import import_model

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(EngineFailed, match="Pickled"):
        import_model(str(copy), tmp_path / "m", "m", lambda: False)


@pytest.mark.parametrize("garbage", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"PK\x03\x04", b"{}"])
async def test_a_gguf_that_is_garbage_is_refused_and_leaves_nothing(tmp_path, garbage):
    source = tmp_path / "model.gguf"
    source.write_bytes(garbage)
    async with open_engine(threads=1) as engine:
        with pytest.raises(BadModel, match="is not a GGUF that can be read"):
            await engine.one(Import(source=str(source), folder=str(tmp_path / "models" / "m"), name="m"))
    assert list((tmp_path / "models").iterdir()) == []


async def test_an_import_tells_how_far_it_is(tiny_model, tmp_path):
    request = Import(source=str(tiny_model), folder=str(tmp_path / "m"), name="m")
    async with open_engine(threads=1) as engine, engine.call(request) as replies:
        steps = [reply async for reply in replies]
    assert isinstance(steps.pop(), Imported)
    copied = [step for step in steps if step.step == "copying tiny"]
    assert copied[-1].n_done == copied[-1].n_total > 3_000_000
    assert steps[-1].step == "computing its fingerprint"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stands in for the library that speaks with the hub; its one function is the given code."""

    def answering(code):
        package = tmp_path / "fake" / "huggingface_hub"
        package.mkdir(parents=True)
        lines = "".join(f"    {line}\n" for line in code.splitlines())
        (package / "__init__.py").write_text(f"def snapshot_download(source, local_dir, allow_patterns):\n{lines}")
        monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{Path(__file__).parents[3]}")

    return answering


def test_a_model_comes_from_the_hub_and_what_it_downloads_is_told(tiny_model, tmp_path, hub):
    from agents.engine.worker.imports import import_model
    from agents.engine.worker.models import read_card

    is_told = tmp_path / "told"
    until_told = f"while not os.path.exists({str(is_told)!r}): time.sleep(0.01)"
    hub(f"import os, shutil, time\nshutil.copytree({str(tiny_model)!r}, local_dir)\n{until_told}")

    def tell(step):
        if "Hugging Face hub" in step.step and step.n_done > 1_000_000:
            is_told.touch()

    card = import_model("org/name", tmp_path / "m", "m", lambda: False, tell)
    assert card.fingerprint == read_card(tiny_model).fingerprint
    assert is_told.exists()
    assert not (tmp_path / "m" / "download").exists()


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(tmp_path, hub):
    from agents.engine.worker.imports import import_model

    hub("raise ConnectionError('no route\\n  to the hub')")
    with pytest.raises(
        EngineFailed, match=r"org/name could not be .*: ConnectionError: no route to the hub\. Is there"
    ):
        import_model("org/name", tmp_path / "m", "m", lambda: False)
    assert not (tmp_path / "m").exists()


def test_a_download_that_is_cancelled_ends_and_leaves_nothing(tmp_path, hub):
    from agents.engine.worker.imports import import_model

    hub("import time\ntime.sleep(600)")
    with pytest.raises(EngineFailed, match="cancelled"):
        import_model("org/name", tmp_path / "m", "m", lambda: True)
    assert not (tmp_path / "m").exists()


def spoilt(tiny_model, folder, tensors=dict, config=(), tokenizer=None):
    """A copy of the tiny model with something wrong, as it would stand here; `tensors` changes the weights."""
    from safetensors.torch import load_file, save_file

    from agents.engine.model_folder import make_card, write_card

    shutil.copytree(tiny_model, folder)
    save_file(tensors(load_file(tiny_model / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    about = json.loads((folder / "config.json").read_text()) | dict(config)
    (folder / "config.json").write_text(json.dumps(about))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer)
    write_card(folder, make_card(folder, folder.name))
    return folder


NORM = "model.layers.1.input_layernorm.weight"


def test_a_model_that_lacks_a_tensor_is_refused_and_not_filled_up_at_random(tiny_model, tmp_path):
    from agents.engine.worker.models import load_model

    lacking = spoilt(tiny_model, tmp_path / "lacking", lambda all_: {k: t for k, t in all_.items() if k != NORM})
    with pytest.raises(BadModel, match="a file is missing, or one of the two is of another model"):
        load_model(lacking)
    renamed = spoilt(tiny_model, tmp_path / "renamed", lambda all_: {k.replace(NORM, "x"): t for k, t in all_.items()})
    with pytest.raises(BadModel, match=r"the weights of renamed lack 'model\.layers\.1\.input_layernorm"):
        load_model(renamed)
    wide = spoilt(tiny_model, tmp_path / "wide", config={"intermediate_size": 1 << 20}.items())
    with pytest.raises(BadModel, match="describes a model of"):
        load_model(wide)
    narrow = spoilt(tiny_model, tmp_path / "narrow", config={"intermediate_size": 8}.items())
    with pytest.raises(EngineFailed, match="cannot be loaded"):
        load_model(narrow)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_found_when_a_model_is_brought_in_and_when_it_is_loaded(
    tiny_model, tmp_path, number
):
    from agents.engine.worker.imports import import_model
    from agents.engine.worker.models import load_model

    def broken(tensors):
        tensors[NORM][5] = number
        return tensors

    folder = spoilt(tiny_model, tmp_path / "broken", broken)
    with pytest.raises(BadModel, match=rf"{NORM} of broken holds NaN or infinity: the model is broken, get"):
        load_model(folder)
    with pytest.raises(BadModel, match=rf"{NORM} of new holds NaN or infinity"):
        import_model(str(folder), tmp_path / "new", "new", lambda: False)
    assert not (tmp_path / "new").exists()


def test_a_file_of_weights_that_is_none_is_refused_before_it_is_copied(tiny_model, tmp_path):
    from agents.engine.worker.imports import import_model

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    weights = copy / "model.safetensors"
    whole, told = weights.read_bytes(), []
    for data, said in ((whole[:-1000], "cut short"), (b"PK\x03\x04" + whole[4:], "zip archive")):
        weights.write_bytes(data)
        with pytest.raises(BadModel, match=rf"model\.safetensors: .*{said}"):
            import_model(str(copy), tmp_path / "m", "m", lambda: False, told.append)
    assert told == []


def test_weights_too_large_for_float16_are_told_from_broken_ones(tiny_model, tmp_path):
    from agents.engine.worker.models import load_model

    folder = spoilt(tiny_model, tmp_path / "large", lambda all_: all_ | {NORM: all_[NORM] * 1e9})
    load_model(folder)
    with pytest.raises(BadModel, match=r"too large for float16: set engine\.dtype to float32"):
        load_model(folder, "float16")


@pytest.mark.parametrize("tokenizer", ["{}", "[]", "garbage", '{"model": {"type": "BPE"}, "added_tokens": []}'])
def test_a_tokenizer_that_cannot_be_used_is_refused_when_the_model_is_brought_in(tiny_model, tmp_path, tokenizer):
    from agents.engine.worker.imports import import_model
    from agents.engine.worker.models import load_model

    folder = spoilt(tiny_model, tmp_path / "odd", tokenizer=tokenizer)
    with pytest.raises(BadModel, match=r"tokenizer\.json .* cannot be used"):
        load_model(folder)
    with pytest.raises(BadModel, match=r"tokenizer\.json .* cannot be used"):
        import_model(str(folder), tmp_path / "new", "new", lambda: False)
    assert not (tmp_path / "new").exists()


def test_importing_a_folder_keeps_its_fingerprint(tiny_model, tmp_path):
    from agents.engine.worker.imports import import_model
    from agents.engine.worker.models import read_card

    card = import_model(str(tiny_model), tmp_path / "m", "copy", lambda: False)
    assert card.fingerprint == read_card(tiny_model).fingerprint
    assert read_card(tmp_path / "m") == card
