"""What a base model's folder may hold, and what is refused before a byte of the weights is copied."""

import json
import os
import shutil
import struct
from collections import namedtuple

import pytest

from agents.engine import model_folder
from agents.engine.model_folder import check_room, make_card, read_config, source_files
from agents.errors import BadModel, NoRoom
from simulations.world import write_model


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


def test_a_whole_folder_tells_what_it_is(folder):
    card = make_card(folder, "tiny", licence="MIT")
    assert (card.architecture, card.n_layers, card.hidden_size, card.vocabulary) == ("LlamaForCausalLM", 2, 8, 64)
    assert (card.dtype, card.has_chat_template, card.licence) == ("F32", True, "MIT")
    assert card.n_params == 64 * 8 + 8 + 4 * 8 * 8
    assert card.fingerprint.startswith("bafyrei")


def test_only_what_makes_a_model_is_taken(folder):
    for name in ("modeling.py", "pytorch_model.bin", "README.md", ".git"):
        (folder / name).write_text("import os")
    (folder / "runs").mkdir()
    (folder / "LICENSE.txt").write_text("MIT")
    assert [file.name for file in source_files(folder)] == [
        "LICENSE.txt",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.PTH", "a.ckpt", "a.pkl", "a.npz"])
def test_pickled_weights_are_refused_by_name(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(BadModel, match=r"never opened: Pickled weights can run code"):
        source_files(folder)


@pytest.mark.parametrize("beginning", [b"PK\x03\x04\0\0\0\0", b"\x80\x04\x95\xff\xff\xff\xff\xff"])
def test_pickled_weights_are_refused_by_content(folder, beginning):
    (folder / "model.safetensors").write_bytes(beginning + bytes(100))
    with pytest.raises(BadModel, match=r"model\.safetensors: it is a .* under another name"):
        make_card(folder, "m")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused_with_its_name(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(BadModel, match=missing.replace("model.safetensors", "no .safetensors file")):
        source_files(folder)


def test_a_symlink_out_of_the_folder_is_refused_and_one_inside_is_not(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a key")
    (folder / "LICENSE").symlink_to(secret)
    with pytest.raises(BadModel, match="symlink out of the folder"):
        source_files(folder)
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadModel, match="leads nowhere"):
        source_files(folder)
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to("LICENSE")
    with pytest.raises(BadModel, match="leads nowhere"):
        source_files(folder)
    (folder / "LICENSE").unlink()
    (folder / "text").write_text("MIT")
    (folder / "LICENSE").symlink_to("text")
    assert folder / "LICENSE" in source_files(folder)


def test_the_symlinks_of_a_hub_cache_lead_to_its_blobs(folder, tmp_path):
    cache = tmp_path / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(cache / "blobs" / file.name)
        (snapshot / file.name).symlink_to(os.path.join("..", "..", "blobs", file.name))
    assert len(source_files(snapshot)) == 4


def test_a_folder_in_the_place_of_a_file_is_refused(folder):
    (folder / "LICENSE").mkdir()
    with pytest.raises(BadModel, match="not a file"):
        source_files(folder)


def test_a_file_over_its_limit_is_refused(folder, monkeypatch):
    with (folder / "generation_config.json").open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(BadModel, match="limit is 1048576"):
        source_files(folder)
    with pytest.raises(BadModel, match="over 1048576 bytes"):
        model_folder.read_object(folder / "generation_config.json")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_of_its_own_is_refused(folder, file):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "modeling.Evil"}}))
    with pytest.raises(BadModel, match=r"code of the model's own \(auto_map\), which is never run"):
        read_config(folder)


def test_quantised_weights_are_refused_with_what_to_do(tmp_path):
    folder = write_model(tmp_path / "q", quantization_config={"quant_method": "gptq"})
    with pytest.raises(BadModel, match="GGUF"):
        read_config(folder)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b'{"a": 1, "a": 2}', b'{"hidden_size": NaN}', b"\xff", b"[" * 100_000, b"{" * 5000],
)
def test_a_configuration_that_is_not_strict_json_is_refused(folder, text):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(BadModel, match=r"config\.json"):
        make_card(folder, "m")


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": None},
        {"architectures": []},
        {"architectures": [7]},
        {"num_hidden_layers": "2"},
        {"hidden_size": True},
        {"vocab_size": 0},
        {"max_position_embeddings": 1 << 60},
    ],
)
def test_a_configuration_that_does_not_tell_what_is_needed_is_refused(tmp_path, changes):
    with pytest.raises(BadModel, match="does not tell"):
        make_card(write_model(tmp_path / "m", **changes), "m")


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 1_000_000}, {"vocab_size": 1 << 40}])
def test_a_configuration_of_another_size_than_the_weights_is_refused_unbuilt(tmp_path, changes):
    with pytest.raises(BadModel, match=r"describes .* layers and .* words, and the weights are"):
        make_card(write_model(tmp_path / "m", **changes), "m")


@pytest.mark.parametrize("n_cut", [1, 100, 10_000])
def test_truncated_weights_are_refused(folder, n_cut):
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: max(0, len(data) - n_cut)])
    with pytest.raises(BadModel, match=r"model\.safetensors"):
        make_card(folder, "m")


def test_a_header_whose_length_lies_is_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", 1 << 62) + weights.read_bytes()[8:])
    with pytest.raises(BadModel, match="limit"):
        make_card(folder, "m")


def test_a_model_that_does_not_fit_on_the_disk_is_refused_before_it_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, 1 << 30))
    check_room(tmp_path / "not" / "yet" / "there", 1 << 29, "a model")
    with pytest.raises(NoRoom, match=r"a model needs 1,073,741,824 bytes .* has 805,306,368 to spare"):
        check_room(tmp_path, 1 << 30, "a model")
