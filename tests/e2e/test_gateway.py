"""The gateway of a real daemon, asked over a real socket by nothing but bytes."""

import socket

import pytest

from storage.cid import Cid

pytestmark = pytest.mark.e2e


def asked(url: str, path: str, *headers: str, method: str = "GET") -> tuple[str, bytes]:
    """The head of the reply, and its body."""
    host, _, port = url.removeprefix("http://").partition(":")
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        received = b""
        while data := connection.recv(1 << 16):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode().lower(), body


def test_what_is_public_is_served_and_nothing_else(new_node, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "page.html").write_text("<p>for everybody</p>")
    ada = new_node("ada")
    assert ada.up().ask("status")["gateway"] is None
    ada.down()
    ada.set({"gateway.is_enabled": "true", "gateway.port": "0"})
    url = ada.up().ask("status")["gateway"]
    public = ada.ask("add", str(tmp_path / "site"), "--visibility", "public")["cid"]
    secret = ada.ok("block", "put", "-", stdin="for me alone").strip()

    head, body = asked(url, f"/ipfs/{public}/page.html")
    assert head.startswith("http/1.1 200")
    assert "content-security-policy: sandbox" in head
    assert body == b"<p>for everybody</p>"

    head, body = asked(url, f"/ipfs/{public}", "Accept: application/vnd.ipld.raw")
    assert Cid.parse(public).matches(body)

    head, body = asked(url, f"/ipfs/{secret}")
    missing = str(Cid.of(b"never"))
    other_head, other_body = asked(url, f"/ipfs/{missing}")
    assert head.startswith("http/1.1 404")
    without_date = [[line for line in text.split("\r\n") if "date" not in line] for text in (head, other_head)]
    assert without_date[0] == without_date[1]
    assert body.replace(secret.encode(), b"") == other_body.replace(missing.encode(), b"")

    name = ada.ask("name", "publish", f"{public}/page.html")["name"]
    assert asked(url, f"/ipns/{name}")[1] == b"<p>for everybody</p>"
    assert asked(url, "/ipfs/x", method="POST")[0].startswith("http/1.1 405")
    ada.ok("share", public, "--visibility", "private")
    assert asked(url, f"/ipfs/{public}/page.html")[0].startswith("http/1.1 404")
    assert asked(url, f"/ipns/{name}")[0].startswith("http/1.1 404")
    assert ada.down() == 0
