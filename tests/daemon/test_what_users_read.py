"""What people read when a storage command goes wrong: one line of what happened, one of what to do next."""

import errno
import os
from types import SimpleNamespace

import pytest

from daemon.api.faults import EXIT_FAILED, Fault, fault_of
from daemon.cli import process


@pytest.fixture
async def here(node_here, tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.txt").write_text("A")
    (folder / "link").symlink_to("a.txt")
    node_here.folder = (await node_here.post("content/add", path=str(folder))).lines[-1]["cid"]
    node_here.sealed = (await node_here.post("sealed/seal", path=str(folder))).lines[-1]["cid"]

    async def error(name, /, **params):
        answer = await node_here.post(name, **params)
        return (answer.lines[-1])["error"]

    node_here.error = error
    return node_here


async def test_a_folder_is_not_printed_and_a_file_not_listed(here):
    error = await here.error("content/cat", reference=here.folder)
    assert error["code"] == "not_a_file" and error["text"] == f"{here.folder} is a folder, not a file"
    assert "`covey ls CID`" in error["hint"] and "peer" not in error["hint"]
    error = await here.error("content/ls", reference=f"{here.folder}/a.txt")
    assert (error["code"], "`covey cat CID`" in error["hint"]) == ("not_a_folder", True)
    error = await here.error("content/cat", reference=f"{here.folder}/link")
    assert error["code"] == "not_a_file" and "is a symlink to 'a.txt', not a file" in error["text"]


async def test_a_name_that_a_folder_lacks_is_no_missing_block(here):
    for name in ("content/cat", "content/ls", "content/get"):
        error = await here.error(name, reference=f"{here.folder}/nope")
        assert error["code"] == "no_such_name" and error["text"].startswith("there is no 'nope' in the folder")
        assert "`covey ls CID`" in error["hint"]
    error = await here.error("content/cat", reference=f"{here.folder}/a.txt/x")
    assert (error["code"], "that is a file" in error["text"]) == ("no_such_name", True)


async def test_sealed_content_read_as_files_names_the_command_that_opens_it(here):
    for name in ("content/cat", "content/ls"):
        error = await here.error(name, reference=here.sealed)
        assert error["code"] == "not_unixfs" and "covey unseal CID" in error["hint"]
        assert "covey dag get CID" in error["hint"]
    error = await here.error("sealed/cat", reference=here.sealed)
    assert (error["code"], error["text"].split(".")[0]) == ("not_a_file", "the sealed content is a folder, not a file")
    error = await here.error("sealed/cat", reference=f"{here.sealed}/nope")
    assert (error["code"], "covey sealed ls" in error["text"]) == ("no_such_name", True)


async def test_a_pipe_in_a_folder_is_named_with_what_to_do(here, tmp_path):
    os.mkfifo(tmp_path / "f" / "pipe")
    for name in ("content/add", "sealed/seal"):
        error = await here.error(name, path=str(tmp_path / "f"))
        assert error["code"] == "special_file" and f"{tmp_path}/f/pipe is a pipe" in error["text"]
        assert "Move it away" in error["hint"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so_and_how_to_get_room(number):
    fault = fault_of(OSError(number, os.strerror(number), "/data/model"))
    assert (fault.code, fault.status, fault.exit_code) == ("disk_full", 507, EXIT_FAILED)
    assert fault.text == f"/data/model: {os.strerror(number)}"
    assert "covey repo gc" in fault.hint and "covey repo stat" in fault.hint


@pytest.mark.parametrize(("n_free", "said"), [(0, "is full: free some space"), (1, "it gave no reason")])
def test_a_daemon_that_could_not_even_write_why_it_ended_is_told_of(tmp_path, monkeypatch, n_free, said):
    (tmp_path / "start.err").touch()
    monkeypatch.setattr(process.os, "statvfs", lambda path: SimpleNamespace(f_bavail=n_free))
    assert said in process._complaint(tmp_path / "start.err")


def test_what_stands_in_the_way_is_a_failure_and_no_refusal():
    assert {Fault(code, "").exit_code for code in ("target_exists", "unfit", "already_running")} == {EXIT_FAILED}
