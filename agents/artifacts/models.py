"""Base models as artifacts: publish one that stands here, bring in one that a peer published, let go of one.

A model stands on the disk as a folder, which the engine maps into memory. Its blocks are a second copy: they are made
when it is published, and after a fetch they are not held unless that is asked for, so that garbage collection may have
them (until then they are given to others).
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agents.adapters.obtain import MANIFEST_TIMEOUT_S, MAX_UNPACKING, SMALL_BYTES
from agents.adapters.passing import MAX_PROVIDERS, PASSED_ON
from agents.adapters.ports import Ports
from agents.adapters.preflight import read_remote_header
from agents.adapters.safetensors_header import Header
from agents.adapters.shelf import Misstated
from agents.artifacts.keep import let_go, pin_name
from agents.artifacts.obtain import fetch_files, register
from agents.artifacts.peek import Peek
from agents.artifacts.publish import Release, store_artifact
from agents.engine import model_folder
from agents.engine.messages import ModelCard
from agents.engine.model_folder import CONFIG_FILE, card_of_parts, check_config, check_names, limit_of
from agents.errors import BadAdapter, BadModel
from agents.models import BadName, card_of, check_name, put_aside
from protocols.adapters import Base, Fact
from protocols.artifacts import Model, open_artifact
from protocols.entry import stored_entry
from protocols.errors import TooBig
from protocols.fetch.dag import IDLE_TIMEOUT_S, Progress
from protocols.net import PeerInfo
from storage import unixfs
from storage.blockstore import Visibility
from storage.catalog.artifacts import ArtifactRow
from storage.catalog.models import ModelRow
from storage.cid import Cid
from storage.dag import reach
from storage.durable import sync_folder
from storage.errors import InvalidBlock, InvalidName, TooLarge, UnknownCodec
from storage.keys import PeerId
from storage.pins import PinKind, PinState

KIND: Final = "model"
CAPABILITY: Final = "base-model"  # says that the artifact is a folder that `pull_model` takes
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
# What a manifest tells of the model's card, to be judged before the weights move.
FACTS: Final = ("n_params", "n_layers", "hidden_size", "vocabulary", "context_tokens", "dtype", "has_chat_template")

# What is the publisher's doing: nothing of such a model is kept.
_LIES: Final = (BadModel, Misstated, InvalidBlock, InvalidName, TooLarge, TooBig, UnknownCodec)

Tell = Callable[[str, int, int | None], None]  # a step, how much of it is done, of how much


class Wish(NamedTuple):
    """How to bring a model in. `name`: what to call it here; `is_shared`: hold its blocks too, to pass them on."""

    name: str | None = None
    is_shared: bool = False
    providers: Sequence[PeerInfo] = ()
    idle_timeout_s: float = IDLE_TIMEOUT_S


class Words(NamedTuple):
    """What its publisher says about a model, and who may see it."""

    name: str | None = None
    version: int | None = None
    tags: Sequence[str] = ()
    description: str = ""
    licence: str | None = None
    visibility: Visibility = Visibility.FLOCK
    members: Sequence[PeerId] = ()


class Unfinished(NamedTuple):
    """A model of which some blocks are here: pulling it again goes on from them."""

    row: ArtifactRow
    model: Model


async def pull_model(ports: Ports, models: Path, manifest: Cid, wish: Wish, tell: Tell) -> ModelRow:
    """Bring in the model whose manifest is `manifest`, into the folder `models`: whole and checked, or not at all.

    What was fetched before is not fetched again. Raises: BadModel, Misstated, BadName, NoRoom, Untrusted, Remote,
    StorageError, OSError.
    """
    work = ports.exchange.work
    with ports.store.lease():  # nothing that comes is swept before it is pinned
        row = await register(
            ports, manifest, wish.providers, idle_timeout_s=min(MANIFEST_TIMEOUT_S, wish.idle_timeout_s)
        )
        model = model_in(ports, row)
        name = check_name(wish.name or row.name)
        before = _standing(ports, models, name, model)
        if before is not None:
            return before
        try:
            card = await _judge(ports, row, model, name, wish)
            await work(partial(_check_room, ports, models, model))
            fetched = await _fetch(ports, row, wish, tell)
            if model.n_bytes > SMALL_BYTES + MAX_UNPACKING * (fetched.n_bytes + fetched.n_reused_bytes):
                raise BadModel(f"it unpacks to more than {MAX_UNPACKING} times what it weighs on the wire")
            folder = await work(partial(_write_out, ports, models, model, card, tell))
        except _LIES:
            await work(partial(let_go, ports, row))
            raise
        return await work(partial(_note, ports, row, card, folder, wish))


def store_model(
    ports: Ports, row: ModelRow, words: Words, on_bytes: Callable[[int], None] = lambda n_bytes: None
) -> tuple[ArtifactRow, bool]:
    """Publish a model that stands here, durably; is it new?

    Raises: BadModel when its files are no longer those that were brought in; BadArtifact, StorageError, OSError.
    """
    card = card_of(row)
    release = Release(
        kind=KIND,
        name=words.name or row.name,
        version=words.version,
        capabilities=(CAPABILITY, *(["chat"] if card.has_chat_template else [])),
        tags=words.tags,
        facts={**facts_of(card), **model_folder.merged_of(card)},
        description=words.description,
        licence=words.licence or card.licence,
        base=Base(fingerprint=Cid.parse(card.fingerprint), name=card.name, architecture=card.architecture),
        derived_from=Cid.parse(card.derived_from) if card.derived_from else None,
        visibility=words.visibility,
        members=words.members,
    )
    with _without_card(Path(row.folder)) as files:
        now = model_folder.make_card(files, card.name)
        if now.fingerprint != card.fingerprint:
            raise BadModel(f"the files of {row.name} are no longer those that were brought in: pull the model again")
        return store_artifact(ports, files, release, on_bytes)


def remove_model(ports: Ports, row: ModelRow) -> int:
    """Delete a model here, show it no more, and hold its blocks no more. Returns: the bytes that its folder had."""
    aside = put_aside(Path(row.folder))
    ports.catalog.models.remove(row.name)
    if not any(row.fingerprint == other.fingerprint for other in ports.catalog.models.list()):
        for artifact in published(ports, row):
            let_go(ports, artifact)
    n_bytes = sum(file.stat().st_size for file in aside.iterdir()) if aside else 0
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
    return n_bytes


def published(ports: Ports, row: ModelRow) -> list[ArtifactRow]:
    """The artifacts that are this model, the newest first: what this node published, and what it was pulled by."""
    found = ports.catalog.artifacts.find(kind=KIND, bases=[row.fingerprint], capability=CAPABILITY)
    return [artifact for artifact in found if artifact.is_own or str(artifact.manifest) == row.source]


def unfinished(ports: Ports) -> list[Unfinished]:
    """The models whose fetch was begun and not finished."""
    rows = {pin_name(row.manifest): row for row in ports.catalog.artifacts.find(kind=KIND, capability=CAPABILITY)}
    begun = [
        rows[pin.name]
        for pin in ports.pins.list()
        if pin.kind is PinKind.RECURSIVE and pin.state is not PinState.COMPLETE and pin.name in rows
    ]
    return [Unfinished(row, model_in(ports, row)) for row in begun]


def facts_of(card: ModelCard) -> dict[str, Fact]:
    """What a manifest tells of the card."""
    return {name: getattr(card, name) for name in FACTS}


def model_in(ports: Ports, row: ArtifactRow) -> Model:
    """The manifest of a model that is registered. Raises: BadModel."""
    if row.kind != KIND:
        raise BadModel(f"{row.manifest} is the manifest of a {row.kind}, not of a model")
    model = open_artifact(stored_entry(ports.store, row.manifest))
    assert isinstance(model, Model)
    if model.base is None or CAPABILITY not in model.capabilities:
        raise BadModel(
            f"{row.name} was not published as a base model: its publisher does that with covey model publish"
        )
    return model


def _standing(ports: Ports, models: Path, name: str, model: Model) -> ModelRow | None:
    """The model, where it stands here under this name already. Raises: BadName when another one does."""
    known = ports.catalog.models.get(name)
    assert model.base is not None
    if known is not None and known.fingerprint == str(model.base.fingerprint) and Path(known.folder).exists():
        return known
    if known is not None or (models / name).exists():
        raise BadName(f"there is another model {name!r} here already: choose another --name")
    return None


async def _judge(ports: Ports, row: ArtifactRow, model: Model, name: str, wish: Wish) -> ModelCard:
    """Look into the files while they are still with a peer; the card that they come to.

    Raises: BadModel, Misstated, BadAdapter, Remote, StorageError.
    """
    peek = Peek(
        ports,
        [*wish.providers, PeerInfo(row.publisher)],
        find_more=partial(ports.network.find_providers, model.files, MAX_PROVIDERS),
        show=PASSED_ON[model.audience],
        voucher=row.publisher,
        idle_timeout_s=wish.idle_timeout_s,
    )
    files = await peek.files(model.files, _check_file_name)
    check_names(files, model.name)
    await ports.exchange.work(partial(_check_sizes, ports, model, files))
    config = model_folder.parse_object(await peek.read(files[CONFIG_FILE]), CONFIG_FILE)
    check_config(config)
    has_template = "chat_template.jinja" in files
    if TOKENIZER_CONFIG in files:
        about = model_folder.parse_object(await peek.read(files[TOKENIZER_CONFIG]), TOKENIZER_CONFIG)
        model_folder.refuse_code(about, TOKENIZER_CONFIG)
        has_template = has_template or bool(about.get("chat_template"))
    headers = [await _read_header(peek, file, cid) for file, cid in files.items() if file.endswith(".safetensors")]
    assert model.base is not None
    card = card_of_parts(
        config,
        headers,
        name=name,
        fingerprint=str(model.base.fingerprint),
        derived_from=str(model.derived_from) if model.derived_from else None,
        has_chat_template=has_template,
        licence=model.licence,
    )
    for fact in FACTS:
        if model.facts.get(fact) != getattr(card, fact):
            raise Misstated(f"its {fact} is {getattr(card, fact)}, its manifest says {model.facts.get(fact)}")
    if model.base.architecture != card.architecture:
        raise Misstated(f"it is a {card.architecture}, its manifest says {model.base.architecture}")
    return model_folder.with_merged(card, model.facts)


async def _read_header(peek: Peek, name: str, weights: Cid) -> Header:
    try:
        return await read_remote_header(peek, weights)
    except BadAdapter as error:
        raise BadModel(f"{name}: {error}") from None


def _check_file_name(name: str) -> None:
    if limit_of(name) is None:
        raise BadModel(f"{name[:80]!r} has no place in a model: only weights as .safetensors and plain JSON are taken")


def _check_sizes(ports: Ports, model: Model, files: Mapping[str, Cid]) -> None:
    """By the roots of the files alone. Raises: BadModel, Misstated."""
    total = 0
    for name, cid in files.items():
        about, limit = unixfs.stat(ports.store, cid), limit_of(name)
        if about.is_directory or about.target is not None:
            raise BadModel(f"{name} is a link or a folder, not a file")
        if limit is None or about.n_bytes > limit:
            raise BadModel(f"{name} has {about.n_bytes} bytes; the limit is {limit}")
        total += about.n_bytes
    if total != model.n_bytes:
        raise Misstated(f"its files have {total} bytes, its manifest says {model.n_bytes}")


def _check_room(ports: Ports, models: Path, model: Model) -> None:
    """For the blocks that are not here yet, and for the files. Raises: NoRoom."""
    n_here = sum(reached.n_bytes or 0 for reached in reach(ports.store, model.files))
    need = model.n_bytes + max(0, model.n_bytes - n_here)
    model_folder.check_room(models, need, f"{model.name}, as blocks and as files,")


async def _fetch(ports: Ports, row: ArtifactRow, wish: Wish, tell: Tell) -> Progress:
    def on_progress(progress: Progress) -> None:
        tell(f"fetching {row.name}", min(progress.n_bytes + progress.n_reused_bytes, row.n_bytes), row.n_bytes)

    return await fetch_files(ports, row, wish.providers, idle_timeout_s=wish.idle_timeout_s, on_progress=on_progress)


def _write_out(ports: Ports, models: Path, model: Model, card: ModelCard, tell: Tell) -> Path:
    """From blocks to a folder that took its name only once all of it was checked. Raises: BadModel, Misstated."""
    models.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{card.name}.", suffix=model_folder.STAGING, dir=models))
    n_done = 0

    def on_progress(n_bytes: int) -> None:
        nonlocal n_done
        n_done += n_bytes
        tell(f"writing {card.name}", n_done, model.n_bytes)

    try:
        content = staging / "content"
        unixfs.export(ports.store, model.files, content, on_progress)
        tell("computing its fingerprint", 0, None)
        found = model_folder.make_card(content, card.name, card.derived_from, card.licence)
        if found.fingerprint != card.fingerprint:
            raise Misstated(
                f"its weights have the fingerprint {found.fingerprint}, its manifest says {card.fingerprint}"
            )
        model_folder.write_card(content, model_folder.with_merged(found, model.facts))
        target = models / card.name
        if target.exists():
            raise BadName(f"there is another model {card.name!r} here already: choose another --name")
        content.rename(target)
        sync_folder(models)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _note(ports: Ports, row: ArtifactRow, card: ModelCard, folder: Path, wish: Wish) -> ModelRow:
    noted = ModelRow(
        name=card.name,
        fingerprint=card.fingerprint,
        derived_from=card.derived_from,
        folder=str(folder),
        source=str(row.manifest),
        card=msgspec.to_builtins(card),
        added_unix_s=ports.unix_s(),
    )
    if not wish.is_shared and row.files is not None:
        ports.pins.remove(row.files, pin_name(row.manifest))
    ports.catalog.models.upsert(noted)  # last: who is killed before finds the folder at the next start
    return noted


@contextmanager
def _without_card(folder: Path) -> Iterator[Path]:
    """The model's files without the card, which tells its name here: so everybody's copy has the same CID.

    They are other names of the same files, and cost no room.
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=model_folder.STAGING, dir=folder.parent))
    try:
        for file in model_folder.source_files(folder):
            os.link(file, staging / file.name)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def n_bytes_of(folder: Path) -> int:
    """How many bytes a model's files have; 0 where they are gone."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0
