import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.catalog import Catalog
from storage.catalog.sequences import N_RESERVED

COUNT_FOREVER = """
import sys
from pathlib import Path
from storage.catalog import Catalog
catalog = Catalog.open(Path(sys.argv[1]))
while True:
    print(catalog.sequences.next(b"purpose"), flush=True)
"""


def test_numbers_begin_at_one_and_have_no_gaps_while_the_node_runs(catalog: Catalog) -> None:
    assert [catalog.sequences.next(b"a") for _ in range(3 * N_RESERVED)] == list(range(1, 3 * N_RESERVED + 1))
    assert catalog.sequences.next(b"b") == 1


@settings(max_examples=25)
@given(runs=st.lists(st.integers(0, 2 * N_RESERVED), max_size=5))
def test_no_number_comes_again_whenever_the_process_is_lost(
    tmp_path_factory: pytest.TempPathFactory, runs: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    live = folder / "0"
    live.mkdir()
    given_out: list[int] = []
    for index, n_numbers in enumerate(runs):
        catalog = Catalog.open(live / "catalog.db")
        given_out += [catalog.sequences.next(b"purpose") for _ in range(n_numbers)]
        crashed = folder / str(index + 1)
        shutil.copytree(live, crashed)  # what the disk holds at the moment of a crash
        catalog.close()
        live = crashed
    assert given_out == sorted(set(given_out))


def test_no_number_comes_again_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    last = 0
    for n_lines in (1, N_RESERVED, 150):
        with subprocess.Popen(
            [sys.executable, "-c", COUNT_FOREVER, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            numbers = [int(process.stdout.readline()) for _ in range(n_lines)]
            process.send_signal(signal.SIGKILL)
            numbers += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        assert numbers[0] > last
        assert numbers == sorted(set(numbers))
        last = numbers[-1]


def test_the_clock_lifts_numbers_that_an_old_backup_would_repeat(tmp_path: Path) -> None:
    path, backup = tmp_path / "catalog.db", tmp_path / "backup.db"
    catalog = Catalog.open(path)
    catalog.close()
    shutil.copy(path, backup)
    catalog = Catalog.open(path)
    given_out = [catalog.sequences.next(b"purpose", unix_s=1000.0) for _ in range(9)]
    assert given_out[0] == 1_000_001
    catalog.close()
    restored = Catalog.open(backup)
    assert restored.sequences.next(b"purpose", unix_s=1001.0) > given_out[-1]
    restored.close()


def test_a_clock_that_runs_back_does_not_lower_the_numbers(catalog: Catalog) -> None:
    first = catalog.sequences.next(b"purpose", unix_s=1000.0)
    numbers = [catalog.sequences.next(b"purpose", unix_s=1.0) for _ in range(2 * N_RESERVED)]
    assert numbers == list(range(first + 1, first + 1 + 2 * N_RESERVED))
