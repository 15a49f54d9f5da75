"""With torch: merging agrees with PEFT, and transformers reads the GGUF back to the same logits."""

import json
import shutil

import pytest

from agents.engine.gguf_header import MERGED_KEYS, read_gguf_header
from agents.engine.messages import Export, Merge, Train
from agents.engine.model_folder import merged_of
from agents.errors import BadAdapter, EngineFailed, WrongBase
from agents.training.settings import Settings
from storage import unixfs

pytestmark = pytest.mark.engine
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TEXT = "The import statement"


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    from agents.engine.worker.training.train import train

    folder = tmp_path_factory.mktemp("export")
    (folder / "text.txt").write_text("".join(f"the fox number {n} sleeps until {n * n}. " for n in range(60)))
    train(
        Train(
            model=str(tiny_model), name="fox", data=str(folder / "text.txt"), run=str(folder / "run"),
            out=str(folder / "fox"), settings=Settings(n_steps=4, targets=ALL, learning_rate=2e-2),
        ),
        lambda told: None,
        lambda: False,
    )  # fmt: skip
    return folder / "fox"


def logits(model, tokenizer):
    import torch

    ids = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits[0]


def logits_of(folder, **where):
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    if where:
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
        return logits(AutoModelForCausalLM.from_pretrained(folder, **where), tokenizer)
    return logits(AutoModelForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder))


def worn(tiny_model, adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    return logits(model, PreTrainedTokenizerFast.from_pretrained(tiny_model))


def merged(tiny_model, adapter, out):
    from agents.engine.worker.merge import merge

    return merge(Merge(model=str(tiny_model), adapter=str(adapter), adapter_name="fox", out=str(out), name=out.name))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("variant", ["plain", "rs"])
def test_a_merged_model_is_the_base_wearing_the_adapter(tiny_model, adapter, tmp_path, variant):
    import torch

    from agents.engine.worker.models import read_card

    copy = shutil.copytree(adapter, tmp_path / variant)
    config = json.loads((copy / "adapter_config.json").read_text())
    if variant == "rs":
        config["use_rslora"] = True
    (copy / "adapter_config.json").write_text(json.dumps(config))
    done = merged(tiny_model, copy, tmp_path / "merged")
    assert done.n_layers == 28
    torch.testing.assert_close(logits_of(tmp_path / "merged"), worn(tiny_model, copy), rtol=1e-3, atol=1e-3)
    base = read_card(tiny_model)
    assert done.card == read_card(tmp_path / "merged")
    assert done.card.fingerprint != base.fingerprint and done.card.derived_from is None
    origin = json.loads((tmp_path / "merged" / "covey-merge.json").read_text())
    assert origin["base"] == base.base and origin["adapter"].startswith("bafy")
    assert logits_of(tiny_model).sub(worn(tiny_model, copy)).abs().max() > 0.1


def test_a_merged_model_says_what_it_was_made_of_wherever_it_goes(tiny_model, adapter, tmp_path):
    from agents.engine.worker.export import export_gguf
    from agents.engine.worker.imports import import_model
    from agents.engine.worker.models import read_card

    made = merged(tiny_model, adapter, tmp_path / "merged").card
    said = merged_of(made)
    assert said["merged_base"] == read_card(tiny_model).base and said["merged_adapter_name"] == "fox"
    assert said["merged_adapter"] == str(unixfs.cid_of_path(adapter, unixfs.COVEY_WEIGHTS))
    assert merged_of(import_model(str(tmp_path / "merged"), tmp_path / "pulled", "pulled", lambda: False)) == said
    ask = Export(model=str(tmp_path / "merged"), out=str(tmp_path / "plain.gguf"))
    export_gguf(ask, lambda: False)
    ask = Export(model=str(tiny_model), adapter=str(adapter), adapter_name="fox", out=str(tmp_path / "with.gguf"))
    export_gguf(ask, lambda: False)
    for name in ("plain", "with"):
        values = read_gguf_header(tmp_path / f"{name}.gguf").values
        assert {fact: values[key] for fact, key in MERGED_KEYS.items()} == said
    (tmp_path / "merged" / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes())
    again = import_model(str(tmp_path / "merged"), tmp_path / "other", "other", lambda: False)
    assert merged_of(again) == {}  # other weights than those that the card speaks of


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tiny_model, adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    def variant(folder, change, **keys):
        copy = shutil.copytree(adapter, tmp_path / "a" / folder)
        save_file(change(load_file(copy / "adapter_model.safetensors")), copy / "adapter_model.safetensors")
        config = json.loads((copy / "adapter_config.json").read_text()) | keys
        (copy / "adapter_config.json").write_text(json.dumps(config))
        return copy

    with pytest.raises(BadAdapter, match="NaN"):
        merged(tiny_model, variant("nan", lambda all_: {key: t * float("nan") for key, t in all_.items()}),
               tmp_path / "out")  # fmt: skip
    with pytest.raises(BadAdapter, match="DoRA"):
        merged(tiny_model, variant("dora", dict, use_dora=True), tmp_path / "out")
    deep = variant("deep", lambda all_: {key.replace("self_attn", "other_attn"): t for key, t in all_.items()})
    with pytest.raises(WrongBase, match="stores no weights"):
        merged(tiny_model, deep, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(EngineFailed, match="there already"):
        merged(tiny_model, adapter, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "there"]


@pytest.mark.filterwarnings("ignore")  # of readers of GGUF files, about numpy
@pytest.mark.parametrize(("dtype", "most"), [("f32", 1e-4), ("f16", 2e-2), ("bf16", 2e-1), ("int8", 2e-1)])
def test_transformers_reads_the_gguf_back(tiny_model, adapter, tmp_path, dtype, most):
    from agents.engine.worker.export import export_gguf

    merged(tiny_model, adapter, tmp_path / "merged")
    out = tmp_path / "fox.gguf"
    done = export_gguf(Export(model=str(tiny_model), adapter=str(adapter), out=str(out), dtype=dtype), lambda: False)
    assert done.n_bytes == out.stat().st_size and done.n_tensors == 38
    assert [path.name for path in tmp_path.glob("*.gguf*")] == ["fox.gguf"]
    read, whole = logits_of(tmp_path, gguf_file="fox.gguf"), logits_of(tmp_path / "merged")
    assert read.shape == whole.shape
    assert read.sub(whole).abs().max() < most * whole.abs().max()
    assert read.argmax(-1).eq(whole.argmax(-1)).float().mean() > 0.7


def test_int8_takes_about_a_quarter_and_a_gguf_comes_back_as_a_model(tiny_model, tmp_path):
    from agents.engine.worker.export import export_gguf
    from agents.engine.worker.imports import import_model

    sizes = {}
    for dtype in ("f32", "int8"):
        out = tmp_path / f"{dtype}.gguf"
        sizes[dtype] = export_gguf(Export(model=str(tiny_model), out=str(out), dtype=dtype), lambda: False).n_bytes
    assert sizes["int8"] < 0.35 * sizes["f32"]
    card = import_model(str(tmp_path / "int8.gguf"), tmp_path / "again", "again", lambda: False)
    assert card.architecture == "LlamaForCausalLM" and card.n_layers == 4 and card.has_chat_template


def test_what_a_gguf_has_no_place_for_is_refused(tiny_model, tmp_path):
    from agents.engine.worker.export import export_gguf

    def ask(**keys):
        model = shutil.copytree(tiny_model, tmp_path / "model", dirs_exist_ok=True)
        for file in ("config.json", "covey-model.json"):
            (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | keys.get(file, {})))
        export_gguf(Export(model=str(model), out=str(tmp_path / "out.gguf")), lambda: False)

    with pytest.raises(EngineFailed, match="biases"):
        ask(**{"config.json": {"attention_bias": True}})
    with pytest.raises(EngineFailed, match="llama3"):
        ask(**{"config.json": {"attention_bias": False, "rope_parameters": {"rope_type": "llama3"}}})
    with pytest.raises(EngineFailed, match="GPT2"):
        ask(**{"covey-model.json": {"architecture": "GPT2LMHeadModel"}})
    assert not list(tmp_path.glob("*.gguf*"))
