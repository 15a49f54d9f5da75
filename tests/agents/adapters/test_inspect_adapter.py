import json
import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.adapters.inspect import inspect_folder, parse_config
from agents.adapters.safetensors_header import header_length, parse_header, read_header
from agents.engine.messages import ModelCard
from agents.errors import BadAdapter, WrongBase


def card(**changes):
    fields = {
        "name": "tiny",
        "fingerprint": "bafy",
        "architecture": "LlamaForCausalLM",
        "n_params": 1,
        "n_layers": 2,
        "hidden_size": 8,
        "vocabulary": 10,
        "context_tokens": 16,
        "dtype": "F32",
        "has_chat_template": False,
    }
    return ModelCard(**fields | changes)


def test_a_valid_folder_tells_what_it_is(peft_folder):
    folder = peft_folder(
        files={
            "README.md": b"# hi",
            "metadata.pt": b"\x80\x04 a pickle, never opened",
            "training.json": b'{"n_steps": 30, "loss_after": 1.5, "nested": {"x": 1}}',
        }
    )
    found = inspect_folder(folder, card())
    assert (found.rank, found.alpha, found.targets, found.dtypes) == (2, 16.0, ("q_proj", "v_proj"), ("F32",))
    assert found.n_params == 2 * 2 * (2 * 8 + 8 * 2)
    assert found.base_name == "tiny"
    assert found.training == {"loss_after": 1.5, "n_steps": 30}
    assert found.n_bytes == sum(size for _, size in found.files) == sum(p.stat().st_size for p in folder.iterdir())
    assert not found.use_dora and not found.use_rslora


def test_a_dora_adapter_carries_a_magnitude_for_each_layer(peft_folder, make_shapes):
    magnitudes = [
        (f"base_model.model.model.layers.{i}.self_attn.{kind}.lora_magnitude_vector", (8,))
        for i in range(2)
        for kind in ("q_proj", "v_proj")
    ]
    assert inspect_folder(peft_folder(shapes=make_shapes() + magnitudes, use_dora=True, use_rslora=True)).use_dora
    with pytest.raises(BadAdapter, match="use_dora"):
        inspect_folder(peft_folder(shapes=make_shapes() + magnitudes[:1], use_dora=True))
    with pytest.raises(BadAdapter, match="use_dora"):
        inspect_folder(peft_folder(shapes=make_shapes() + magnitudes))
    short = [(name, (7,)) for name, _ in magnitudes]
    with pytest.raises(BadAdapter, match="magnitude"):
        inspect_folder(peft_folder(shapes=make_shapes() + short, use_dora=True))


@pytest.mark.parametrize(
    "name",
    [
        "model.bin",
        "adapter_model.bin",
        "code.py",
        "optimizer.pt",
        "data.pkl",
        ".hidden",
        "Adapter_config.json",
        "x" * 200,
    ],
)
def test_an_unexpected_file_is_refused_with_its_name(peft_folder, name):
    with pytest.raises(BadAdapter, match="no place in an adapter"):
        inspect_folder(peft_folder(files={name: b"?"}))


def test_links_and_folders_are_refused(peft_folder, tmp_path):
    folder = peft_folder()
    os.symlink("/etc/passwd", folder / "README.md")
    with pytest.raises(BadAdapter, match="link"):
        inspect_folder(folder)
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    with pytest.raises(BadAdapter, match="folder"):
        inspect_folder(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(peft_folder, name):
    folder = peft_folder()
    (folder / name).unlink()
    with pytest.raises(BadAdapter, match=name):
        inspect_folder(folder)


def test_a_folder_that_is_not_there_is_a_plain_error(tmp_path):
    with pytest.raises(BadAdapter, match="not a folder"):
        inspect_folder(tmp_path / "nowhere")


def test_a_file_over_its_limit_is_refused_unread(peft_folder):
    folder = peft_folder()
    with (folder / "adapter_config.json").open("r+b") as file:
        file.truncate(1 << 40 if os.name == "never" else 300 << 10)
    with pytest.raises(BadAdapter, match="limit"):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"auto_mapping": {"parent_library": "evil"}}, "auto_mapping"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"megatron_core": "evil.module"}, "megatron_core"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": 1}, "init_lora_weights"),
        ({"bias": "all"}, "bias"),
        ({"made_up": "value"}, "made_up"),
        ({"revision": 7}, "revision"),
        ({"r": 0}, "r in"),
        ({"r": True}, "r in"),
        ({"r": 2.0}, "r in"),
        ({"r": 10**9}, "r in"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"target_modules": "(a+)+$"}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": ["a"] * 65}, "target_modules"),
        ({"use_dora": 1}, "use_dora"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"rank_pattern": {"x": -1}}, "rank_pattern"),
        ({"alpha_pattern": {"x": "1"}}, "alpha_pattern"),
        ({"base_model_name_or_path": "x" * 513}, "base_model_name_or_path"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path"),
    ],
)
def test_a_configuration_outside_the_allow_list_is_refused(peft_folder, changes, reason):
    with pytest.raises(BadAdapter, match=reason):
        inspect_folder(peft_folder(**changes))


def test_an_unknown_option_that_is_off_does_no_harm(peft_folder):
    assert inspect_folder(peft_folder(next_years_option=None, another=False)).rank == 2


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"nul",
        b'{"r": 1, "r": 2}',
        b'{"r": NaN}',
        b"\xff{}",
        b"[" * 100_000,
        b'{"r": 1' + b"0" * 9000 + b"}",
    ],
)
def test_json_that_is_not_strict_is_refused(text):
    with pytest.raises(BadAdapter, match=r"adapter_config\.json"):
        parse_config(text)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ([("base_model.model.q_proj.lora_A.weight", (2, 8))], "only one of"),
        (
            [("base_model.model.q_proj.lora_A.weight", (3, 8)), ("base_model.model.q_proj.lora_B.weight", (8, 3))],
            "rank 2",
        ),
        (
            [("base_model.model.q_proj.lora_A.weight", (2, 8)), ("base_model.model.q_proj.lora_B.weight", (8, 3))],
            "shapes",
        ),
        (
            [("base_model.model.q_proj.lora_A.weight", (2, 8, 1)), ("base_model.model.q_proj.lora_B.weight", (8, 2))],
            "two matrices",
        ),
        (
            [("base_model.model.q_proj.lora_A.weight", (2, 0)), ("base_model.model.q_proj.lora_B.weight", (8, 2))],
            "two matrices",
        ),
        (
            [("base_model.model.x.lora_A.weight", (2, 8)), ("base_model.model.x.lora_B.weight", (8, 2))],
            "none of the target",
        ),
        ([("base_model.model.lm_head.weight", (8, 8))], "not part of a LoRA"),
        ([("base_model.model.../q_proj.lora_A.weight", (8, 8))], "not part of a LoRA"),
    ],
)
def test_tensors_that_are_no_whole_pairs_are_refused(peft_folder, shapes, reason):
    with pytest.raises(BadAdapter, match=reason):
        inspect_folder(peft_folder(shapes=shapes))


def test_a_rank_pattern_allows_other_ranks(peft_folder, make_shapes):
    assert (
        inspect_folder(
            peft_folder(shapes=make_shapes(rank=4), rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 8})
        ).rank
        == 2
    )


def test_an_adapter_for_another_width_or_depth_names_the_difference(peft_folder):
    folder = peft_folder()
    with pytest.raises(WrongBase, match="width of 8, tiny has 16"):
        inspect_folder(folder, card(hidden_size=16))
    with pytest.raises(WrongBase, match="layer 1, tiny has 1 layers"):
        inspect_folder(folder, card(n_layers=1))


SPEC = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "n_data", "reason"),
    [
        ({}, 0, "0 tensors"),
        ({"a": SPEC}, 9, "need 8 bytes of data"),
        ({"a": SPEC}, 7, "need 8 bytes of data"),
        ({"a": SPEC | {"data_offsets": [4, 12]}}, 12, "belong to no tensor"),
        ({"a": SPEC, "b": SPEC}, 8, "overlap"),
        ({"a": SPEC, "b": SPEC | {"data_offsets": [12, 20]}}, 20, "gap"),
        ({"a": SPEC | {"data_offsets": [0, 4]}}, 4, "claims 4 bytes"),
        ({"a": SPEC | {"data_offsets": [8, 0]}}, 8, "claims -8 bytes"),
        ({"a": SPEC | {"data_offsets": [0]}}, 8, "data_offsets"),
        ({"a": SPEC | {"dtype": "I64"}}, 8, "dtype"),
        ({"a": SPEC | {"dtype": ["F32"]}}, 8, "dtype"),
        ({"a": SPEC | {"shape": [-2]}}, 8, "shape"),
        ({"a": SPEC | {"shape": [True, 2]}}, 8, "shape"),
        ({"a": SPEC | {"shape": [2] * 9}}, 8, "shape"),
        ({"a": SPEC | {"shape": [1 << 50]}}, 8, "shape"),
        ({"a": SPEC | {"extra": 1}}, 8, "alone"),
        ({"a": 1}, 8, "alone"),
        ({"a" * 600: SPEC}, 8, "characters"),
        ({"a": SPEC, "__metadata__": {"k": 1}}, 8, "metadata"),
        ({"a": SPEC, "__metadata__": {"k": "x" * 70_000}}, 8, "metadata"),
        ({f"t{i}": SPEC for i in range(20_001)}, 8, "20001 tensors"),
    ],
)
def test_a_header_that_lies_is_refused(header, n_data, reason):
    with pytest.raises(BadAdapter, match=reason):
        parse_header(json.dumps(header).encode(), n_data)


def test_duplicate_tensor_names_are_refused():
    one = '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    with pytest.raises(BadAdapter, match="twice"):
        parse_header(f"{{{one}, {one}}}".encode(), 8)


def test_a_header_longer_than_the_file_or_the_limit_is_refused_unread():
    with pytest.raises(BadAdapter, match="limit"):
        header_length(struct.pack("<Q", 1 << 60), 1 << 61)
    with pytest.raises(BadAdapter, match="ends before"):
        header_length(struct.pack("<Q", 100), 50)


def test_a_file_cut_at_any_byte_or_with_a_tail_is_refused(tmp_path, make_safetensors, make_shapes):
    whole = make_safetensors(make_shapes(layers=1))
    path = tmp_path / "file"
    path.write_bytes(whole)
    assert len(read_header(path).tensors) == 4
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadAdapter):
            read_header(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(BadAdapter):
        read_header(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), byte=st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_but_the_refusal(tmp_path, make_safetensors, make_shapes, at, byte):
    data = bytearray(make_safetensors(make_shapes()))
    data[at % len(data)] = byte
    path = tmp_path / "file"
    path.write_bytes(data)
    try:
        header = read_header(path)
    except BadAdapter:
        return
    assert header.tensors[-1].end == header.n_data_bytes
