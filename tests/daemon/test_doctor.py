"""What `covey doctor` finds in each bad state, and what it says to do next."""

import importlib.util
import os
import re
import shutil
import socket
import sqlite3
import sys
import threading
import tomllib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon import wall
from daemon.cli import client, doctor
from daemon.lock import sole_daemon
from daemon.setup import initialise
from storage.catalog import MIGRATIONS, Catalog
from tests.ports import held_port


def only(findings):
    (finding,) = findings
    return finding


def test_a_new_node_has_nothing_to_mend(home):
    initialise(home)
    for check in (doctor.check_python, doctor.check_home, doctor.check_config, doctor.check_key, doctor.check_clock):
        assert only(check(home)).level == "ok"


def test_a_python_that_is_too_old(home, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert only(doctor.check_python(home)) == ("fail", "python", "3.10.4 is too old", "Install Python 3.11 or newer.")


def test_a_home_that_is_missing_or_open_to_others(home):
    home.root.chmod(0o755)
    found = only(doctor.check_home(home))
    assert (found.level, "chmod 700" in found.text) == ("fail", True)
    home.root.chmod(0o700)
    shutil.rmtree(home.root)
    assert only(doctor.check_home(home)).next_step == "Make it: covey init"


def test_a_setting_that_does_nothing_without_another_is_told(home):
    home.config.write_text("[gateway]\nis_enabled = true\ntakes_names = true\n")
    fine, idle = doctor.check_config(home)
    assert (fine.level, idle.level, idle.next_step) == ("ok", "warn", "covey config set gateway.has_routing true")
    assert idle.text == "gateway.takes_names does nothing without gateway.has_routing"


def test_a_config_that_is_broken_is_told_once_with_its_file(home):
    home.config.write_text("[network\n")
    found = only(doctor.check_config(home))
    assert (found.level, "is not TOML" in found.text) == ("fail", True)
    assert found.next_step == f"Mend {home.config}."
    assert list(doctor.check_port(home)) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[network]\nhost = "300.0.0.1"\n', "network.host: '300.0.0.1'"),
        ('[network]\nhost = "example.org"\nport = 0\n', "network.host: 'example.org'"),
        ('[fetch]\nrouters = ["ftp://x"]\n', "fetch.routers: 'ftp://x'"),
        ('[kubo]\napi = "http://["\n', "kubo.api: 'http://['"),
    ],
)
def test_an_address_that_no_daemon_can_start_with_is_told_once(home, text, told):
    home.config.write_text(text)
    found = only(doctor.check_config(home))
    assert (found.level, told in found.text) == ("fail", True)
    assert list(doctor.check_port(home)) == list(doctor.check_servers(home)) == []


@pytest.mark.parametrize("port", [0, 47012])
def test_a_host_of_another_machine_is_told(home, port):
    home.config.write_text(f'[network]\nhost = "192.0.2.7"\nport = {port}\n')
    found = only(doctor.check_port(home))
    assert (found.level, found.text) == ("fail", "network.host: 192.0.2.7 is no address of this machine")


def test_servers_that_the_settings_name_are_tried(home):
    assert list(doctor.check_servers(home)) == []
    with (
        held_port() as dead_port,
        held_port() as kubo_port,
        answering(b"404 Not Found") as alive,
        answering(b"502 Bad Gateway") as broken,
    ):
        dead, kubo = (f"http://127.0.0.1:{port}" for port in (dead_port, kubo_port))
        home.config.write_text(
            f'[fetch]\ngateways = ["{dead}", "{alive}"]\nrouters = ["{broken}"]\nhas_kubo = true\n'
            f'[kubo]\napi = "{kubo}"\n'
        )
        found = {each.text.split()[0]: each for each in doctor.check_servers(home)}
    assert {url: (each.level, each.check) for url, each in found.items()} == {
        dead: ("fail", "fetch.gateways"),
        alive: ("ok", "fetch.gateways"),
        broken: ("fail", "fetch.routers"),
        kubo: ("fail", "kubo.api"),
    }
    assert "cannot be reached" in found[dead].text and "502" in found[broken].text
    assert "covey config set fetch.gateways" in found[dead].next_step


@contextmanager
def answering(status):
    """A server that answers one request, and then goes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


def test_a_key_that_is_missing_damaged_or_open_to_others(home):
    assert only(doctor.check_key(home)).next_step == "Make one: covey init"
    initialise(home)
    home.key.chmod(0o644)
    found = only(doctor.check_key(home))
    assert (found.level, "chmod 600" in found.text) == ("fail", True)
    home.key.chmod(0o600)
    home.key.write_bytes(b"half")
    found = only(doctor.check_key(home))
    assert (found.level, "backup" in found.next_step) == ("fail", True)


def test_a_disk_that_is_nearly_full(home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=doctor.LOW_DISK_BYTES - 1))
    found = only(doctor.check_disk(home))
    assert (found.level, found.text) == ("warn", "only 2.0 GiB free")


def test_a_clock_of_the_past(home, monkeypatch):
    monkeypatch.setattr(wall, "unix_s", lambda: 0.0)
    found = only(doctor.check_clock(home))
    assert (found.level, found.text.startswith("says 1970")) == ("fail", True)


def test_engine_packages_that_are_missing(home, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else there(name))
    engine, models = doctor.check_engine(home)
    assert (engine.level, engine.text) == ("warn", "torch not installed: no chat and no training here; sharing works")
    assert "pip install" in engine.next_step
    assert models.next_step.startswith("covey model pull")


def test_the_packages_looked_for_are_those_that_the_engine_declares():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    names = [re.split(r"[<>=]", each)[0] for each in declared["project"]["optional-dependencies"]["engine"]]
    assert sorted(doctor.ENGINE_PACKAGES) == sorted(names)


def test_a_backend_stands_for_a_model(home):
    home.config.parent.mkdir(parents=True, exist_ok=True)
    home.config.write_text('[backend]\nurl = "http://127.0.0.1:8000/v1"\nkind = "vllm"\nmodel = "org/Big"\n')
    *_, backend, models = doctor.check_engine(home)
    assert (backend.level, models.level) == ("ok", "ok")
    assert backend.text == "http://127.0.0.1:8000/v1 (vllm) answers with its model org/Big"
    assert models.text == "none here, but the backend's"


@pytest.mark.parametrize(
    ("compiler", "told"),
    [(None, "a C compiler and GMP's headers cannot be found"), ("/usr/bin/cc", "and GMP's headers")],
)
def test_a_libp2p_that_is_missing_names_what_it_is_compiled_with(home, monkeypatch, compiler, told):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    monkeypatch.setattr(doctor, "_include_folders", lambda: [str(home.root)])
    found = only(doctor.check_network_library(home))
    assert (found.level, told in found.text) == ("fail", True)
    assert "libgmp-dev" in found.next_step


def test_a_socket_that_nobody_listens_on_is_no_daemon(home):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(home.socket))
    assert only(doctor.check_daemon(home)) == ("warn", "daemon", "is not running", "Start it: covey up")


def test_a_daemon_without_its_socket(home):
    with sole_daemon(home):
        found = only(doctor.check_daemon(home))
    assert (found.level, found.text.endswith("runs without its socket")) == ("fail", True)
    assert found.next_step == "Restart it: covey down; covey up"


def test_a_daemon_that_does_not_answer(home, monkeypatch):
    def call(*_args, **_more):
        raise TimeoutError("timed out")

    monkeypatch.setattr(client, "call", call)
    with sole_daemon(home):
        found = only(doctor.check_daemon(home))
    assert (found.level, "does not answer (timed out)" in found.text) == ("fail", True)


@pytest.mark.parametrize(("n_peers", "level"), [(0, "warn"), (2, "ok")])
def test_a_daemon_without_peers_is_told_how_to_find_some(home, monkeypatch, n_peers, level):
    monkeypatch.setattr(client, "call", lambda *_, **__: {"pid": 1, "uptime_s": 5.0, "n_peers": n_peers})
    daemon, peers = doctor.check_daemon(home)
    assert (daemon.level, peers.level) == ("ok", level)
    assert bool(peers.next_step) == (not n_peers)


def test_a_node_that_a_relay_refuses_is_told_what_its_owner_has_to_do(home, monkeypatch):
    assert list(doctor.check_relay(home)) == []  # no daemon runs
    monkeypatch.setattr(client, "call", lambda *_, **__: {"no_relay": None})
    assert list(doctor.check_relay(home)) == []
    monkeypatch.setattr(client, "call", lambda *_, **__: {"no_relay": "There: covey peer trust ME"})
    assert only(doctor.check_relay(home))[:3] == ("warn", "relay", "There: covey peer trust ME")


@pytest.mark.parametrize(("n_damaged", "level"), [(0, "ok"), (3, "fail")])
def test_a_store_that_is_known_to_be_damaged_is_not_well(home, monkeypatch, n_damaged, level):
    assert list(doctor.check_store(home)) == []  # no daemon runs
    monkeypatch.setattr(client, "call", lambda *_, **__: {"n_blocks": 10, "n_damaged": n_damaged})
    with sole_daemon(home):
        found = only(doctor.check_store(home))
    assert (found.level, "covey repo verify --repair" in found.next_step) == (level, bool(n_damaged))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_port_over_ip_6_is_probed_too(home):
    with held_port("::1") as port:
        home.config.write_text(f'[network]\nhost = "::1"\nport = {port}\n')
        assert only(doctor.check_port(home)).text == f"tcp/{port} is free"


def test_a_port_that_is_taken_or_closed(home):
    with held_port() as port:
        home.config.write_text(f'[network]\nhost = "127.0.0.1"\nport = {port}\n')
        with socket.create_server(("127.0.0.1", port)):
            assert "in use" in only(doctor.check_port(home)).text
            with sole_daemon(home):
                assert only(doctor.check_port(home)).text == f"tcp/{port} answers"
        with sole_daemon(home):
            found = only(doctor.check_port(home))
        assert (found.level, "covey config set network.port 0" in found.next_step) == ("warn", True)
        assert only(doctor.check_port(home)).text == f"tcp/{port} is free"


def test_a_catalog_is_read_through_also_while_a_daemon_has_it_open(home):
    assert "none yet" in only(doctor.check_catalog(home)).text and not home.catalog.exists()
    catalog = Catalog.open(home.catalog)
    assert only(doctor.check_catalog(home))[:2] == ("ok", "catalog")
    catalog.close()
    before = home.catalog.read_bytes()
    assert only(doctor.check_catalog(home)).text == f"version {len(MIGRATIONS)}, every page reads well"
    assert home.catalog.read_bytes() == before


@pytest.mark.parametrize("at", [0, 100, 4096, -4096])
def test_a_catalog_that_is_damaged_is_told_with_how_it_is_filled_again(home, at):
    Catalog.open(home.catalog).close()
    with home.catalog.open("r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        file.write(b"\xff" * 64)
    found = only(doctor.check_catalog(home))
    assert (found.level, str(home.catalog) in found.text) == ("fail", True)
    assert "move catalog.db* away and run covey up" in found.next_step and "covey down" not in found.next_step
    with sole_daemon(home):
        assert only(doctor.check_catalog(home)).next_step.startswith("covey down; ")


def test_a_catalog_of_another_version_is_told(home):
    Catalog.open(home.catalog).close()
    for version, level in ((len(MIGRATIONS) + 1, "fail"), (1, "ok")):
        with sqlite3.connect(home.catalog) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        found = only(doctor.check_catalog(home))
        assert found.level == level and "version" in found.text
    assert f"the next start brings it to version {len(MIGRATIONS)}" in found.text


def test_a_file_in_the_place_of_the_catalog_is_told(home):
    home.catalog.write_text("no database")
    assert only(doctor.check_catalog(home)).level == "fail"
