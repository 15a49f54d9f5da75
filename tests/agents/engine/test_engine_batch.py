"""With torch: many requests at once on one model, and PEFT, one request at a time, as the oracle."""

import random

import pytest

from agents.engine.messages import Finished, Generate, Token

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
