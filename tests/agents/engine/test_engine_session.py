"""With torch: what the worker takes in, in which order it is done, and what is not done at all."""

import shutil

import pytest

from agents.engine.messages import Failed, Finished, Generate, Load, Loaded, Merge, Stage, Staged, Token
from agents.errors import AgentError

pytestmark = pytest.mark.engine


class Desk:
    """A session, and for each request its replies and whether it is cancelled."""

    def __init__(self):
        from agents.engine.worker.session import Session

        self.session = Session()
        self.replies = {}
        self.cancelled = set()

    def ask(self, *requests):
        for request in requests:
            self.replies[request.id] = []
            number = request.id
            self.session.begin(request, self.replies[number].append, lambda n=number: n in self.cancelled)

    def work(self):
        while self.session.is_busy:
            self.session.work(self.guard)

    def guard(self, action):
        try:
            action()
        except AgentError as error:
            return error
        return None

    def ends(self):
        return {number: type(replies[-1]) for number, replies in self.replies.items()}


@pytest.fixture
def desk(tiny_model):
    desk = Desk()
    desk.ask(Load(id=1, folder=str(tiny_model)))
    desk.work()
    return desk


def test_what_comes_right_behind_a_load_is_answered_by_the_new_model(desk, tiny_model, tmp_path, make_adapter):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    adapter = str(make_adapter(tmp_path / "adapter"))
    desk.ask(
        Load(id=2, folder=str(other)), Stage(id=3, adapter=adapter), Generate(id=4, text="The", max_tokens=3),
        Load(id=5, folder=str(tiny_model)), Generate(id=6, text="The", max_tokens=3, adapter=adapter),
    )  # fmt: skip
    assert desk.session.status().n_waiting == 4
    desk.work()
    assert desk.ends() == {1: Loaded, 2: Loaded, 3: Staged, 4: Finished, 5: Loaded, 6: Finished}
    assert all(sum(isinstance(reply, Token) for reply in desk.replies[number]) for number in (4, 6))


def test_a_request_that_is_cancelled_while_it_waits_is_never_carried_out(desk, tiny_model, tmp_path):
    desk.ask(Generate(id=2, text="The", max_tokens=5), Load(id=3, folder=str(tmp_path)))
    desk.ask(Generate(id=4, text="The", max_tokens=5), Load(id=5, folder=str(tmp_path)), Generate(id=6, text="x"))
    desk.cancelled |= {3, 4, 5}
    desk.session.work(desk.guard)
    assert desk.replies[4][-1].reason == "cancelled" and "cancelled" in desk.replies[3][-1].text
    assert not desk.replies[2] or not desk.replies[2][-1].is_final, "at once, not when their turn would have come"
    desk.work()
    assert desk.ends() == {1: Loaded, 2: Finished, 3: Failed, 4: Finished, 5: Failed, 6: Finished}
    assert desk.replies[6][-1].n_tokens > 0, "the model is the one that was there"


def test_a_job_that_is_cancelled_before_its_turn_is_not_done(desk, tiny_model, tmp_path, make_adapter):
    adapter = str(make_adapter(tmp_path / "adapter"))
    out = tmp_path / "merged"
    desk.ask(
        Stage(id=2, adapter=adapter),
        Merge(id=3, model=str(tiny_model), adapter=adapter, out=str(out), name="merged", adapter_name="a"),
    )
    desk.cancelled.add(3)
    desk.work()
    assert desk.ends() == {1: Loaded, 2: Staged, 3: Failed} and not out.exists()
