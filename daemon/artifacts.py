"""Artifacts as people name and ask for them: references, metrics, conditions. Texts in, the catalog's terms out."""

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, cast

from daemon.errors import BadRequest, Unfit
from protocols.artifacts import Parent
from storage.catalog.artifacts import ArtifactRow, Best, Condition
from storage.cid import DAG_CBOR, Cid
from storage.errors import InvalidCid

if TYPE_CHECKING:
    from typing import Literal

    from storage.catalog import Catalog

DEFAULT_ROLE: Final = "source"
_CONDITION: Final = re.compile(r"([^<>=]{1,128})(<=|>=|<|>|=)([^<>=]{1,64})")
_ROLE: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION: Final = re.compile(r"[1-9][0-9]{0,9}")
_MAX_NAMED: Final = 3


def read_name(text: str) -> str:
    """The name that an artifact gets. Raises: BadRequest."""
    if not _NAME.fullmatch(text):
        form = "up to 64 letters (a to z), digits, dots, dashes and underscores, the first a letter or digit"
        raise BadRequest(f"{text[:64]!r} cannot be the name of an artifact. Take {form}: covey artifact publish --name")
    return text


def read_metrics(texts: Iterable[str]) -> dict[str, float]:
    """`loss=2.5` and the like. Raises: BadRequest."""
    metrics = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not name.strip() or not mark:
            raise BadRequest(f"{text[:64]!r} is no metric: write NAME=NUMBER")
        metrics[name.strip()] = _number(value, text)
    return metrics


def read_condition(text: str) -> Condition:
    """`loss<2.5`: what a metric has to be. Raises: BadRequest."""
    found = _CONDITION.fullmatch(text.replace("==", "="))
    if found is None or not found[1].strip():
        raise BadRequest(f"{text[:64]!r} is no condition: write a metric, one of < <= = >= >, and a number")
    operator = cast("Literal['<', '<=', '=', '>=', '>']", found[2])
    return Condition(found[1].strip(), operator, _number(found[3], text))


def read_best(text: str) -> Best:
    """`loss`, or `accuracy:max`: the lowest is the best unless it says otherwise. Raises: BadRequest."""
    name, mark, which = text.rpartition(":")
    if mark and which in ("min", "max"):
        return Best(name, is_highest=which == "max")
    if not text:
        raise BadRequest("name the metric to sort by, as in --best loss or --best accuracy:max")
    return Best(text)


def read_parent(catalog: "Catalog", text: str) -> Parent:
    """`CID`, `NAME` or `NAME@VERSION`, with `ROLE=` before it where it was no source: what something was made from.

    A CID need not be known here. Raises: BadRequest, UnknownName, Unfit.
    """
    role, mark, reference = text.rpartition("=")
    if mark and not _ROLE.fullmatch(role):
        raise BadRequest(f"{role[:32]!r} is no role of a parent: use small letters, digits, dashes and underscores")
    try:
        entry = Cid.parse(reference)
    except InvalidCid:
        entry = find_artifact(catalog, reference).manifest
    if entry.codec != DAG_CBOR:
        raise BadRequest(f"{reference} is no manifest. `covey artifact ls --json` shows the manifests")
    return Parent(entry=entry, role=role or DEFAULT_ROLE)


def find_artifact(catalog: "Catalog", reference: str) -> ArtifactRow:
    """The artifact of that CID, or the newest of that name (and version). Raises: UnknownName, Unfit."""
    from agents.errors import UnknownName

    try:
        row = catalog.artifacts.get(Cid.parse(reference))
        found = [row] if row else []
    except InvalidCid:
        name, mark, version = reference.rpartition("@")
        if mark and not _VERSION.fullmatch(version):
            raise UnknownName(f"{version[:32]!r} in {reference[:80]!r} is no version: write NAME@1") from None
        found = catalog.artifacts.find(name=name if mark else reference, version=int(version) if mark else None)
    if not found:
        raise UnknownName(f"there is no artifact {reference!r} here. See what there is: covey artifact ls")
    if len({(row.kind, row.publisher, row.base) for row in found}) > 1:
        cids = ", ".join(str(row.manifest) for row in found[:_MAX_NAMED])
        raise Unfit(f"{reference!r} names several artifacts. Give the CID of a manifest instead: {cids}")
    return max(found, key=lambda row: row.version)


def bases_of(catalog: "Catalog", text: str) -> list[str]:
    """The fingerprints that a model's name here, or a fingerprint, stands for."""
    model = catalog.models.get(text)
    return [text] if model is None else sorted(model.accepts)


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRequest(f"{text.strip()[:32]!r} in {whole[:64]!r} is no number")
    return number + 0.0  # DAG-CBOR has no negative zero
