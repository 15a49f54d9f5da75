import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from storage.catalog import MIGRATIONS, Catalog
from storage.catalog.database import APPLICATION_ID, Database
from storage.errors import Corrupt, StorageError, StoreFull, StoreLocked, UnknownVersion

FRUIT = "CREATE TABLE fruit (name TEXT PRIMARY KEY) STRICT;\nINSERT INTO fruit VALUES ('apple')"
SIZES = "ALTER TABLE fruit ADD COLUMN size INTEGER NOT NULL DEFAULT 1"


def fill(catalog: Catalog) -> None:
    for _ in range(1000):
        catalog.events.append("more", {"text": "x" * 4000}, 1.0)


def test_a_transaction_happens_whole_or_not_at_all(catalog: Catalog) -> None:
    with pytest.raises(KeyError), catalog.transaction():  # noqa: PT012  # the block is the transaction
        catalog.events.append("one", {}, 1.0)
        with catalog.transaction():
            catalog.events.append("two", {}, 1.0)
        raise KeyError
    assert catalog.events.last_id == 0
    with catalog.transaction():
        catalog.events.append("one", {}, 1.0)
        catalog.events.append("two", {}, 1.0)
    assert catalog.events.last_id == 2


def test_what_must_be_durable_by_itself_is_no_part_of_a_transaction(catalog: Catalog) -> None:
    with pytest.raises(StorageError, match="durable by itself"), catalog.transaction():
        catalog.sequences.next(b"purpose")
    assert catalog.sequences.next(b"purpose") == 1


def test_a_commit_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    schema = "CREATE TABLE links (id INTEGER PRIMARY KEY, up INTEGER REFERENCES links DEFERRABLE INITIALLY DEFERRED)"
    database = Database.open(tmp_path / "links.db", (schema,))
    with pytest.raises(StorageError, match="FOREIGN KEY"):
        database.write("INSERT INTO links VALUES (1, 99)")
    assert database.write("INSERT INTO links VALUES (2, 2)") == 1
    assert database.read("SELECT id FROM links") == [(2,)]
    database.close()


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    Database.open(path, (FRUIT, SIZES)).close()
    before = path.read_bytes()
    with pytest.raises(UnknownVersion, match=r"version 2, this Covey knows 1\. Upgrade"):
        Database.open(path, (FRUIT,))
    assert path.read_bytes() == before


def test_an_older_version_is_brought_up_to_date_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    Database.open(path, (FRUIT,)).close()
    database = Database.open(path, (FRUIT, SIZES))
    assert database.read("SELECT * FROM fruit") == [("apple", 1)]
    database.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    Database.open(path, (FRUIT,)).close()
    with pytest.raises(StorageError):
        Database.open(path, (FRUIT, SIZES + ";\nBROKEN"))
    database = Database.open(path, (FRUIT, SIZES))
    assert database.read("SELECT * FROM fruit") == [("apple", 1)]
    database.close()


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Corrupt, match="not a database of Covey"):
        Catalog.open(path)
    assert path.read_bytes() == before


def test_a_file_of_garbage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(Corrupt, match="damaged"):
        Catalog.open(path)


def test_a_damaged_catalog_is_told_with_a_way_out_that_works(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog.open(path)
    fill(catalog)
    catalog.close()
    with path.open("r+b") as file:
        file.write(b"\xa5" * 3000)
    with pytest.raises(Corrupt, match=r"move catalog\.db\* away and run covey up: .* trust, .* are lost"):
        Catalog.open(path)
    for file in tmp_path.glob("catalog.db*"):
        file.rename(tmp_path / f"old-{file.name}")
    catalog = Catalog.open(path)
    assert catalog.events.append("one", {}, 1.0).id == 1
    catalog.close()


def test_a_catalog_that_another_program_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.catalog.database._BUSY_TIMEOUT_S", 0.0)
    path = tmp_path / "catalog.db"
    catalog = Catalog.open(path)
    with catalog.transaction(), pytest.raises(StoreLocked):
        Catalog.open(path)
    catalog.close()


def test_a_full_disk_is_told_and_reads_go_on(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "catalog.db", MIGRATIONS)
    catalog = Catalog(database)
    catalog.events.append("before", {}, 1.0)
    pages = database.read("PRAGMA page_count")[0][0]
    database.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFull):
        fill(catalog)
    newest = catalog.events.last_id
    assert catalog.events.since(newest - 1)[0].id == newest
    database.read(f"PRAGMA max_page_count = {pages * 10}")
    assert catalog.events.append("after", {}, 1.0).id == newest + 1
    catalog.close()


def test_commits_survive_the_loss_of_the_process(tmp_path: Path) -> None:
    live, crashed = tmp_path / "live", tmp_path / "crashed"
    live.mkdir()
    catalog = Catalog.open(live / "catalog.db")
    catalog.events.append("one", {}, 1.0)
    shutil.copytree(live, crashed)
    recovered = Catalog.open(crashed / "catalog.db")
    assert [event.kind for event in recovered.events.since()] == ["one"]
    recovered.close()
    catalog.close()


def test_every_commit_is_synced_and_the_file_says_whose_it_is(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "catalog.db", MIGRATIONS)
    pragmas = {
        name: database.read(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "application_id")
    }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "application_id": APPLICATION_ID}
    database.close()


def test_threads_share_a_catalog(catalog: Catalog) -> None:
    numbers: list[int] = []

    def work() -> None:
        for _ in range(30):
            catalog.events.append("tick", {}, 1.0)
            numbers.append(catalog.sequences.next(b"purpose"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.id for event in catalog.events.since()] == list(range(1, 121))
    assert sorted(numbers) == list(range(1, 121))


def test_closing_twice_is_harmless_and_use_after_it_is_an_error(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.db")
    catalog.close()
    catalog.close()
    with pytest.raises(StorageError, match="closed"):
        catalog.events.append("late", {}, 1.0)
