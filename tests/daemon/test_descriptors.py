"""A node has room for its connections and its files at once."""

import resource

import pytest

from daemon.descriptors import ENOUGH_FILES, allow_files


def test_a_process_that_may_open_few_files_asks_for_more() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < ENOUGH_FILES:
        pytest.skip("this system allows few files to anybody")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (ENOUGH_FILES, before[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (ENOUGH_FILES + 1, before[1]))
        allow_files()  # who has more keeps it
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (ENOUGH_FILES + 1, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("most", "given"), [(1000, 1000), (resource.RLIM_INFINITY, ENOUGH_FILES)])
def test_it_asks_for_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch, most: int, given: int) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, most))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: told.append(limits))
    allow_files()
    assert told == [(given, most)]
