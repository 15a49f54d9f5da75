"""Settings: what is read, refused, shown and edited."""

import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import config
from daemon.errors import BadConfig

DAEMON = Path(config.__file__).parent


def test_no_file_means_the_defaults(tmp_path):
    assert config.load(tmp_path / "config.toml") == config.Config()


def test_what_is_shown_reads_back_the_same():
    assert config.parse(config.show(config.Config())) == config.Config()


def test_every_setting_is_shown_with_what_it_is():
    lines = config.show(config.Config()).splitlines()
    assert 'device = "auto"  # Where it computes: auto, cpu, cuda, mps' in lines
    assert all("  # " in line for line in lines if " = " in line)
    assert max(map(len, lines)) <= 120


def test_every_setting_is_read_by_the_daemon():
    source = "".join(path.read_text() for path in DAEMON.rglob("*.py") if path.name != "config.py")
    for section in config.Config.__struct_fields__:
        for name in getattr(config.Config(), section).__struct_fields__:
            assert f".{name}" in source, f"{section}.{name} is read nowhere"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[network]\nprot = 1", "network.prot is not a setting; did you mean network.port?"),
        ("[netwrk]\nport = 1", "netwrk is not a setting; did you mean network?"),
        ("[network]\nzzz = 1", "there are: network.host, network.port"),
        ("[network]\nport = 70000", "network.port"),
        ("[network]\nport = true", "network.port"),
        ('[network]\nport = "4701"', "network.port"),
        ("network = 5", "network"),
        ("[network]\ndht = 'wide'", "network.dht"),
        ("[network\n", "is not TOML"),
        ("[logs]\nmax_bytes = 1", "logs.max_bytes"),
        ("[engine]\nidle_timeout_s = -1.0", "engine.idle_timeout_s"),
        ("[engine]\nidle_timeout_s = nan", "engine.idle_timeout_s"),
        ("[engine]\nn_threads = -1", "engine.n_threads"),
        ("[engine]\nidle_timeout_s = inf", "engine.idle_timeout_s cannot be inf; allowed is above 0"),
        ("[network]\nport = -1", "network.port cannot be -1; allowed is from 0 to 65,535"),
        ("[storage]\nquota_gb = -1", "storage.quota_gb cannot be -1; allowed is 0, and from 0.1 to 1,000,000,000"),
        ("[network]\nupload_mb_per_s = 1e-9", "network.upload_mb_per_s cannot be 1e-09; allowed is 0, and from 0.001"),
        ("[storage]\nquota_gb = 1e400", "storage.quota_gb cannot be inf"),
        ("[network]\nhas_mdns = 1", "network.has_mdns: Expected true or false, got a whole number"),
        ("network = 3", "network: Expected a section, got a whole number"),
        ("[storage]\nquota_gb = nan", "storage.quota_gb cannot be nan"),
        ("[storage]\nquota_gb = 0.000001", "allowed is 0, and from 0.1 to"),
        ("[storage]\nquota_gb = 2000000000", "storage.quota_gb"),
        ("[storage]\nquota_files = 3", "storage.quota_files cannot be 3; allowed is from 100 to 1,000,000,000"),
        ("[storage]\nreserve_gb = nan", "storage.reserve_gb"),
        ("[storage]\nreserve_gb = -0.5", "storage.reserve_gb cannot be -0.5; allowed is from 0 to"),
    ],
)
def test_what_is_wrong_is_named(text, told):
    with pytest.raises(BadConfig, match=told.replace("?", r"\?")):
        config.parse(text)


def test_a_file_that_is_too_big_or_not_text_is_refused(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"#" * (config.MAX_CONFIG_BYTES + 1))
    with pytest.raises(BadConfig, match="over"):
        config.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadConfig, match="UTF-8"):
        config.load(path)


FILE = """# mine
[network]  # how others reach me
port = 4701 # usual

[chat]
system = "be kind"
"""


def test_an_edit_keeps_comments_and_order(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(FILE)
    config.edit(path, "network.port", "4702")
    config.edit(path, "network.has_mdns", "false")
    config.edit(path, "logs.level", "debug")
    assert path.read_text() == (
        '# mine\n[network]  # how others reach me\nport = 4702\nhas_mdns = false\n\n[chat]\nsystem = "be kind"\n'
        '\n[logs]\nlevel = "debug"\n'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_quota_of_nothing_is_half_of_the_disk_and_small_ones_are_allowed():
    for text in ("0", "0.0", "0.1", "1000000000"):
        assert config.parse(f"[storage]\nquota_gb = {text}").storage.quota_gb == float(text)


def test_an_edit_that_does_not_fit_changes_nothing(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(FILE)
    for key, value in [
        ("network.port", "70000"),
        ("network.port", "x"),
        ("network.nope", "1"),
        ("network", "1"),
        ("storage.quota_gb", "1e400"),
        ("storage.quota_gb", "nan"),
        ("storage.quota_files", "3"),
    ]:
        with pytest.raises(BadConfig):
            config.edit(path, key, value)
    assert path.read_text() == FILE


def test_a_file_written_in_another_style_is_left_alone(tmp_path):
    path = tmp_path / "config.toml"
    for text in ("network = {port = 4701}\n", "network.port = 4701\n", "[network]\nbootstrap = [\n]\nport = 4701\n"):
        path.write_text(text)
        try:
            config.edit(
                path,
                "network.bootstrap",
                "/ip4/192.0.2.1/tcp/1/p2p/12D3KooWBCf5JZ6EzvCAqStgQMCH2JYoqfvBS4oX1hqJaCXBs4ro",
            )
        except BadConfig:
            assert path.read_text() == text
        else:
            assert tomllib.loads(path.read_text())["network"]["port"] == 4701


@given(st.text(max_size=60))
def test_any_text_is_set_and_read_back(text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.toml")
        try:
            assert config.edit(path, "chat.system", text).chat.system == config.load(path).chat.system
        except BadConfig:
            assert not path.exists()
        else:
            assert config.load(path).chat.system == text or text.startswith(('"', "'"))


def test_lists_are_set_with_commas(tmp_path):
    made = config.edit(tmp_path / "config.toml", "adapters.watch", "/a, /b")
    assert made.adapters.watch == ("/a", "/b")


def test_one_setting_is_read_by_its_key():
    assert config.get(config.Config(), "network.port") == 4701
    with pytest.raises(BadConfig, match=r"did you mean network\.port"):
        config.get(config.Config(), "network.prt")


def test_a_heading_inside_a_text_is_not_mistaken_for_one(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[chat]\nsystem = """\n[network]\n"""\n')
    before = path.read_text()
    with pytest.raises(BadConfig, match=r"set network\.port = 1 by hand"):
        config.edit(path, "network.port", "1")
    assert path.read_text() == before


def test_a_word_that_is_no_choice_is_refused_with_those_that_are(tmp_path):
    path = tmp_path / "config.toml"
    with pytest.raises(BadConfig, match=r"network\.relay cannot be 'bogus'; it is one of: off, client, server, public"):
        config.edit(path, "network.relay", "bogus")
    with pytest.raises(BadConfig, match=r"network\.dht cannot be 'wan'; it is one of: lan, public"):
        config.parse('[network]\ndht = "wan"\n')


def test_an_address_that_no_daemon_could_start_with_is_refused(tmp_path):
    path = tmp_path / "config.toml"
    for key, value in [
        ("network.host", "example.org"),
        ("network.bootstrap", "foo"),
        ("fetch.gateways", "ftp://x"),
        ("fetch.routers", "x"),
        ("fetch.routers", "kubo+http://127.0.0.1:5001"),
        ("kubo.api", "nope"),
        ("kubo.api", "/ip4/127.0.0.1/tcp/5001"),
        ("backend.url", "127.0.0.1:8000"),
        ("backend.url", "http://"),
    ]:
        with pytest.raises(BadConfig, match=f"nothing is changed: {key}: "):
            config.edit(path, key, value)
    assert not path.exists()
