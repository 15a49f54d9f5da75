"""With torch: many requests at once on one model, and PEFT, one request at a time, as the oracle."""

import random

import pytest

from agents.engine.messages import Failed, Finished, Generate, Token

pytestmark = pytest.mark.engine

NEAR = 1e-4
"""Two logits this close are a tie: rounding may turn it."""
KINDS = (
    {"rank": 8},
    {"rank": 4, "targets": ("q_proj", "v_proj")},
    {"rank": 16, "targets": ("down_proj",)},
    {"rank": 8, "lora_alpha": 8},
    {"rank": 2, "targets": ("o_proj", "up_proj")},
    {"rank": 8},
    {"rank": 32, "targets": ("q_proj",)},
    {"rank": 5, "use_rslora": True},
)
TEXTS = ("The import statement", "def __init__(self", "Lists are", "An exception is raised when", "If the class", "x")


@pytest.fixture(scope="module")
def folders(make_adapter, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(root / str(n), seed=n, **kind) for n, kind in enumerate(KINDS)]


@pytest.fixture(scope="module")
def loaded(tiny_model):
    import torch

    from agents.engine.worker.models import load_model

    torch.set_num_threads(1)
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def peft_says(tiny_model, folders, loaded):
    """PEFT's own greedy tokens for (adapter or None, text), and how far the second best logit was at each."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, folders[0], adapter_name="0").eval()
    for n, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(n))
    known = {}

    def generate(adapter, text, n_tokens):
        if (adapter, text, n_tokens) not in known:
            ids = torch.tensor([loaded.encode(text)])
            options = {"max_new_tokens": n_tokens, "do_sample": False, "output_scores": True}
            options |= {"return_dict_in_generate": True}
            if adapter is None:
                with model.disable_adapter():
                    out = model.generate(input_ids=ids, **options)
            else:
                model.set_adapter(str(adapter))
                out = model.generate(input_ids=ids, **options)
            best = [scores[0].topk(2).values for scores in out.scores]
            tokens = out.sequences[0, ids.shape[1] :].tolist()
            known[adapter, text, n_tokens] = tokens, [float(first - second) for first, second in best]
        return known[adapter, text, n_tokens]

    return generate


def new_batch(loaded, **limits):
    from agents.engine.worker.generation.batch import Batch, Limits

    return Batch(loaded, Limits(**{"cache_bytes": 64 << 20} | limits))


class Asked:
    """A request, and what came of it."""

    def __init__(self, batch, number, text="The import statement", adapter=None, **options):
        self.replies, self.is_cancelled, self.batch = [], False, batch
        self.request = Generate(id=number, text=text, adapter=adapter and str(adapter), **options)
        batch.start(self.request, self.replies.append, lambda: self.is_cancelled)

    @property
    def tokens(self):
        sequence = self.batch._sequences.get(self.request.id)
        return sequence.ids[sequence.n_prompt :] if sequence else None

    @property
    def text(self):
        return "".join(reply.text for reply in self.replies if isinstance(reply, Token))

    @property
    def finished(self):
        assert isinstance(self.replies[-1], Finished), self.replies[-1]
        return self.replies[-1]


def run(batch):
    while not batch.is_idle:
        batch.step()


def is_same(loaded, asked, tokens, gaps):
    """Is it PEFT's answer, up to the first tie?"""
    ties = [n for n, gap in enumerate(gaps) if gap < NEAR]
    n = ties[0] if ties else len(tokens)
    kept = [token for token in tokens[:n] if token not in loaded.end_tokens]
    expected = loaded.decode(kept)
    return asked.text == expected if n == len(tokens) else asked.text.startswith(expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers by an old name
@pytest.mark.parametrize("seed", range(4))
def test_mixed_adapters_that_join_and_leave_in_any_order_say_what_peft_says(loaded, folders, peft_says, seed):
    chance = random.Random(seed)
    batch = new_batch(loaded, max_rows=chance.choice((3, 8, 32)))
    plan = [(chance.choice((None, *range(8))), chance.choice(TEXTS), chance.choice((3, 24, 40))) for _ in range(16)]
    plan += [(n, chance.choice(TEXTS), 24) for n in range(8)]
    chance.shuffle(plan)
    asked = []
    while len(asked) < len(plan):
        for adapter, text, n_tokens in plan[len(asked) :][: chance.randint(1, 5)]:
            folder = None if adapter is None else folders[adapter]
            asked.append(Asked(batch, len(asked) + 1, text, folder, max_tokens=n_tokens))
        for _ in range(chance.randint(1, 30)):
            batch.step()
        asked[chance.randrange(len(asked))].is_cancelled = chance.random() < 0.3
    run(batch)
    n_compared = 0
    for (adapter, text, n_tokens), each in zip(plan, asked, strict=True):
        if each.finished.reason != "cancelled":
            assert is_same(loaded, each, *peft_says(adapter, text, n_tokens)), (adapter, text)
            n_compared += 1
    assert n_compared > 15


def test_a_running_stream_ends_on_the_version_it_began_with(loaded, make_adapter, peft_says, tmp_path):
    alone = new_batch(loaded)
    first = Asked(alone, 1, adapter=make_adapter(tmp_path / "one", seed=1), max_tokens=40)
    run(alone)
    second = Asked(alone, 2, adapter=make_adapter(tmp_path / "two", seed=2), max_tokens=40)
    run(alone)
    assert first.text != second.text
    batch, folder = new_batch(loaded), tmp_path / "swapped"
    (tmp_path / "one").rename(folder)
    old = Asked(batch, 1, adapter=folder, max_tokens=40)
    for _ in range(10):
        batch.step()
    for file in (tmp_path / "two").iterdir():
        file.replace(folder / file.name)
    new = Asked(batch, 2, adapter=folder, max_tokens=40)
    batch.step()
    versions = [each for each in loaded.adapters.resident(running(batch)) if each.folder == str(folder)]
    assert len(versions) == 2
    run(batch)
    assert (old.text, new.text) == (first.text, second.text)


def running(batch):
    return [sequence.adapter for sequence in batch.running()]


def test_an_old_version_leaves_memory_with_its_last_stream(tiny_model, make_adapter, tmp_path):
    import gc
    import weakref

    from agents.engine.worker.models import load_model

    mine = load_model(tiny_model)
    mine.adapters._max_bytes = 1  # one staged adapter at most
    batch = new_batch(mine)
    asked = Asked(batch, 1, adapter=make_adapter(tmp_path / "a"), max_tokens=10)
    batch.step()
    old = weakref.ref(batch.running()[0].adapter)
    mine.adapters.stage(make_adapter(tmp_path / "b", seed=1))
    gc.collect()
    assert old() is not None
    run(batch)
    gc.collect()
    assert old() is None and asked.finished.reason == "length"


def test_an_adapter_for_one_row_does_not_touch_its_neighbours(loaded, folders):
    def said(*adapters):
        batch = new_batch(loaded)
        asked = [Asked(batch, n, adapter=adapter, max_tokens=30) for n, adapter in enumerate(adapters, 1)]
        run(batch)
        return [each.text for each in asked]

    (base,) = said(None)
    assert said(None, folders[0], None, folders[7], None)[::2] == [base] * 3
    assert said(folders[0], folders[0], folders[7])[0] == said(folders[0])[0] != base


def test_a_cancelled_request_gives_its_memory_back_at_once(loaded):
    batch = new_batch(loaded)
    long = Asked(batch, 1, text=" the" * 500, max_tokens=400)
    for _ in range(5):
        batch.step()
    assert batch.cache_bytes > 500 * 1000
    long.is_cancelled = True
    batch.step()
    assert (batch.cache_bytes, batch.is_idle) == (0, True)
    assert long.finished.reason == "cancelled" and long.finished.n_prompt_tokens >= 500


def test_one_row_less_shrinks_the_rectangle(loaded):
    batch = new_batch(loaded)
    long = Asked(batch, 1, text=" the" * 500, max_tokens=400)
    short = Asked(batch, 2, text=" the", max_tokens=60)
    for _ in range(8):
        batch.step()
    before = batch.cache_bytes
    long.is_cancelled = True
    batch.step()
    assert batch.cache_bytes < before / 8
    run(batch)
    assert short.finished.n_tokens == 60


def test_the_next_turn_of_a_chat_reads_only_what_is_new(loaded, folders):
    batch = new_batch(loaded)
    first = Asked(batch, 1, text="The import statement finds a module and binds it. " * 3, max_tokens=20)
    run(batch)
    text = first.request.text + first.text + " And then"
    second = Asked(batch, 2, text=text, max_tokens=20)
    other = Asked(batch, 3, text=text, adapter=folders[0], max_tokens=20)
    run(batch)
    assert first.finished.n_cached_tokens == 0
    assert second.finished.n_cached_tokens >= first.finished.n_prompt_tokens
    assert other.finished.n_cached_tokens == 0, "what was computed without the adapter is of no use to it"
    fresh = new_batch(loaded)
    again = Asked(fresh, 1, text=text, max_tokens=20)
    run(fresh)
    assert again.text == second.text


def test_earlier_prompts_give_way_to_running_requests(loaded):
    token_bytes = new_batch(loaded)._cache.token_bytes
    batch = new_batch(loaded, cache_bytes=8 * 64 * token_bytes)
    for n in range(3):
        Asked(batch, n + 1, text=f"{n} different beginnings, and a good many words " * 4, max_tokens=4)
        run(batch)
    assert batch.cache_bytes > 0
    big = Asked(batch, 9, text=" the" * 400, max_tokens=40)
    while not batch.is_idle:
        batch.step()
        assert batch.cache_bytes <= 8 * 64 * token_bytes
    assert big.finished.n_tokens == 40


def test_rows_that_give_way_go_on_as_if_nothing_had_been(loaded, folders):
    token_bytes = new_batch(loaded)._cache.token_bytes
    texts = ["The class statement", "A list is", "x", "Exceptions are"]
    batch = new_batch(loaded, cache_bytes=5 * 64 * token_bytes)
    asked = [Asked(batch, n + 1, text=text, adapter=folders[n], max_tokens=150) for n, text in enumerate(texts)]
    n_gave_way = 0
    while not batch.is_idle:
        before = set(batch._placed)
        batch.step()
        n_gave_way += len((before & batch._sequences.keys()) - set(batch._placed))
    assert n_gave_way, "two began, and then one did not fit any more"
    for n, (text, each) in enumerate(zip(texts, asked, strict=True)):
        alone = new_batch(loaded)
        expected = Asked(alone, 1, text=text, adapter=folders[n], max_tokens=150)
        run(alone)
        assert each.text == expected.text


def test_what_can_never_fit_says_how_much_it_needs(loaded):
    from agents.errors import EngineFailed, TooLong

    batch = new_batch(loaded, cache_bytes=1 << 20)
    with pytest.raises(EngineFailed, match=r"need \d+ MB .* has 1 MB: .*engine.cache_gb"):
        Asked(batch, 1, text=" the" * 500, max_tokens=500)
    with pytest.raises(EngineFailed, match="max_tokens is 5000, tiny takes 1024"):
        Asked(batch, 2, max_tokens=5000)
    with pytest.raises(TooLong, match="shorten it"):
        Asked(batch, 3, text=" the" * 1100)
    with pytest.raises(EngineFailed, match="turns of a chat or a text"):
        Asked(batch, 4, text=None)
    assert batch.is_idle


def test_a_prompt_of_a_million_tokens_is_refused_without_reading_it_all(loaded, monkeypatch):
    from agents.errors import TooLong

    read = []
    encode = type(loaded).encode
    monkeypatch.setattr(type(loaded), "encode", lambda self, text: read.append(len(text)) or encode(self, text))
    with pytest.raises(TooLong, match=r"over .* tokens, tiny takes 1024: shorten it"):
        Asked(new_batch(loaded), 1, text="na " * 1_300_000)
    assert sum(read) < 100_000


def test_too_many_that_wait_are_told_so(loaded):
    from agents.engine.worker.generation.scheduler import MAX_WAITING
    from agents.errors import EngineBusy

    batch = new_batch(loaded)
    for n in range(MAX_WAITING):
        Asked(batch, n, max_tokens=1)
    with pytest.raises(EngineBusy, match="busy"):
        Asked(batch, MAX_WAITING, max_tokens=1)


SAMPLED = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 60}


def test_deterministic_the_same_seed_says_the_same_whatever_else_runs(loaded, folders):
    def said(company, seed=5):
        batch = new_batch(loaded, is_deterministic=True)
        asked = Asked(batch, 1, text="The import statement " * 9, adapter=folders[3], seed=seed, **SAMPLED)
        for n in range(company):
            batch.step()
            Asked(batch, n + 2, text=" the" * (40 * n + 1), adapter=folders[n % 8], max_tokens=20 + n)
        run(batch)
        return asked.text

    alone = said(0)
    assert said(3) == said(9) == alone
    assert said(0, seed=6) != alone


def test_deterministic_the_numbers_are_the_same_to_the_bit(loaded, folders):
    def logprobs(company, **limits):
        batch = new_batch(loaded, **limits)
        asked = Asked(batch, 1, text="An exception", adapter=folders[0], seed=5, n_logprobs=3, **SAMPLED)
        for n in range(company):
            Asked(batch, n + 2, text=" the" * (10 * n + 1), adapter=folders[n % 8], max_tokens=70)
        run(batch)
        return [reply.logprobs for reply in asked.replies if isinstance(reply, Token)]

    assert logprobs(0, is_deterministic=True) == logprobs(5, is_deterministic=True)
    assert logprobs(0) != logprobs(5), "several rows at once round otherwise: what the setting is for"


def test_without_it_the_same_seed_still_draws_by_itself_alone(loaded):
    def said(seeds):
        batch = new_batch(loaded)
        asked = [Asked(batch, n, seed=seed, **SAMPLED) for n, seed in enumerate(seeds)]
        run(batch)
        return [each.text for each in asked]

    one, other, again = said((7, 8, 7))
    assert one == again != other


def test_log_probabilities_come_with_the_tokens_they_are_of(loaded):
    batch = new_batch(loaded)
    asked = Asked(batch, 1, text="The import", n_logprobs=2, max_tokens=12)
    run(batch)
    logprobs = [each for reply in asked.replies if isinstance(reply, Token) for each in reply.logprobs]
    assert len(logprobs) == asked.finished.n_tokens
    assert b"".join(each.token for each in logprobs).decode() == asked.text
    for each in logprobs:
        assert each.top[0] == (each.token, each.logprob) and each.top[0][1] >= each.top[1][1]
        assert each.logprob <= 0.0


SCHEMA = """{"type": "object", "properties": {"name": {"type": "string", "maxLength": 8},
 "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 150}, "maxItems": 3},
 "kind": {"enum": ["cat", "dog"]}}, "required": ["name", "ages", "kind"], "additionalProperties": false}"""


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_of_a_json_schema_is_of_it_and_ends(loaded, folders, seed):
    import json

    batch = new_batch(loaded)
    asked = Asked(
        batch, 1, adapter=folders[0], json_schema=SCHEMA, max_tokens=200, temperature=1.0, seed=seed, n_logprobs=0
    )
    beside = Asked(batch, 2, max_tokens=20)
    run(batch)
    value = json.loads(asked.text)
    assert set(value) == {"name", "ages", "kind"} and value["kind"] in ("cat", "dog") and len(value["name"]) <= 8
    assert asked.finished.reason == "stop" and len(value["ages"]) <= 3
    assert beside.finished.n_tokens == 20


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "is not JSON"),
        ("3", "is not an object"),
        ('{"type": "nothing"}', "cannot be used"),
        ('{"type": "string", "pattern": "("}', "cannot be used"),
        ('{"not": {"type": "string"}}', "cannot be used: Unimplemented keys"),
        ('{"$ref": "http://127.0.0.1:1/x"}', "cannot be used: .*does not fetch"),
        ('{"items":' * 900 + "{}" + "}" * 900, "is not JSON"),
        ("[" * 60_000, "is not JSON"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(loaded, schema, said):
    from agents.errors import BadRequest

    batch = new_batch(loaded)
    with pytest.raises(BadRequest, match=f"the JSON schema {said}") as caught:
        Asked(batch, 1, json_schema=schema)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_schema_that_leads_nowhere_ends_its_own_request_alone(loaded):
    batch = new_batch(loaded)
    beside = Asked(batch, 1, max_tokens=20)
    endless = Asked(batch, 2, json_schema='{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}')
    run(batch)
    assert "cannot be followed" in endless.replies[-1].text and beside.finished.n_tokens == 20


def test_numbers_that_overflow_end_one_request_and_harm_no_other(loaded, make_adapter, tmp_path):
    batch = new_batch(loaded)
    wild = make_adapter(tmp_path / "wild", lora_alpha=1e6)
    import safetensors.torch

    file = wild / "adapter_model.safetensors"
    tensors = {name: tensor * 1e30 for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file)
    sound = Asked(batch, 1, max_tokens=30)
    broken = Asked(batch, 2, adapter=wild, max_tokens=30)
    run(batch)
    again = Asked(batch, 3, max_tokens=30)
    run(batch)
    assert isinstance(broken.replies[-1], Failed) and "not a number" in broken.replies[-1].text
    assert sound.text == again.text and sound.finished.n_tokens == 30


def test_stop_strings_and_end_tokens_end_an_answer(loaded):
    import dataclasses

    batch = new_batch(loaded)
    whole = Asked(batch, 1, max_tokens=30)
    run(batch)
    cut = Asked(batch, 2, max_tokens=30, stop=(whole.text[6:9],))
    run(batch)
    assert cut.text == whole.text[: whole.text.index(whole.text[6:9])] and cut.finished.reason == "stop"
    ends = loaded.encode(whole.text)[4]
    batch = new_batch(dataclasses.replace(loaded, end_tokens=frozenset({ends})))
    ended = Asked(batch, 3, max_tokens=30)
    run(batch)
    assert ended.finished.reason == "stop" and whole.text.startswith(ended.text) and ended.finished.n_tokens < 30


def test_a_step_that_fails_ends_all_and_the_next_request_is_served(loaded, folders):
    from agents.errors import EngineFailed

    batch = new_batch(loaded)
    asked = [Asked(batch, n, adapter=folders[n], max_tokens=30) for n in range(3)]
    for _ in range(4):
        batch.step()
    batch.fail(EngineFailed("the memory of the device is full"))
    assert all(isinstance(each.replies[-1], Failed) for each in asked)
    assert (batch.is_idle, batch.cache_bytes) == (True, 0)
    after = Asked(batch, 9, max_tokens=5)
    run(batch)
    assert after.finished.n_tokens == 5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_other_numbers_say_nearly_the_same(tiny_model, loaded, folders, dtype):
    import torch

    from agents.engine.worker.models import load_model

    other = load_model(tiny_model, dtype)
    batch = new_batch(other)
    asked = [Asked(batch, n, adapter=folder, max_tokens=8) for n, folder in enumerate((None, *folders[:3]))]
    run(batch)
    assert all(each.finished.n_tokens for each in asked)
    assert other.dtype == dtype and other.n_bytes < 0.6 * loaded.n_bytes
    ids = torch.tensor([loaded.encode("The import statement finds a module")])
    loaded.adapters.wear(None)
    other.adapters.wear(None)
    with torch.inference_mode():
        wide, narrow = (each.model(input_ids=ids).logits[0, -1].float().log_softmax(-1) for each in (loaded, other))
    assert float((wide.exp() * (wide - narrow)).sum()) < 0.01, "relative entropy in nats"
