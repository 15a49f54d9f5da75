"""Every request of the public gateway cases, answered by our gateway over the blocks that belong to them."""

import json
import os
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from posixpath import normpath
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

import pytest

from daemon.api.gateway.answer import Site
from daemon.api.gateway.asgi import GatewayApp
from daemon.api.gateway.view import public_view
from protocols.ipns import parse_name
from storage.blockstore import Block, Visibility
from storage.cid import Cid, varint_decode
from storage.codecs import dag_cbor
from storage.memory import MemoryBlockstore
from storage.roots import Roots

FIXTURES = Path(os.environ.get("COVEY_FIXTURES", "/nowhere")) / "gateway-conformance"
CASES = json.loads((FIXTURES / "cases.json").read_text()) if FIXTURES.is_dir() else []
NOW = 1_800_000_000.0

pytestmark = pytest.mark.skipif(not CASES, reason="the gateway cases are not here: set COVEY_FIXTURES")


def read_car(raw: bytes) -> list[tuple[Cid, bytes]]:
    """A reader of its own, so that the tested one is not its own witness."""
    length, at = varint_decode(raw)
    header = dag_cbor.decode(raw[at : at + length])
    assert header["version"] == 1
    at += length
    sections = []
    while at < len(raw):
        length, at = varint_decode(raw, at)
        section, at = raw[at : at + length], at + length
        assert len(section) == length, "the CAR is cut short"
        if section[0] == 0x12:
            n_cid = 34
        else:
            n_cid = 0
            for _ in range(3):
                _, n_cid = varint_decode(section, n_cid)
            n_digest, n_cid = varint_decode(section, n_cid)
            n_cid += n_digest
        sections.append((Cid(section[:n_cid]), section[n_cid:]))
    return sections


@pytest.fixture(scope="module")
def site() -> Site:
    store = MemoryBlockstore()
    blocks = [
        Block(cid, data)
        for path in sorted(FIXTURES.rglob("*.car"))
        for cid, data in read_car(path.read_bytes())
        if cid.matches(data)
    ]
    assert store.put_many(blocks, floor=Visibility.PUBLIC) > 300
    records = {parse_name(path.stem.split("_")[0]): path.read_bytes() for path in FIXTURES.rglob("*.ipns-record")}
    return Site(public_view(store, Roots(store)), records.get, 1 << 30)


@pytest.fixture
def fetch(site: Site, ask_app: Any) -> Any:
    async def send(request: dict[str, Any], captured: dict[str, str]) -> SimpleNamespace:
        headers = [(name, value.format(**captured) if captured else value) for name, value in request["headers"]]
        query = urlencode(list(map(tuple, request["query"])), quote_via=quote)
        return await ask_app(GatewayApp(site, lambda: NOW), request["method"], request["path"], query, headers)

    return send


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
async def test_the_gateway_answers_as_the_case_asks(case: dict[str, Any], fetch: Any, site: Site) -> None:
    captured = {}
    for step in case.get("setup", ()):
        reply = await fetch(step["request"], {})
        for name, what in step["capture"].items():
            captured[name] = reply.headers[what["header"].lower()].removeprefix("W/").strip('"')
    reply = await fetch(case["request"], captured)
    expect = dict(case["expect"])
    alternatives = expect.pop("any_of", [{}])
    problems = [_problem({**expect}, reply, site, case["tags"])]
    others = [_problem(alternative, reply, site, case["tags"]) for alternative in alternatives]
    assert problems == [None], problems
    assert None in others, others


def _problem(expect: dict[str, Any], reply: SimpleNamespace, site: Site, tags: list[str]) -> str | None:
    """What is wrong with the reply, if anything is."""
    try:
        if "status" in expect:
            assert reply.status == expect["status"], reply.body[:300]
        for header in expect.get("headers", ()):
            _check_header(header, reply.headers.get(header["name"].lower()))
        if "body" in expect:
            _check_body(expect["body"], reply, site, is_by_sense="kubo-html" in tags)
    except AssertionError as error:
        return f"{error} (status {reply.status}, headers {reply.headers})"
    return None


def _check_header(wanted: dict[str, Any], value: str | None) -> None:
    op = wanted["op"]
    if op == "absent":
        assert value is None, wanted
        return
    assert value is not None, wanted
    if op == "equals":
        assert value == wanted["value"], wanted
    elif op == "contains":
        assert wanted["value"] in value, wanted
    elif op == "matches":
        assert re.search(wanted["value"], value), wanted
    elif op == "cache_directives":
        directives = [part.strip() for part in value.split(",")]
        rules = dict(wanted["value"])
        ages = [int(part.removeprefix("max-age=")) for part in directives if part.startswith("max-age=")]
        assert max(ages) >= rules.pop("min_max_age"), wanted
        assert all(name in directives for name in rules), wanted
    else:
        assert op == "present", op


def _check_body(wanted: dict[str, Any], reply: SimpleNamespace, site: Site, *, is_by_sense: bool) -> None:
    op, body = wanted["op"], reply.body
    if op == "empty":
        assert body == b""
    elif op == "equals_block":
        assert body == site.store.get(Cid.parse(wanted["cid"]))
    elif op == "equals_bytes":
        assert (len(body), sha256(body).hexdigest()) == (wanted["length"], wanted["sha256"])
    elif op == "contains" and is_by_sense:
        _check_page(wanted, body.decode())
    elif op == "contains":
        assert all(value in body.decode() for value in wanted["values"])
        assert not any(value in body.decode() for value in wanted.get("not", ()))
    elif op == "car":
        _check_car(wanted, body)
    else:
        assert op == "multipart_ranges", op
        _check_parts(wanted, reply)


def _check_car(wanted: dict[str, Any], body: bytes) -> None:
    sections = read_car(body)
    assert all(cid.matches(data) for cid, data in sections)
    got, want = [cid for cid, _ in sections], [Cid.parse(text) for text in wanted["blocks"]]
    if wanted["match"] == "superset":
        assert set(got) >= set(want)
    elif wanted["order"] == "dfs":
        assert list(map(str, got)) == list(map(str, want))
    else:
        assert set(got) == set(want)


def _check_parts(wanted: dict[str, Any], reply: SimpleNamespace) -> None:
    boundary = reply.headers["content-type"].partition("boundary=")[2].encode()
    empty, *parts, end = reply.body.split(b"--" + boundary)
    assert (empty.strip(), end.strip()) == (b"", b"--")
    assert len(parts) == len(wanted["parts"])
    for part, want in zip(parts, wanted["parts"], strict=True):
        head, _, content = part.partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {want['range']}/{wanted['total']}".encode() in head
        assert wanted.get("content_type", "").encode() in head
        assert sha256(content.removesuffix(b"\r\n")).hexdigest() == want["sha256"]


class Anchors(HTMLParser):
    """The links of a page, with what they say: where each leads, without escapes and steps upwards."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._target: str | None = None
        self._text = ""
        self.feed(page)
        if self._target is not None:
            self.handle_endtag("a")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            url = urlsplit(dict(attrs)["href"] or "")
            self._target, self._text = normpath(unquote(url.path)), ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._target is not None:
            self.found.append((self._target, self._text.strip()))
            self._target = None


def _check_page(wanted: dict[str, Any], page: str) -> None:
    """By its sense: the texts are there, and links lead to the same places; only the markup is our own."""
    links = Anchors(page).found
    for value in wanted["values"]:
        for target, text in Anchors(value).found:
            assert any(target == ours and text in ("", said) for ours, said in links), (target, text, links)
        if "<a" not in value:
            assert value.replace(">foo<", "foo").replace(">bar<", "bar") in page, value
    for value in wanted.get("not", ()):
        assert not set(Anchors(value).found) & set(links)


def test_there_are_as_many_cases_as_were_counted() -> None:
    assert len(CASES) == 101
