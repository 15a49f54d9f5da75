"""The home folder: where it is, who may enter, how a socket finds room in it."""

import os
import stat

import pytest
import trio

from daemon.config import Config, NetworkConfig
from daemon.errors import AlreadyRunning, BadHome, BadInput, Unfit
from daemon.joining import joined, listening
from daemon.lock import daemon_pid, sole_daemon
from daemon.paths import MAX_SOCKET_PATH_BYTES, Home, home_from, make_home, private_folder
from daemon.setup import initialise, join_flock
from protocols.errors import BadFlockKey
from protocols.pnet import FlockKey
from storage.keys import InvalidKey


def test_the_environment_names_the_home():
    assert home_from({"COVEY_HOME": "/x/y/../z"}).root.as_posix() == "/x/z"


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"HOME": "/u"}, "linux", "/u/.local/share/covey"),
        ({"HOME": "/u", "XDG_DATA_HOME": "/d"}, "linux", "/d/covey"),
        ({"HOME": "/u", "COVEY_HOME": ""}, "darwin", "/u/Library/Application Support/covey"),
    ],
)
def test_without_it_the_platform_does(environment, platform, expected):
    assert home_from(environment, platform).root.as_posix() == expected


def test_without_any_home_that_is_said():
    with pytest.raises(BadHome, match="COVEY_HOME"):
        home_from({}, "linux")


def test_all_folders_are_private(tmp_path):
    home = Home(tmp_path / "a" / "b")
    make_home(home)
    for folder in (home.root, home.logs, home.models, home.scratch):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_home_open_to_others_is_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "open" / "something").touch()
    with pytest.raises(BadHome, match="chmod 700"):
        make_home(Home(tmp_path / "open"))


def test_an_empty_folder_becomes_a_home_of_its_owner_alone(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    make_home(Home(tmp_path / "open"))
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700


def test_a_file_or_a_link_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadHome):
        private_folder(tmp_path / "file")
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(BadHome, match="symbolic link"):
        private_folder(tmp_path / "link")


def test_a_path_too_long_for_a_socket_gets_a_short_one_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    home = Home(tmp_path / ("x" * 120))
    make_home(home)
    assert len(os.fsencode(home.socket)) <= MAX_SOCKET_PATH_BYTES
    assert home.socket.parent == tmp_path / "run" / "covey"
    assert home.socket != Home(tmp_path / ("y" * 120)).socket
    assert Home(tmp_path / "z").socket == tmp_path / "z" / "control.sock"


def test_only_one_daemon_holds_a_home(home):
    assert daemon_pid(home) is None
    with sole_daemon(home):
        assert daemon_pid(home) == os.getpid()
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}.*covey down"), sole_daemon(home):
            pass
    assert daemon_pid(home) is None
    with sole_daemon(home):
        pass


def test_the_lock_is_as_long_for_every_process_so_that_a_full_disk_has_room_for_it(home, monkeypatch):
    for pid in (7, 4_194_304):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        with sole_daemon(home):
            assert (daemon_pid(home), home.lock.stat().st_size) == (pid, 11)


def test_a_new_home_gets_an_identity_and_keeps_it(tmp_path):
    home = Home(tmp_path / "h")
    first, is_new = initialise(home)
    again, is_new_again = initialise(home)
    assert (is_new, is_new_again) == (True, False)
    assert first.peer_id == again.peer_id
    assert stat.S_IMODE(home.key.stat().st_mode) == 0o600
    assert "covey config show" in home.config.read_text()


def test_a_used_home_never_gets_another_identity_silently(tmp_path):
    home = Home(tmp_path / "h")
    initialise(home)
    home.key.unlink()
    home.catalog.touch()
    with pytest.raises(BadHome, match="backup"):
        initialise(home)


def test_a_node_begins_a_private_flock_and_another_joins_it_with_the_same_key(tmp_path):
    first, second = (Home(tmp_path / name) for name in ("first", "second"))
    for home in (first, second):
        initialise(home)
    key = join_flock(first, None)
    assert join_flock(second, first.flock_key) == key == FlockKey.load(second.flock_key)
    assert join_flock(second, first.flock_key) == key
    assert stat.S_IMODE(second.flock_key.stat().st_mode) == 0o600


def test_the_key_of_a_flock_is_never_lost_to_another(tmp_path):
    home, other = Home(tmp_path / "h"), tmp_path / "other.key"
    initialise(home)
    key = join_flock(home, None)
    FlockKey.generate().save(other)
    for file in (other, None):
        with pytest.raises(Unfit, match=r"move .*swarm\.key away"):
            join_flock(home, file)
    with pytest.raises(BadInput, match="No such file"):
        join_flock(home, tmp_path / "nowhere")
    assert FlockKey.load(home.flock_key) == key


def test_a_damaged_key_of_a_flock_never_opens_the_node_to_everybody(tmp_path):
    home = Home(tmp_path / "h")
    identity, _ = initialise(home)
    join_flock(home, None)
    home.flock_key.write_bytes(b"")

    async def begin():
        async with joined(identity, Config(), home=home, first_sequence=1):
            pass

    with pytest.raises(BadFlockKey, match=r"swarm\.key"):
        trio.run(begin)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    home = Home(tmp_path / "h")
    initialise(home)
    home.key.chmod(0o644)
    with pytest.raises(InvalidKey, match="chmod 600"):
        initialise(home)


@pytest.mark.parametrize(
    ("host", "listens"),
    [
        ("127.0.0.1", ("/ip4/127.0.0.1/tcp/7",)),
        ("::1", ("/ip6/::1/tcp/7",)),
        ("::", ("/ip4/0.0.0.0/tcp/7", "/ip6/::/tcp/7")),
    ],
)
def test_who_listens_everywhere_is_reached_over_both_families(host, listens):
    assert listening(Config(network=NetworkConfig(host=host, port=7))) == listens
