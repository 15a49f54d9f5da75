"""The write lock: nobody waits longer than for those who came before him."""

import threading

from storage.packs.turns import Turns


def test_who_waits_comes_before_who_takes_it_again() -> None:
    turns, order = Turns(), []

    def work(name: str) -> None:
        with turns:
            order.append(name)

    threads = []
    with turns:
        for number, name in enumerate(["first", "second"], start=1):
            threads.append(threading.Thread(target=work, args=(name,)))
            threads[-1].start()
            while turns.n_waiting < number:
                pass
    work("again")
    for thread in threads:
        thread.join()
    assert order == ["first", "second", "again"]


def test_one_thread_at_a_time_is_inside() -> None:
    turns, inside, seen = Turns(), [0], []

    def work() -> None:
        for _ in range(300):
            with turns:
                inside[0] += 1
                seen.append(inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 1200
    assert turns.n_waiting == 0


def test_an_error_inside_lets_the_next_one_in() -> None:
    turns = Turns()
    try:
        with turns:
            raise KeyError
    except KeyError:
        pass
    with turns:
        assert turns.n_waiting == 0
