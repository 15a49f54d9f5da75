"""The scheduler alone: a world that computes nothing plays the model."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.engine.worker.generation.scheduler import (
    ALONE_PREFILL_TOKENS,
    BLOCK_TOKENS,
    JOINT_STEPS,
    JOINT_TOKENS,
    SHARED_PREFILL_TOKENS,
    NoRoom,
    QueueFull,
    Scheduler,
    Step,
    shape,
)

requests = st.tuples(st.integers(1, 700), st.integers(1, 200), st.integers(0, 20))  # prompt, answer, joins at turn
worlds = st.fixed_dictionaries(
    {
        "plan": st.lists(requests, min_size=1, max_size=12),
        "budget": st.integers(1, 3000),
        "max_rows": st.integers(1, 6),
        "is_pinned": st.booleans(),
        "is_joint": st.booleans(),
        "cancelled": st.dictionaries(st.integers(0, 11), st.integers(0, 60), max_size=4),
    }
)


class World:
    """Carries out what the scheduler says, and checks it at each turn."""

    def __init__(self, plan, budget, max_rows, is_pinned, cancelled, is_joint=False):
        self.scheduler = Scheduler(budget, max_rows=max_rows, is_pinned=is_pinned, is_joint=is_joint)
        self.is_joint = is_joint and not is_pinned
        self.plan, self.budget, self.is_pinned, self.cancelled = plan, budget, is_pinned, cancelled
        self.n_tokens: dict[int, int] = {}  # of each request in hand
        self.n_done: Counter[int] = Counter()
        self.ended: dict[int, str] = {}
        self.joined: list[int] = []
        self.ages: list[int] = []
        self.n_evicted = 0
        self.steps: list[tuple[tuple[int, ...], Step]] = []

    def run(self):
        turn = 0
        while not (turn > 20 and self.scheduler.is_idle):
            self.arrive(turn)
            for key, at in self.cancelled.items():
                if at == turn and key in self.n_tokens:
                    self.end(key, "cancelled")
            self.turn()
            turn += 1
            assert turn < 20_000, "somebody never comes to an end"

    def arrive(self, turn):
        for key, (n_prompt, n_answer, at) in enumerate(self.plan):
            if at == turn:
                try:
                    self.scheduler.submit(key, n_prompt, n_prompt + n_answer)
                    self.n_tokens[key] = n_prompt
                except NoRoom:
                    assert n_prompt + n_answer > self.budget - BLOCK_TOKENS
                    self.ended[key] = "refused"

    def turn(self):
        before = self.scheduler.rows
        admitted = self.scheduler.admit()
        rows = self.scheduler.rows
        evicted = set(before) - set(rows)
        kept = [key for key in self.ages if key not in evicted]
        assert kept == self.ages[: len(kept)] and (kept or not evicted), "the youngest give way, never the oldest"
        self.ages = kept + admitted
        for key in evicted:
            self.n_done[key] = 0
            self.n_evicted += 1
        self.joined += [key for key in admitted if key not in self.joined]
        assert set(rows) == (set(before) - evicted) | set(admitted)
        assert len(rows) * self.scheduler.columns <= max(self.budget, 0) or not rows
        self.check_order(rows)
        step = self.scheduler.step()
        assert step is not None or not rows
        if step:
            self.carry_out(rows, step)

    def check_order(self, rows):
        is_ready = [self.n_tokens[key] - self.n_done[key] == 1 for key in rows]
        assert is_ready == sorted(is_ready, reverse=True), "those that are ready stand in front"

    def carry_out(self, rows, step):
        keys = rows[step.first : step.first + len(step.widths)]
        assert len(keys) == len(step.widths) > 0
        if self.is_pinned:
            assert len(keys) == 1
        self.steps.append((keys, step))
        if self.is_joint:
            answering = [key for key in rows if self.n_tokens[key] - self.n_done[key] == 1]
            assert set(answering) <= set(keys), "no step leaves out a running answer"
            assert sum(step.widths) <= (max(JOINT_TOKENS[-1], len(rows) + 1) if answering else ALONE_PREFILL_TOKENS)
        ends = [keys[at] for at in self.scheduler.ends(step)]
        for key, width in zip(keys, step.widths, strict=True):
            assert 1 <= width <= self.n_tokens[key] - self.n_done[key]
            self.n_done[key] += width
        ready = self.scheduler.computed(step)
        assert ready == ends == [key for key in keys if self.n_done[key] == self.n_tokens[key]]
        for key in ready:
            n_prompt, n_answer, _ = self.plan[key]
            if self.n_tokens[key] + 1 == n_prompt + n_answer:
                self.end(key, "whole")
            else:
                self.n_tokens[key] += 1
                self.scheduler.chosen(key)

    def end(self, key, how):
        self.scheduler.drop(key)
        del self.n_tokens[key]
        self.ended[key] = how
        self.ages = [each for each in self.ages if each != key]


@given(worlds)
def test_everybody_comes_to_an_end_within_the_budget_and_in_order(world):
    played = World(**world)
    played.run()
    assert set(played.ended) == set(range(len(world["plan"])))
    whole = [key for key, how in played.ended.items() if how == "whole"]
    if not world["cancelled"]:
        by_arrival = sorted(played.joined, key=lambda key: (world["plan"][key][2], key))
        assert played.joined == by_arrival, "first come, first served"
        assert len(whole) == len(played.joined)


@given(worlds)
def test_pinned_nobody_gives_up_a_row_and_each_computes_alone_the_same_way(world):
    played = World(**world | {"is_pinned": True, "cancelled": {}})
    played.run()
    assert played.n_evicted == 0
    for key, (n_prompt, n_answer, _) in enumerate(world["plan"]):
        if played.ended[key] != "refused":
            mine = [step.widths[0] for keys, step in played.steps if keys == (key,)]
            alone = World([(n_prompt, n_answer, 0)], world["budget"], 1, True, {})
            alone.run()
            assert mine == [step.widths[0] for _, step in alone.steps]


@given(worlds)
def test_a_token_is_computed_once_unless_its_row_was_given_up(world):
    played = World(**world | {"cancelled": {}})
    played.run()
    n_computed = sum(sum(step.widths) for _, step in played.steps)
    n_needed = sum(
        n_prompt + n_answer - 1
        for key, (n_prompt, n_answer, _) in enumerate(world["plan"])
        if played.ended[key] == "whole"
    )
    assert n_computed == n_needed if not played.n_evicted else n_computed > n_needed


def test_the_youngest_gives_up_its_row_and_the_oldest_never():
    scheduler = Scheduler(4 * BLOCK_TOKENS, max_rows=4)
    for key in (1, 2):
        scheduler.submit(key, 10, 3 * BLOCK_TOKENS)
    assert scheduler.admit() == [1, 2]
    evicted = []
    while 1 in scheduler.rows:
        step = scheduler.step()
        for key in scheduler.computed(step):
            if key == 1 and step.first == 0 and scheduler.n_done(1) == 3 * BLOCK_TOKENS - 1:
                scheduler.drop(1)
            else:
                scheduler.chosen(key)
        before = scheduler.rows
        scheduler.admit()
        evicted += set(before) - set(scheduler.rows)
    assert evicted == [2]
    assert scheduler.rows == (2,)


def test_who_can_never_fit_is_refused_and_so_is_one_too_many():
    scheduler = Scheduler(BLOCK_TOKENS, max_waiting=1)
    with pytest.raises(NoRoom, match="65 tokens"):
        scheduler.submit(1, 5, BLOCK_TOKENS + 1)
    scheduler.submit(2, 5, BLOCK_TOKENS)
    with pytest.raises(QueueFull):
        scheduler.submit(3, 5, 10)
    scheduler.drop(2)
    assert scheduler.is_idle


def test_long_prompts_come_in_parts_between_the_steps_of_running_answers():
    scheduler = Scheduler(1 << 20)
    scheduler.submit(1, 3, 1000)
    scheduler.admit()
    for key in scheduler.computed(scheduler.step()):
        scheduler.chosen(key)
    scheduler.submit(2, 5000, 6000)
    widths = []
    for _ in range(8):
        scheduler.admit()
        step = scheduler.step()
        widths.append(step.widths)
        for key in scheduler.computed(step):
            scheduler.chosen(key)
    assert widths == [(1,), (SHARED_PREFILL_TOKENS,)] * 4
    scheduler.drop(1)
    scheduler.admit()
    assert scheduler.step().widths == (ALONE_PREFILL_TOKENS,)


def test_in_joint_steps_a_prompt_is_read_beside_running_answers_in_parts_as_small_as_serve():
    scheduler = Scheduler(1 << 20, is_joint=True)
    for key in (1, 2):
        scheduler.submit(key, 3, 1000)
    scheduler.admit()
    assert scheduler.step() == Step(0, (3, 3)), "prompts go together when nobody answers"

    def go(step):
        for key in scheduler.computed(step):
            scheduler.chosen(key)
        scheduler.admit()
        return scheduler.step()

    step = go(scheduler.step())
    assert step == Step(0, (1, 1))
    scheduler.submit(3, 40, 200)
    few, some, many = JOINT_TOKENS
    assert go(step) == Step(0, (1, 1, few - 2))
    scheduler.submit(4, 100, 200)
    assert go(scheduler.step()) == Step(0, (1, 1, 27, some - 2 - 27)), "what is left of one goes with the next"
    scheduler.submit(5, some * JOINT_STEPS, 5000)
    assert sum(go(scheduler.step()).widths) == many


def test_short_prompts_are_read_together_and_not_padded_to_long_ones():
    scheduler = Scheduler(1 << 20)
    for key, n_prompt in enumerate((10, 12, 11, 300)):
        scheduler.submit(key, n_prompt, 400)
    scheduler.admit()
    assert scheduler.step() == Step(0, (10, 12, 11))


def test_what_is_reused_is_not_computed_again():
    scheduler = Scheduler(1 << 20)
    scheduler.submit(1, 100, 200)
    assert scheduler.admit() == [1]
    scheduler.reuse(1, 90)
    assert scheduler.step() == Step(0, (10,))


@given(
    st.tuples(st.integers(0, 40), st.integers(0, 40).map(lambda n: n * BLOCK_TOKENS)),
    st.integers(0, 40),
    st.integers(1, 40).map(lambda n: n * BLOCK_TOKENS),
    st.integers(0, 100_000),
)
def test_the_rectangle_holds_what_is_needed_and_little_more(now, n_rows, n_columns, slack):
    budget = n_rows * n_columns + slack
    rows, columns = shape(now, n_rows, n_columns, budget)
    assert not n_rows or (rows >= n_rows and columns >= n_columns)
    assert rows * columns <= budget
    assert rows * columns < 4 * max(2 * n_rows * n_columns, 1)
    assert shape((rows, columns), n_rows, n_columns, budget) == (rows, columns)
