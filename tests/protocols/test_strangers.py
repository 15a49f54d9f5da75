"""Who waits in the handshake: each place has its share and its rate; and which of the dialled gives way."""

from protocols.strangers import IN_USE_S, MAX_BEGUN, MAX_PLACES, MAX_UNPROVEN, REFILL_S, Doorstep, let_go


def test_a_place_begins_handshakes_no_faster_than_its_rate_and_this_machine_as_it_likes() -> None:
    doorstep = Doorstep[int]()

    def n_let_in(place: str, now_s: float) -> int:
        n_in = 0
        for number in range(2 * MAX_BEGUN):
            n_in += doorstep.comes(number, place, now_s) != number
            doorstep.goes(number, place)
        return n_in

    assert n_let_in("192.0.2.0/24", 0.0) == MAX_BEGUN
    assert n_let_in("198.51.100.0/24", 0.0) == MAX_BEGUN
    assert n_let_in("192.0.2.0/24", REFILL_S / 2) == MAX_BEGUN / 2
    assert n_let_in("", 0.0) == 2 * MAX_BEGUN


def test_when_all_is_full_the_one_that_waits_longest_of_the_place_with_most_gives_way() -> None:
    doorstep = Doorstep[str]()
    n_of_each = {"a": MAX_BEGUN - 4, "b": MAX_BEGUN - 5, "c": MAX_UNPROVEN - 2 * MAX_BEGUN + 8}
    for place, n_waiting in n_of_each.items():
        assert all(doorstep.comes(f"{place}{number}", place, 0.0) is None for number in range(n_waiting))
    assert doorstep.comes("honest", "d", 0.0) is None
    assert doorstep.comes("another", "d", 0.0) == "a0"
    assert doorstep.comes("a third", "e", 0.0) == "a1"
    doorstep.goes("honest", "d")  # it has shaken hands
    assert doorstep.comes("a fourth", "d", 0.0) is None
    assert doorstep.comes("a fifth", "d", 0.0) == "b0"


def test_nothing_is_kept_of_who_is_gone_but_the_rates_of_few() -> None:
    doorstep = Doorstep[int]()
    for number in range(2 * MAX_PLACES):
        doorstep.comes(number, f"place {number}", 0.0)
        doorstep.goes(number, f"place {number}")
    assert not doorstep._waiting and len(doorstep._rates) == MAX_PLACES


def test_the_longest_unused_gives_way_first_then_whom_a_topic_needs_and_last_who_is_in_use() -> None:
    used_s = {"in use": 100.0, "of a topic": 10.0, "idle": 50.0, "idle for longer": 20.0}
    now_s = 100.0 + IN_USE_S - 1.0
    ranked = ["idle for longer", "idle", "of a topic", "in use"]
    for n_over in range(-1, len(ranked) + 1):
        assert let_go(used_s, {"of a topic"}, n_over, now_s) == ranked[: max(0, n_over)]
