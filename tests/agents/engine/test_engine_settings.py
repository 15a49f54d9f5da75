import pytest

from agents.errors import EngineFailed

pytest.importorskip("torch")
pytestmark = pytest.mark.engine


def test_what_the_daemon_says_is_read_and_checked():
    from agents.engine.worker.settings import MIN_CACHE_BYTES, read_settings

    assert read_settings({}).cache_bytes >= MIN_CACHE_BYTES and not read_settings({}).is_deterministic
    said = read_settings({"COVEY_ENGINE_CACHE_BYTES": "5000", "COVEY_ENGINE_DETERMINISTIC": "1"})
    assert said.limits.cache_bytes == 5000 and said.limits.is_deterministic
    assert read_settings({}).adapter_bytes == 512 << 20
    assert read_settings({"COVEY_ENGINE_ADAPTER_BYTES": "7000"}).adapter_bytes == 7000
    with pytest.raises(EngineFailed, match="COVEY_ENGINE_ADAPTER_BYTES"):
        read_settings({"COVEY_ENGINE_ADAPTER_BYTES": "much"})
    with pytest.raises(EngineFailed, match=r"engine.dtype is 'int4'; it is one of auto, float32"):
        read_settings({"COVEY_ENGINE_DTYPE": "int4"})
    with pytest.raises(EngineFailed, match="COVEY_ENGINE_CACHE_BYTES"):
        read_settings({"COVEY_ENGINE_CACHE_BYTES": "-3"})
