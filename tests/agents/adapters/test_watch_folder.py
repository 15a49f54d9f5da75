from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from agents.adapters.watch import LONGEST_RETRY_S, MAX_DEPTH, Settling, run_watcher, scan
from agents.errors import WrongBase


async def at_once(function, *args):
    await trio.lowlevel.checkpoint()
    return function(*args)


WHOLE = (("adapter_config.json", 10, 1), ("adapter_model.safetensors", 100, 1))
FOLDER = Path("/training/best_model_adapter")


def test_a_folder_is_examined_once_when_it_has_come_to_rest():
    core = Settling(settle_s=2.0)
    assert core.scanned({FOLDER: WHOLE}, 0.0) == []
    assert core.scanned({FOLDER: WHOLE}, 1.9) == []
    assert core.scanned({FOLDER: WHOLE}, 2.0) == [FOLDER]
    assert core.scanned({FOLDER: WHOLE}, 9.0) == []


def test_a_folder_that_still_grows_is_left_alone():
    core = Settling(settle_s=2.0)
    for second in range(20):
        growing = (WHOLE[0], ("adapter_model.safetensors", second, second))
        assert core.scanned({FOLDER: growing}, float(second)) == []


def test_a_folder_without_weights_waits_for_them():
    core = Settling(settle_s=1.0)
    assert core.scanned({FOLDER: WHOLE[:1]}, 0.0) == []
    assert core.scanned({FOLDER: WHOLE[:1]}, 5.0) == []
    assert core.scanned({FOLDER: WHOLE}, 6.0) == []
    assert core.scanned({FOLDER: WHOLE}, 7.0) == [FOLDER]


def test_a_folder_that_changes_is_examined_again():
    core = Settling(settle_s=1.0)
    changed = (WHOLE[0], ("adapter_model.safetensors", 100, 2))
    core.scanned({FOLDER: WHOLE}, 0.0)
    assert core.scanned({FOLDER: WHOLE}, 1.0) == [FOLDER]
    assert core.scanned({FOLDER: changed}, 2.0) == []
    assert core.scanned({FOLDER: changed}, 3.0) == [FOLDER]


def test_the_same_content_is_news_only_once():
    core = Settling()
    assert core.is_news(b"a")
    assert not core.is_news(b"a")
    assert core.is_news(b"b")


def test_a_postponed_folder_is_examined_again_after_waits_that_double_and_told_of_once():
    core = Settling(settle_s=0.0)
    core.scanned({FOLDER: WHOLE}, 0.0)
    now_s, waits, told = 0.0, [], []
    for second in range(400):
        if core.scanned({FOLDER: WHOLE}, float(second)):
            assert core.is_news(b"digest")
            told.append(core.postpone(FOLDER, b"digest", float(second)))
            waits.append(second - now_s)
            now_s = float(second)
    assert waits[1:6] == [5.0, 10.0, 20.0, 40.0, 60.0] and max(waits) == LONGEST_RETRY_S
    assert told[0] and not any(told[1:])
    changed = (WHOLE[0], ("adapter_model.safetensors", 100, 2))
    core.scanned({FOLDER: changed}, 400.0)
    assert core.scanned({FOLDER: changed}, 400.0) == [FOLDER]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 3)), max_size=40))
def test_no_state_is_examined_twice_in_a_row_nor_before_it_settled(steps):
    core, now_s, since_s, last, examined = Settling(settle_s=2.0), 0.0, 0.0, None, None
    for size, wait_s in steps:
        now_s += wait_s
        signature = (WHOLE[0], ("adapter_model.safetensors", size, 1))
        if signature != last:
            last, since_s = signature, now_s
        ripe = core.scanned({FOLDER: signature}, now_s)
        if ripe:
            assert now_s - since_s >= 2.0
            assert examined != signature
            examined = signature


def test_the_scan_finds_adapters_below_the_root_and_follows_no_links(tmp_path, peft_folder):
    deep = peft_folder("checkpoints/checkpoint_epoch_1_adapter")
    peft_folder("/".join("d" * (MAX_DEPTH + 1)))
    (tmp_path / "link").symlink_to(deep)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(scan(tmp_path)) == [deep]
    assert scan(tmp_path / "nowhere") == {}


async def test_the_watcher_reports_new_adapters_once_and_tells_why_one_is_skipped(tmp_path, peft_folder):
    told, hears = trio.open_memory_channel[str](10)

    async def report(folder: Path) -> None:
        await told.send(folder.name)

    def emit(kind: str, **fields: str) -> None:
        told.send_nowait(f"{kind} {Path(fields['folder']).name} {fields['code']}")

    peft_folder("checkpoints/best_model_adapter")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_watcher(tmp_path, report, emit, poll_s=0.01, settle_s=0.03))
        with trio.fail_after(10):
            assert await hears.receive() == "best_model_adapter"
            peft_folder("checkpoints/a_copy")  # the same content
            peft_folder("checkpoints/broken", files={"evil.py": b""})
            assert await hears.receive() == "adapter_skipped broken bad_adapter"
            peft_folder("checkpoints/best_model_adapter", fill=7)
            assert await hears.receive() == "best_model_adapter"
        nursery.cancel_scope.cancel()


async def test_an_adapter_whose_model_is_not_here_is_published_when_the_model_comes(
    autojump_clock, tmp_path, peft_folder, monkeypatch
):
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)  # virtual time must not pass while a thread works
    models, told = [], []

    async def publish(folder: Path) -> None:
        if not models:
            raise WrongBase("its model is not here")
        told.append(folder.name)

    def emit(kind: str, **fields: str) -> None:
        told.append(fields["code"])

    peft_folder("best_model_adapter")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_watcher, tmp_path, publish, emit)
        await trio.sleep(600)
        assert told == ["wrong_base"]
        models.append("tiny")
        await trio.sleep(600)
        assert told == ["wrong_base", "best_model_adapter"]
        nursery.cancel_scope.cancel()
