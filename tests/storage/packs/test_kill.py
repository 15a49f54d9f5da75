"""kill -9 at arbitrary moments: whatever the writer said was stored is there afterwards."""

import random
import subprocess
import sys
from pathlib import Path

from storage.blockstore import MadeBlock
from storage.cid import Cid
from storage.packs import PackBlockstore

N_KILLS = 8

WRITER = """
import sys
from pathlib import Path
from storage.blockstore import MadeBlock
from storage.packs import PackBlockstore

store = PackBlockstore(Path(sys.argv[1]), max_pack_bytes=200_000)
for number in range(int(sys.argv[2]), 1 << 30):
    name = b"%d " % number
    store.put_many([MadeBlock.of(b"long" + name * (number % 700)), MadeBlock.of(name)])
    store.put_note("last", name)
    if number % 3 == 0:
        store.sweep([MadeBlock.of(name).cid], store.begin_sweep())
    print(number, flush=True)
"""


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    chance = random.Random(1)
    first = 0
    for _ in range(N_KILLS):
        argv = [sys.executable, "-c", WRITER, str(tmp_path), str(first)]
        writer = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(chance.randrange(1, 120)):
            last = int(writer.stdout.readline())
        writer.kill()
        rest = writer.stdout.read().split("\n")[:-1]  # what it still said before it died
        writer.wait()
        writer.stdout.close()
        last = int(rest[-1]) if rest else last
        store = PackBlockstore(tmp_path, max_pack_bytes=200_000)
        for number in range(last + 1):
            name = b"%d " % number
            long = b"long" + name * (number % 700)
            assert store.get(Cid.of(long)) == long
            if number % 3:
                assert store.get(Cid.of(name)) == name
            else:
                assert not store.has(MadeBlock.of(name).cid)
        noted = store.get_note("last")
        assert noted is not None
        assert int(noted) >= last
        store.close()
        first = last + 1
