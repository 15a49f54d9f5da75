import json
import math
import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.adapters import finite
from agents.adapters.finite import check_finite
from agents.adapters.fits import read_layers
from agents.adapters.inspect import inspect_folder, parse_config
from agents.adapters.safetensors_header import DTYPES, header_length, parse_header, read_header
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
    assert not found.use_rslora


def magnitudes():
    return [
        (f"base_model.model.model.layers.{i}.self_attn.{kind}.lora_magnitude_vector", (8,))
        for i in range(2)
        for kind in ("q_proj", "v_proj")
    ]


@pytest.mark.parametrize("said", [{"use_dora": True}, {}])
def test_a_dora_adapter_is_refused_and_told_how_to_merge(peft_folder, make_shapes, said):
    with pytest.raises(BadAdapter, match=r"DoRA.*merge_and_unload.*covey model pull"):
        inspect_folder(peft_folder(shapes=make_shapes() + magnitudes(), **said))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", "own biases"),
        ("base_model.model.lm_head.modules_to_save.weight", "whole layers"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "biases"),
    ],
)
def test_tensors_that_no_low_rank_product_can_serve_are_refused_with_what_they_are(
    peft_folder, make_shapes, name, reason
):
    with pytest.raises(BadAdapter, match=reason):
        inspect_folder(peft_folder(shapes=[*make_shapes(), (name, (8, 8))]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bias": "lora_only"}, "train it with bias none"),
        ({"modules_to_save": ["lm_head"]}, "merge_and_unload"),
        ({"lora_bias": True}, "lora_bias off"),
        ({"trainable_token_indices": [1]}, "tokens of the base"),
        ({"target_parameters": ["experts"]}, "only linear layers"),
    ],
)
def test_what_is_more_than_low_rank_products_is_refused_with_what_to_do(peft_folder, changes, reason):
    with pytest.raises(BadAdapter, match=reason) as refusal:
        inspect_folder(peft_folder(**changes))
    assert "\n" not in str(refusal.value)


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


def scales(found):
    return {pair.module.rpartition("self_attn.")[2] + pair.module[13]: (pair.rank, pair.scale) for pair in found.pairs}


def mixed(ranks):
    return [
        (f"base_model.model.model.layers.{layer}.self_attn.{kind}.lora_{half}.weight", shape)
        for (kind, layer), rank in ranks.items()
        for half, shape in (("A", (rank, 8)), ("B", (8, rank)))
    ]


def test_patterns_set_ranks_and_alphas_of_single_layers_as_peft_does(peft_folder):
    ranks = {("q_proj", 0): 4, ("q_proj", 1): 2, ("v_proj", 0): 3, ("v_proj", 1): 3}
    found = inspect_folder(
        peft_folder(
            shapes=mixed(ranks),
            rank_pattern={"layers.0.self_attn.q_proj": 4, "v_proj": 3, "^model.layers.1.self_attn.v_proj": 7},
            alpha_pattern={r"^model\.layers\.1\.self_attn\.v_proj": 6, "v_proj": 12},
        ),
        card(),
    )
    assert found.rank == 2
    assert scales(found) == {"q_proj0": (4, 4.0), "q_proj1": (2, 8.0), "v_proj0": (3, 4.0), "v_proj1": (3, 2.0)}


def test_rslora_divides_by_the_root_of_each_layers_rank(peft_folder):
    found = inspect_folder(
        peft_folder(shapes=mixed({("q_proj", 0): 4, ("v_proj", 0): 2}), rank_pattern={"q_proj": 4}, use_rslora=True)
    )
    assert scales(found) == {"q_proj0": (4, 8.0), "v_proj0": (2, 16 / 2**0.5)}


def test_a_layer_of_another_rank_than_its_pattern_says_is_refused(peft_folder, make_shapes):
    with pytest.raises(BadAdapter, match=r"v_proj.*says rank 2"):
        inspect_folder(peft_folder(shapes=make_shapes(rank=4), rank_pattern={"q_proj": 4}))


@pytest.mark.parametrize("key", ["(a+)+$", "q_proj|v_proj", ".*", "", "x" * 300])
@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_is_an_expression_is_never_run(peft_folder, pattern, key):
    with pytest.raises(BadAdapter, match="no plain name of a layer"):
        inspect_folder(peft_folder(**{pattern: {key: 4}}))


@pytest.mark.parametrize("names", [("", "model."), ("model.", "")])
def test_the_layers_of_the_base_decide_where_they_are_known(peft_folder, names):
    own, stored = names
    layers = {f"{stored}layers.{i}.self_attn.{kind}": (8, 8) for i in range(2) for kind in ("q_proj", "v_proj")}
    renamed = [
        (name.replace("model.model.model.", f"model.model.{own}"), shape) for name, shape in mixed({("q_proj", 0): 2})
    ]
    folder = peft_folder(shapes=renamed)
    if own:
        assert inspect_folder(folder, card(), layers).rank == 2
        with pytest.raises(WrongBase, match="from 8 to 8, tiny's is of the shape 8 x 4"):
            inspect_folder(folder, card(), layers | {f"{stored}layers.0.self_attn.q_proj": (4, 8)})
        missing = {key: shape for key, shape in layers.items() if "q_proj" not in key}
        both = peft_folder("both", shapes=mixed({("q_proj", 0): 2, ("v_proj", 0): 2}))
        with pytest.raises(WrongBase, match="a layer that tiny does not have"):
            inspect_folder(both, card(), missing)
    assert inspect_folder(folder, card(), {"something.else": (1, 1)}).rank == 2  # the engine decides


def test_the_layers_of_a_base_are_read_from_its_headers(tmp_path, make_safetensors):
    weights = make_safetensors([("model.layers.0.mlp.up_proj.weight", (16, 8)), ("model.norm.bias", (8,))])
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert read_layers(tmp_path) == {"model.layers.0.mlp.up_proj": (16, 8)}
    (tmp_path / "model.safetensors").write_bytes(weights[:-1])
    assert read_layers(tmp_path) == {}
    assert read_layers(tmp_path / "nowhere") == {}


def test_an_adapter_that_notes_another_base_is_refused_though_its_shapes_fit(peft_folder):
    folder = peft_folder(files={"training.json": b'{"base": "bafyother"}'})
    with pytest.raises(WrongBase, match="trained on the base bafyother, which tiny is not"):
        inspect_folder(folder, card())
    assert inspect_folder(folder, card(derived_from="bafyother")).rank == 2


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


@pytest.mark.parametrize(
    ("beginning", "what"),
    [
        (b"PK\x03\x04\x14\x00\x00\x00", "zip archive"),
        (b"\x80\x02}q\x00(X\x05", "pickle"),
        (b"\x80\x04\x95\xff\x00\x00\x00\x00", "pickle"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
    ],
)
def test_another_format_under_the_name_is_told_by_its_beginning(beginning, what):
    with pytest.raises(BadAdapter, match=f"{what}.*never opened"):
        header_length(beginning, 1 << 40)


def test_a_header_whose_length_begins_like_a_pickle_is_read():
    assert header_length(b"\x80\x02" + bytes(6), 1000) == 640


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


def one_tensor(dtype, data, size):
    about = {"x": {"dtype": dtype, "shape": [len(data) // size], "data_offsets": [0, len(data)]}}
    header = json.dumps(about).encode()
    return struct.pack("<Q", len(header)) + header + data


def refuses(path):
    try:
        check_finite(path)
    except BadAdapter as error:
        return "NaN or infinity" in str(error)
    return False


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.floats(width=16), min_size=1, max_size=9), form=st.sampled_from(["F64", "F32", "F16"]))
def test_numbers_are_finite_by_their_bits_where_they_are(tmp_path, numbers, form):
    letter = {"F64": "d", "F32": "f", "F16": "e"}[form]
    data = struct.pack(f"<{len(numbers)}{letter}", *numbers)
    (tmp_path / "file").write_bytes(one_tensor(form, data, DTYPES[form]))
    assert refuses(tmp_path / "file") == (not all(map(math.isfinite, numbers)))


@pytest.mark.parametrize(
    ("dtype", "finite", "others"),
    [
        ("BF16", [0x0000, 0x3F80, 0x7F7F, 0xFF7F], [0x7F80, 0xFF80, 0x7FC0, 0x7F81]),
        ("F8_E5M2", [0x00, 0x7B, 0xFB], [0x7C, 0xFC, 0x7E, 0x7F]),
        ("F8_E4M3", [0x00, 0x7E, 0xFE, 0x78], [0x7F, 0xFF]),
    ],
)
def test_numbers_of_few_bits_are_finite_as_their_formats_have_it(tmp_path, dtype, finite, others):
    size = DTYPES[dtype]
    path = tmp_path / "file"
    path.write_bytes(one_tensor(dtype, b"".join(bits.to_bytes(size, "little") for bits in finite), size))
    assert not refuses(path)
    for bits in others:
        path.write_bytes(one_tensor(dtype, bits.to_bytes(size, "little"), size))
        assert refuses(path)


def test_numbers_behind_the_first_chunk_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "CHUNK_BYTES", 16)
    path = tmp_path / "file"
    path.write_bytes(one_tensor("F32", struct.pack("<9f", *range(8), math.inf), 4))
    assert refuses(path)
