"""With torch, without a model: which token is chosen from given logits."""

import math
from collections import Counter

import pytest

from agents.engine.messages import Generate
from agents.errors import EngineFailed

pytestmark = pytest.mark.engine
torch = pytest.importorskip("torch")

LOGITS = [3.0, 2.0, 1.0, 0.0, -1.0]


def sampler(prompt=(), n=5, matcher=None, **options):
    from agents.engine.worker.generation.sampling import Sampler

    return Sampler(Generate(text="x", **options), prompt, n, matcher)


def drawn(n_draws=400, logits=LOGITS, **options):
    chooser = sampler(n=len(logits), **{"temperature": 1.0} | options)
    return Counter(chooser.choose(torch.tensor(logits)).token for _ in range(n_draws))


def test_greedy_takes_the_likeliest():
    assert sampler().choose(torch.tensor(LOGITS)).token == 0
    assert sampler().is_plain
    assert not sampler(repetition_penalty=1.1).is_plain


def test_draws_follow_the_chances():
    counts = drawn(4000)
    chances = torch.softmax(torch.tensor(LOGITS), -1).tolist()
    for token, chance in enumerate(chances):
        assert abs(counts[token] / 4000 - chance) < 4 * math.sqrt(chance / 4000)


def test_the_seed_alone_decides():
    assert drawn(seed=3) == drawn(seed=3) != drawn(seed=4)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.000001}, {0}),
        ({"min_p": 0.3}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "min_p": 0.3}, {0, 1}),
        ({"top_k": 2, "top_p": 0.99}, {0, 1}),
        ({"temperature": 0.01}, {0}),
    ],
)
def test_options_leave_out_the_unlikely_and_keep_the_rest(options, allowed):
    assert set(drawn(**options)) == allowed


@pytest.mark.parametrize("options", [{"top_p": 0.999}, {"min_p": 1e-6}, {"top_p": 0.9, "min_p": 1e-4}])
def test_a_flat_distribution_is_cut_where_a_full_sort_would_cut_it(options):
    logits = torch.linspace(0.0, -3.0, 5000)
    chances = torch.softmax(logits.double(), -1)
    is_kept = chances.cumsum(-1) - chances < options.get("top_p", 1.0)
    is_kept &= chances >= options.get("min_p", 0.0) * chances[0]
    seen = drawn(2000, logits=logits.tolist(), **options)
    assert max(seen) < int(is_kept.sum())
    assert max(seen) > int(is_kept.sum()) * 0.95, "more than the first candidates take part"


def test_repetition_counts_the_prompt_presence_and_frequency_only_the_answer():
    logits = torch.tensor([1.0, 0.9, -5.0])
    assert sampler(prompt=[0], n=3, repetition_penalty=1.5).choose(logits).token == 1
    assert sampler(prompt=[0], n=3, presence_penalty=2.0).choose(logits).token == 0
    chooser = sampler(n=3, presence_penalty=0.2)
    assert [chooser.choose(logits).token for _ in range(4)] == [0, 1, 0, 0]
    chooser = sampler(n=3, frequency_penalty=0.2)
    assert [chooser.choose(logits).token for _ in range(4)] == [0, 1, 0, 1]
    negative = torch.tensor([-1.0, -1.2, -5.0])
    assert sampler(prompt=[0], n=3, repetition_penalty=1.5).choose(negative).token == 1


def test_log_probabilities_are_those_before_any_option():
    choice = sampler(n_logprobs=2, temperature=1.0, top_k=1, repetition_penalty=2.0).choose(torch.tensor(LOGITS))
    chances = torch.log_softmax(torch.tensor(LOGITS), -1)
    assert choice.logprob == pytest.approx(float(chances[0]))
    assert [token for token, _ in choice.top] == [0, 1]
    assert sampler(n_logprobs=0).choose(torch.tensor(LOGITS)).top == ()


def test_rows_are_served_together_and_a_broken_one_is_told_apart():
    from agents.engine.worker.generation.sampling import Choice, choose_all

    rows = torch.tensor([LOGITS, [math.nan] * 5, LOGITS[::-1]])
    first, broken, last = choose_all(rows, [sampler(), sampler(), sampler(n_logprobs=None)])
    assert (first, last) == (Choice(0), Choice(4)) and isinstance(broken, EngineFailed)
    assert isinstance(choose_all(torch.tensor([[1.0, math.inf]]), [sampler(n=2)])[0], EngineFailed)
