"""What an agent is, as its host's user declares it in TOML. It stays on that node; the card tells others of it.

name = "summary"
role = "summary"
description = "Sums up what it is given"
capabilities = ["summarise"]
system = "You sum up texts in two sentences."
tools = ["file-read", "file-search"]

[model]
kind = "engine"            # or peer, openai, anthropic, scripted, attached
name = "smollm2"
adapter = "none"

[policy]
folder = "/home/me/docs"   # what the tools for files may touch
hosts = ["example.org"]    # what the tools for HTTP may ask

[[policy.servers]]         # tools of an MCP server, which the model knows as clock.TOOL
name = "clock"
command = ["uvx", "mcp-server-time"]   # or url = "https://example.org/mcp"

[memory]
episodes = 2               # what its model is told of its memory: see agents/memory/wish.py
"""

import tomllib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from agents.errors import AgentError
from agents.memory.wish import Memory, Wish, wish_of
from agents.workspace.runs.plan import Name

MAX_DECLARATION_BYTES: Final = 64 << 10
MAX_RULES: Final = 64
LEARNT: Final = "learnt"

Text = Annotated[str, Meta(max_length=4096)]
Word = Annotated[str, Meta(min_length=1, max_length=64)]


class BadAgent(AgentError):
    """That declares no agent. See what one is: covey agent add -h."""

    code = "bad_agent"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the scripted model says to a prompt with `has` in it."""

    has: Annotated[str, Meta(max_length=1000)]
    say: Annotated[str, Meta(max_length=8000)]


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The language model that an agent thinks with.

    engine: this node's, `name` one of its models, with any `adapter`, `learnt` for the one that it learnt last; peer:
    that of the peer `peer`; openai, anthropic: a server at `url` that speaks that API, `token_env` the variable that
    holds its token; scripted: none at all, `rules` and `style` say what it says, after `wait_s`; attached: a process
    of one's own (daemon/client).
    """

    kind: Literal["engine", "peer", "openai", "anthropic", "scripted", "attached"] = "engine"
    name: Annotated[str, Meta(max_length=200)] = ""
    adapter: Annotated[str, Meta(max_length=200)] = "none"
    peer: Annotated[str, Meta(max_length=512)] = ""
    url: Annotated[str, Meta(max_length=2048)] = ""
    token_env: Annotated[str, Meta(max_length=64)] = ""
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 16)] = 256
    temperature: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    timeout_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 300.0
    rules: Annotated[tuple[Rule, ...], Meta(max_length=MAX_RULES)] = ()
    style: Literal["count", "lead"] = "count"
    wait_s: Annotated[float, Meta(ge=0.0, le=600.0)] = 0.0


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An MCP server whose tools an agent may use: a program of its user's, or one at a URL.

    env: the variables of the daemon's that the program sees, beside PATH and the like; token_env: the variable with the
    token for the URL; tools: those that may be used, all of them where there are none.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}\Z")]
    command: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=4096)], ...], Meta(max_length=64)] = ()
    env: Annotated[tuple[Word, ...], Meta(max_length=32)] = ()
    url: Annotated[str, Meta(max_length=2048)] = ""
    token_env: Annotated[str, Meta(max_length=64)] = ""
    tools: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...], Meta(max_length=64)] = ()
    timeout_s: Annotated[float, Meta(gt=0.0, le=600.0)] = 30.0


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an agent may do beyond speaking. Whatever is not allowed is refused.

    folder: the one folder that tools for files see, read alone unless `may_write`; hosts: those that HTTP may be asked
    of, `*.example.org` for all below; token_env: the variable with the token for A2A agents on them; asks: the agents
    that it may ask; servers: whose tools it may use beside its own; may_run_python: code that its
    model writes, locked in; may_train, publishes_to: adapters of its own; decides: the keys, or beginnings of keys with
    `*` behind them, under which it may propose and vote for its host; max_calls: tools used for one answer.
    """

    folder: Annotated[str, Meta(max_length=4096)] = ""
    may_write: bool = False
    token_env: Annotated[str, Meta(max_length=64)] = ""
    hosts: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=255)], ...], Meta(max_length=64)] = ()
    may_reach_private: bool = False
    may_run_python: bool = False
    may_train: bool = False
    publishes_to: Literal["nobody", "flock", "public"] = "nobody"
    asks: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    decides: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...], Meta(max_length=16)] = ()
    servers: Annotated[tuple[Server, ...], Meta(max_length=8)] = ()
    max_calls: Annotated[int, Meta(ge=0, le=64)] = 4


class Declaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An agent."""

    name: Name
    role: Name = "agent"
    description: Annotated[str, Meta(max_length=1000)] = ""
    version: Annotated[str, Meta(min_length=1, max_length=32)] = "1"
    capabilities: Annotated[tuple[Word, ...], Meta(max_length=32)] = ()
    system: Text = ""
    model: Model = Model()
    tools: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    policy: Policy = Policy()
    memory: Wish = 0

    @property
    def remembers(self) -> Memory:
        """What its model is told of its memory."""
        return wish_of(self.memory)


def read_declaration(data: bytes, where: str = "the declaration") -> Declaration:
    """Raises: BadAgent."""
    if len(data) > MAX_DECLARATION_BYTES:
        raise BadAgent(f"{where} has {len(data)} bytes; {MAX_DECLARATION_BYTES} are allowed")
    try:
        found = msgspec.convert(tomllib.loads(data.decode()), Declaration)
    except (ValueError, msgspec.ValidationError) as error:
        raise BadAgent(f"{where} declares no agent: {error}") from None
    _check(found, where)
    return found


def written(declared: Declaration) -> bytes:
    """The declaration as TOML: `read_declaration` reads the same one out of it."""
    fields = msgspec.to_builtins(declared)
    return "".join(f"{name} = {_toml(value)}\n" for name, value in fields.items()).encode()


def _toml(value: Any) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case _:  # JSON's texts, numbers and booleans are TOML's too
            return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


def _check(found: Declaration, where: str) -> None:
    from agents.tools import tools

    if unknown := [name for name in found.tools if name not in tools()]:
        raise BadAgent(f"{where}: there is no tool {unknown[0]!r}; there are: {', '.join(tools())}")
    needs = {"peer": found.model.peer, "openai": found.model.url, "anthropic": found.model.url}
    kind = found.model.kind
    if kind in needs and not needs[kind]:
        raise BadAgent(f"{where}: a model of the kind {kind} needs `{'peer' if kind == 'peer' else 'url'}`")
    reads = any(name.startswith("file-") or name == "adapter-train" for name in found.tools)
    if reads and not found.policy.folder.startswith("/"):
        raise BadAgent(f"{where}: tools for files need policy.folder, a whole path: the one folder that they may see")
    if {"http-get", "a2a-ask"} & set(found.tools) and not found.policy.hosts:
        raise BadAgent(f"{where}: http-get and a2a-ask need policy.hosts: those that it may ask")
    if any(name.startswith("decision-") for name in found.tools) and not found.policy.decides:
        raise BadAgent(f"{where}: tools for decisions need policy.decides: the keys under which it may decide")
    if "python-run" in found.tools and not found.policy.may_run_python:
        raise BadAgent(f"{where}: python-run needs policy.may_run_python = true")
    _check_servers(found.policy.servers, where)


def _check_servers(servers: tuple[Server, ...], where: str) -> None:
    for server in servers:
        if bool(server.command) == bool(server.url):
            raise BadAgent(f"{where}: the MCP server {server.name} has either a `command` or a `url`")
        if server.url and not server.url.startswith(("http://", "https://")):
            raise BadAgent(f"{where}: the MCP server {server.name} has a `url` that is neither http nor https")
    if len({server.name for server in servers}) != len(servers):
        raise BadAgent(f"{where}: two MCP servers have one name")
