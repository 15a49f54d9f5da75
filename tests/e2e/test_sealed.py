"""Sealed content between two daemons: who is named can read it, in ranges too; who is not cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def test_sealed_content_opens_where_it_was_sealed_to_and_nowhere_else(new_node, tmp_path):
    ann, bo, eve = (new_node(name).up() for name in ("ann", "bo", "eve"))
    for other in (bo, eve):
        ann.ok("peer", "add", other.address, "--name", other.name)
    content = os.urandom(3_000_000)
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "plan").write_bytes(content)
    made = ann.ask("seal", str(tmp_path / "plans"), "--to", "bo", "--visibility", "public")
    plan = f"{made['cid']}/plan"
    part = subprocess.run(
        [sys.executable, "-m", "daemon.cli.main", "unseal", plan, "--out", "-", "--offset", "2000000", "--length", "5"],
        env=bo.env, capture_output=True, check=True, timeout=60, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert part.stdout == content[2_000_000:2_000_005]
    held_bytes = sum(pack.stat().st_size for pack in (bo.home / "packs").iterdir())
    assert held_bytes < 2_200_000  # a range costs the blocks that hold it, and the table's
    bo.ok("unseal", made["cid"], "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "plan").read_bytes() == content
    refused = eve.covey("unseal", made["cid"], "--out", str(tmp_path / "none"))
    assert refused.returncode == 4 and "is not sealed to this node" in refused.stderr
    assert not (tmp_path / "none").exists()
    newer = ann.ask("sealed", "revoke", made["cid"], "bo", "--rekey")
    assert "keeps what he could read" in newer["note"]
    assert bo.covey("sealed", "ls", newer["cid"]).returncode == 4  # it is public, and sealed to ann alone
