"""The backend of the configuration: what is noted of its model, which token it is sent, and what is wrong."""

import msgspec
import pytest

from agents import backend as rows
from agents.adapters.inspect import inspect_folder
from agents.adapters.shelf import base_for
from agents.engine.remote.wire import Entry
from daemon import backend
from daemon.config import BackendConfig, Config
from daemon.errors import BadConfig
from protocols.adapters import Base
from simulations.world import TINY, write_adapter
from storage.catalog import Catalog
from storage.catalog.models import ModelRow
from storage.cid import Cid

URL = "http://127.0.0.1:8000/v1"


@pytest.fixture
def catalog(tmp_path):
    opened = Catalog.open(tmp_path / "catalog.db")
    yield opened
    opened.close()


@pytest.fixture
def local(catalog):
    """A model of this node by the name `tiny`."""
    card = msgspec.to_builtins(TINY)
    row = ModelRow(name="tiny", fingerprint=TINY.fingerprint, folder="/m", source="x", card=card, added_unix_s=1.0)
    catalog.models.upsert(row)
    return row


def configured(**backend_options):
    return Config(backend=BackendConfig(**{"url": URL, "model": "org/Big", "kind": "vllm"} | backend_options))


def test_without_a_backend_nothing_changes(home, catalog, local):
    assert backend.settle(Config(), home, catalog) == Config()
    assert catalog.models.list() == [local]


def test_its_model_is_the_usual_one_and_is_forgotten_with_it(home, catalog, local):
    settled = backend.settle(configured(), home, catalog)
    assert settled.engine.model == "Big"
    row = catalog.models.get("Big")
    assert rows.is_backend(row) and not rows.is_backend(local)
    assert row.source == f"backend:{URL}" and row.card["name"] == "org/Big"
    assert not (home.models / row.folder).exists()
    backend.settle(configured(model="other"), home, catalog)
    assert {row.name for row in catalog.models.list()} == {"other", "tiny"}
    backend.settle(Config(), home, catalog)
    assert catalog.models.list() == [local]


def test_a_model_of_this_node_keeps_its_name(home, catalog, local):
    assert backend.settle(configured(model="tiny"), home, catalog).engine.model == "tiny-backend"
    assert backend.settle(configured(model="tiny"), home, catalog).engine.model == "tiny-backend"
    assert catalog.models.get("tiny") == local


def test_what_the_server_said_is_kept_over_a_restart(home, catalog):
    backend.settle(configured(kind="covey"), home, catalog)
    said = msgspec.structs.replace(TINY, name="org/Big")
    assert rows.note_backend(catalog, home.models, URL, said, 9.0).fingerprint == TINY.fingerprint
    assert rows.note_backend(catalog, home.models, URL, said, 10.0) is None
    backend.settle(configured(kind="covey"), home, catalog)
    assert catalog.models.get("Big").fingerprint == TINY.fingerprint


def test_the_base_is_named_by_a_model_here_or_a_fingerprint(home, catalog, local):
    for base in ("tiny", TINY.fingerprint):
        settings = backend.server_settings(configured(base=base).backend, catalog)
        assert (settings.base, settings.card) == (TINY.fingerprint, TINY)
    strange = str(Cid.of(b"strange"))
    assert backend.server_settings(configured(base=strange).backend, catalog).base == strange
    with pytest.raises(BadConfig, match="neither a model here nor a fingerprint"):
        backend.server_settings(configured(base="nothing").backend, catalog)


def test_adapters_for_a_base_of_unknown_shape_are_taken_as_they_are(home, catalog, tmp_path):
    strange = Cid.of(b"strange")
    backend.settle(configured(base=str(strange)), home, catalog)
    assert base_for(catalog, Base(fingerprint=strange, name="", architecture="")) == (None, {})
    card = backend.card_of(catalog.models.get("Big"))
    assert inspect_folder(write_adapter(tmp_path / "adapter"), card).rank == 2
    assert Entry(id="x").card is None


def test_the_token_comes_from_a_file_or_the_environment(catalog, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("secret\n")
    settings = backend.server_settings(configured(token_file=str(tmp_path / "token")).backend, catalog)
    assert settings.token == "secret" and "secret" not in repr(settings)
    monkeypatch.setenv("MY_TOKEN", "other")
    assert backend.server_settings(configured(token_env="MY_TOKEN").backend, catalog).token == "other"
    assert backend.server_settings(configured().backend, catalog).token == ""


@pytest.mark.parametrize("raw", [b"", b"\n", b"two\nlines", b"\xff\xfe", b"x" * 9000])
def test_a_file_that_holds_no_token_is_told_of(catalog, tmp_path, raw):
    (tmp_path / "token").write_bytes(raw)
    with pytest.raises(BadConfig, match="holds no token"):
        backend.server_settings(configured(token_file=str(tmp_path / "token")).backend, catalog)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": ""}, r"backend\.model"),
        ({"token_file": "/nowhere/token"}, r"backend\.token_file: cannot read"),
        ({"token_env": "SURELY_NOT_SET"}, r"backend\.token_env: there is no variable"),
    ],
)
def test_what_is_missing_is_named(catalog, options, words):
    with pytest.raises(BadConfig, match=words):
        backend.server_settings(configured(**options).backend, catalog)
