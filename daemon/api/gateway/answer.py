"""From what is asked to what is said. Synchronous and without a clock: the shell runs it in a thread, and paces it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final
from urllib.parse import quote, urlencode

from daemon.api.gateway import listing, ranges
from daemon.api.gateway.car import car
from daemon.api.gateway.kinds import SNIFFED_BYTES, UNKNOWN, content_type
from daemon.api.gateway.paths import Pointed, RecordOf, Way, follow, walk
from daemon.api.gateway.ranges import ByteRange
from daemon.api.gateway.refusal import Header, Refusal
from daemon.api.gateway.reply import (
    A_WEEK,
    FOREVER,
    Reply,
    common_headers,
    disposition,
    etag_of,
    path_headers,
    refuse_if_known,
    text_reply,
)
from daemon.api.gateway.request import MEDIA_TYPES, Asked, Format
from daemon.api.gateway.view import NotHere
from protocols.ipns import name_text
from storage.blockstore import Blockstore
from storage.cid import DAG_CBOR, DAG_PB, RAW, Cid
from storage.codecs.dag_json import DAG_JSON
from storage.errors import Corrupt, InvalidBlock, InvalidCid, NotFound, StorageError, TooLarge
from storage.unixfs import list_dir, read_file, resolve, stat
from storage.unixfs.data import Kind

JSON_CODEC: Final = 0x0200
CBOR_CODEC: Final = 0x51
INDEX: Final = "index.html"

# The forms in which a block of each codec is a document as it stands; the first is its own.
_DOCUMENTS: Final = {
    DAG_CBOR: (Format.DAG_CBOR, Format.CBOR),
    DAG_JSON: (Format.DAG_JSON, Format.JSON),
    JSON_CODEC: (Format.JSON,),
    CBOR_CODEC: (Format.CBOR,),
}


@dataclass(frozen=True, slots=True)
class Site:
    """What the gateway serves from: the public blocks, and the records of names."""

    store: Blockstore
    record_of: RecordOf
    max_reply_bytes: int


def answer(site: Site, asked: Asked, unix_s: float) -> Reply:
    """What is said to a GET or HEAD; whatever goes wrong before the first byte is a reply too."""
    try:
        return _answer(site, asked, unix_s)
    except Refusal as refusal:
        return refused(refusal)
    except NotHere as error:
        # Hidden or missing: one and the same to whoever asks.
        return text_reply(412 if asked.is_only_if_cached else 404, str(error))
    except NotFound as error:
        return text_reply(404, str(error))
    except InvalidCid as error:
        return text_reply(400, str(error))
    except Corrupt:
        return text_reply(500, "the node cannot read its disk; ask its owner to look at it")
    except StorageError as error:
        return text_reply(400, f"this content cannot be read: {error}")


def refused(refusal: Refusal) -> Reply:
    """A refusal as a reply."""
    if refusal.status in (301, 304):
        return Reply(refusal.status, list(refusal.headers))
    return text_reply(refusal.status, refusal.text, refusal.headers)


def _answer(site: Site, asked: Asked, unix_s: float) -> Reply:
    pointed: Pointed | None = None
    if asked.namespace == "ipfs":
        if Format.RECORD in asked.formats[:1]:
            raise Refusal(400, "an IPNS record is at /ipns/NAME")
        root, segments = Cid.parse(asked.name), asked.segments
    else:
        pointed = follow(site.record_of, asked.name, unix_s)
        root, segments = pointed.root, pointed.segments + asked.segments
        if not site.store.has(root):  # a name is no more public than what it stands for
            raise NotFound("there is no valid record of that name here")
        if asked.formats[0] is Format.RECORD:
            return _record(asked, pointed)
    if not site.store.has(root):
        raise NotHere(f"{root} is not here")
    way = walk(site.store, root, segments)
    mutable = f"public, max-age={pointed.max_age_s}" if pointed else None
    for form in asked.formats:
        reply = _in_form(site, asked, way, form, mutable)
        if reply is not None:
            return reply
    raise Refusal(406, "the content has another form than the one asked for; nothing is converted here")


def _in_form(site: Site, asked: Asked, way: Way, form: Format, mutable: str | None) -> Reply | None:
    """The reply in this form; None where the content has another."""
    headers = path_headers(asked, way, mutable or FOREVER)
    if form is not Format.PLAIN and (location := asked.location_as(form)):
        headers.append(("Content-Location", location))
    if form is Format.CAR:
        return _car(site, asked, way, headers)
    if way.rest:
        raise Refusal(501, "the path ends inside of a document; ask for the document, or for a CAR")
    own = _DOCUMENTS.get(way.end.codec, ())
    if form is Format.PLAIN and not own:
        return _plain(site, asked, way, mutable)
    data = site.store.get(way.end)
    if form is Format.PLAIN:
        form = own[0]
    return _block(asked, way.end, data, form, headers) if form is Format.RAW or form in own else None


def _record(asked: Asked, pointed: Pointed) -> Reply:
    if asked.segments:
        raise Refusal(400, "a record is of the name alone, without a path")
    name = name_text(pointed.record.name)
    raw = pointed.record.raw
    headers = [
        ("X-Ipfs-Path", asked.path),
        ("Cache-Control", f"public, max-age={pointed.max_age_s}"),
        *common_headers(),
        *disposition(asked, f"{name}.ipns-record", is_attachment=True),
        ("Content-Type", MEDIA_TYPES[Format.RECORD]),
    ]
    etag = etag_of(name, raw.hex())
    refuse_if_known(asked, etag, headers)
    return Reply(200, [*headers, ("Etag", etag)], iter((raw,)), len(raw))


def _block(asked: Asked, cid: Cid, data: bytes, form: Format, headers: list[Header]) -> Reply:
    """A block as it stands, or ranges of it."""
    ending = "bin" if form is Format.RAW else form.value
    headers += [*disposition(asked, f"{cid}.{ending}", is_attachment=True)]
    etag = f'"{cid}.{form.value}"'
    return _ranged(asked, len(data), MEDIA_TYPES[form], etag, headers, lambda one: iter((data[one.first : one.end],)))


def _car(site: Site, asked: Asked, way: Way, headers: list[Header]) -> Reply:
    wish = asked.car
    if wish.span and way.end.codec in (DAG_PB, RAW) and not way.rest:
        _refuse_beyond(site.store, way.end, wish.span.first)
    dups = "y" if wish.has_duplicates else "n"
    etag = "W/" + etag_of(f"{way.end}.car", *way.passed, wish.scope, wish.span, dups)
    headers += [
        ("Content-Type", f"{MEDIA_TYPES[Format.CAR]}; version=1; order=dfs; dups={dups}"),
        ("Accept-Ranges", "none"),
        ("Etag", etag),
        *disposition(asked, f"{way.end}.car", is_attachment=True),
    ]
    site.store.get(way.end)  # before the status goes out: the block at the end is here
    refuse_if_known(asked, etag, headers)
    return Reply(200, headers, _limited(car(site.store, way, wish), site.max_reply_bytes))


def _refuse_beyond(store: Blockstore, cid: Cid, first: int) -> None:
    """A range that begins behind the end of a file is an error that is known up front."""
    try:
        about = stat(store, cid)
    except InvalidBlock:
        return  # no file: the range does not count
    if about.kind is Kind.FILE and first > 0 and first >= about.n_bytes:
        raise Refusal(400, f"entity-bytes begins behind the end: the file has {about.n_bytes} bytes")


def _limited(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    n_bytes = 0
    for piece in pieces:
        n_bytes += len(piece)
        if n_bytes > limit:
            raise TooLarge(f"a reply of over {limit} bytes")
        yield piece


def _plain(site: Site, asked: Asked, way: Way, mutable: str | None) -> Reply:
    """A file's bytes, a symlink's target, or a folder's page."""
    if way.end.codec not in (DAG_PB, RAW):
        raise Refusal(400, f"the codec 0x{way.end.codec:x} has no plain form here; ask for ?format=raw")
    about = stat(site.store, way.end)
    if about.is_directory:
        return _folder(site, asked, way, mutable)
    headers = path_headers(asked, way, mutable or FOREVER)
    if about.target is not None:
        target = about.target
        headers.append(("Content-Type", "inode/symlink"))
        etag = etag_of(way.end)
        refuse_if_known(asked, etag, headers)
        return Reply(200, [*headers, ("Etag", etag)], iter((target,)), len(target))
    name = asked.filename or (asked.segments[-1] if asked.segments else None)
    return _file(site, asked, way.end, name, etag_of(way.end), headers)


def _folder(site: Site, asked: Asked, way: Way, mutable: str | None) -> Reply:
    if not asked.has_slash:
        query = f"?{urlencode(asked.query, quote_via=quote)}" if asked.query else ""
        raise Refusal(301, "", [("Location", f"{asked.path}/{query}")])
    try:
        index = resolve(site.store, way.end, INDEX)
        is_file = not stat(site.store, index).is_directory
    except NotHere:
        raise
    except NotFound:
        is_file = False
    if is_file:
        return _file(site, asked, index, INDEX, etag_of(way.end), path_headers(asked, way, mutable or FOREVER))
    headers = [
        *(pair for pair in path_headers(asked, way, mutable or A_WEEK) if pair[0] != "Content-Security-Policy"),
        ("Content-Security-Policy", listing.POLICY),
        ("Content-Type", "text/html; charset=utf-8"),
    ]
    etag = listing.etag(way.end)
    refuse_if_known(asked, etag, headers)
    pieces = listing.page(asked.namespace, asked.name, asked.segments, way.end, list_dir(site.store, way.end))
    return Reply(200, [*headers, ("Etag", etag)], _begun(pieces))


def _file(site: Site, asked: Asked, cid: Cid, name: str | None, etag: str, headers: list[Header]) -> Reply:
    about = stat(site.store, cid)
    if about.kind is not Kind.FILE:
        raise InvalidBlock(f"{cid} is a {about.kind.name.lower()}, not a file")
    try:
        head = b"".join(read_file(site.store, cid, 0, SNIFFED_BYTES))
        kind = content_type(name, head)
    except NotHere:
        if not asked.range:
            raise
        kind = UNKNOWN  # another part of it may be here
    headers += disposition(asked, None, is_attachment=False)
    reply = _ranged(
        asked, about.n_bytes, kind, etag, headers, lambda one: read_file(site.store, cid, one.first, one.n_bytes)
    )
    if (reply.n_bytes or 0) > site.max_reply_bytes:
        raise Refusal(413, f"the file is over {site.max_reply_bytes} bytes; ask for ranges of it")
    return reply


def _ranged(asked: Asked, n_total: int, kind: str, etag: str, headers: list[Header], read: ranges.Reader) -> Reply:
    """All of it, one range, or several in parts."""
    headers = [*headers, ("Accept-Ranges", "bytes"), ("Etag", etag)]
    refuse_if_known(asked, etag, headers)
    is_same = asked.if_range is None or asked.if_range == etag
    wanted = ranges.read_ranges(asked.range, n_total) if is_same else []
    if not wanted:
        return Reply(200, [*headers, ("Content-Type", kind)], _begun(read(ByteRange(0, n_total))), n_total)
    if len(wanted) == 1:
        headers += [("Content-Type", kind), ("Content-Range", wanted[0].content_range(n_total))]
        return Reply(206, headers, _begun(read(wanted[0])), wanted[0].n_bytes)
    heads = ranges.part_heads(wanted, n_total, kind)
    headers.append(("Content-Type", f"multipart/byteranges; boundary={ranges.BOUNDARY}"))
    n_bytes = sum(map(len, heads)) + sum(one.n_bytes for one in wanted) + len(ranges.TAIL)
    return Reply(206, headers, _begun(ranges.multipart(wanted, heads, read)), n_bytes)


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same, with its first piece made: what is missing at the beginning is told by the status."""
    first = next(pieces, b"")
    return chain((first,), pieces)
