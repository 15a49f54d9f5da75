"""What the disk changed of an experiment is told, and brought here again where somebody has it."""

import pytest

from agents.federation.files.needs import needed
from storage.cid import Cid
from tests.daemon.test_fl_operations import data, over, planned

__all__ = ["data"]


@pytest.mark.parametrize("is_known", [False, True])
async def test_an_update_that_the_disk_changed_is_told_of_and_taken_out_of_its_seal_again(node_here, data, is_known):
    experiment = await planned(node_here)
    await node_here.post("fl/join", experiment=experiment, data=data)
    await node_here.post("fl/start", experiment=experiment)
    await over(node_here, experiment)
    node = node_here.node
    ((update, _, _),) = needed(node.rounds.get(Cid.parse(experiment)).book)
    whole = node.store.get(update)
    (pack,) = (node.home.root / "packs").iterdir()
    pack.write_bytes(pack.read_bytes().replace(whole, whole[:-1] + bytes([whole[-1] ^ 1])))
    if is_known:
        told = (await node_here.post("fl/verify", what=experiment, is_offline=True)).lines[-2]
        assert told["verdict"] == "not decidable" and "has changed on disk" in told["findings"][0]["what"]
    assert (await node_here.post("fl/verify", what=experiment)).lines[-1]["verdict"] == "proved"
    assert node.store.get(update) == whole
