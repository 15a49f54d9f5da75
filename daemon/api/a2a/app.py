"""The A2A face as an ASGI application: each agent has a card and an endpoint, `/WORKSPACE/AGENT`.

A task is a run of one step in the workspace, named by the message: durable, answered by whichever node hosts the agent,
and answered once, however often the message is sent; another message under the same id is refused. Its artifact is
known by the signed entry that says it.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio
from starlette.types import Receive, Scope, Send

from agents.errors import AgentError
from agents.roster import asking
from agents.roster.announced import Announced, announced
from agents.roster.card import TEXT
from agents.roster.errors import UnknownAgent
from agents.workspace.runs.core import Run
from agents.workspace.runs.plan import CANCEL
from agents.workspace.workspace import Workspace
from daemon import wall
from daemon.api.a2a import wire
from daemon.api.a2a.wire import Call, Json, RpcError
from daemon.api.asgi import cancel_when_gone, finish
from daemon.api.openai.app import body_of
from daemon.api.openai.guard import check
from daemon.api.openai.problems import problem_of
from daemon.workspaces import plain
from protocols.errors import ProtocolError
from protocols.workspaces.entries import Put
from storage.cid import Cid
from storage.errors import StorageError

if TYPE_CHECKING:
    from daemon.app import Node

ANSWER_LIMIT_S: Final = 600.0
MAX_CALLS: Final = 64
CARD: Final = ".well-known/agent-card.json"

log = structlog.get_logger(__name__)


class A2aApp:
    """The application. `hosts` are the names under which it may be called, beside those of this machine."""

    def __init__(self, node: "Node", hosts: tuple[str, ...] = ()) -> None:
        self._node = node
        self._hosts = hosts
        self._n_calls = 0
        self._beginning = trio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        try:
            check(scope, self._node.openai.token, self._hosts)
            await self._serve(scope, receive, send)
        except RpcError as error:
            await _whole(send, wire.failure(None, error))
        except Exception as error:
            refusal = problem_of(error)
            if refusal.problem.code == "internal":
                log.error("a2a_request_failed", path=scope["path"], exc_info=error)
            await _send(send, refusal.status, refusal.body)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        workspace, _, rest = scope["path"].strip("/").partition("/")
        name, _, rest = rest.partition("/")
        one, agent = self._agent(workspace, name)
        if scope["method"] == "GET" and rest == CARD:
            await _whole(send, self._card(one, agent))
        elif scope["method"] == "POST" and not rest:
            call = wire.read_call(await body_of(receive))
            await self._called(call, one, agent, receive, send)
        else:
            raise AgentError(f"there is no {scope['method']} {scope['path'][:200]}: an agent has {CARD}")

    def _agent(self, workspace: str, name: str) -> tuple[Workspace, Announced]:
        one = self._node.workspaces.get(Cid.parse(workspace))
        found = next((agent for agent in announced(one.space) if agent.name == name), None)
        if found is None:
            raise UnknownAgent(f"there is no agent {name[:64]!r}. See: covey agent ls {one.cid}")
        return one, found

    def _card(self, one: Workspace, agent: Announced) -> Json:
        skills = agent.capabilities or (agent.role,)
        about = agent.description or f"An agent with the role {agent.role}"
        return {
            "name": agent.name,
            "description": about,
            "version": "1",
            "provider": {"organization": str(agent.host), "url": f"covey:{agent.host}"},
            "supportedInterfaces": [
                {
                    "url": f"{self._node.crew.a2a_url}/{one.cid}/{agent.name}",
                    "protocolBinding": "JSONRPC",
                    "protocolVersion": "1.0",
                }
            ],
            "capabilities": {"streaming": True, "pushNotifications": False, "extendedAgentCard": False},
            "securitySchemes": {"token": {"httpAuthSecurityScheme": {"scheme": "Bearer"}}},
            "securityRequirements": [{"schemes": {"token": {"list": []}}}],
            "defaultInputModes": [TEXT],
            "defaultOutputModes": [TEXT],
            "skills": [{"id": one, "name": one, "description": about, "tags": [agent.role]} for one in skills],
        }

    async def _called(self, call: Call, one: Workspace, agent: Announced, receive: Receive, send: Send) -> None:
        try:
            async with self._counted():
                match call.method:
                    case "SendStreamingMessage" | "SubscribeToTask":
                        await self._stream(call, one, agent, receive, send)
                    case "SendMessage" | "GetTask" | "CancelTask":
                        await _whole(send, wire.result(call, await self._answered(call, one, agent)))
                    case _ if "PushNotification" in call.method:
                        raise RpcError(wire.NO_PUSH, "there are no push notifications here: subscribe to the task")
                    case "ListTasks" | "GetExtendedAgentCard":
                        raise RpcError(wire.UNSUPPORTED, f"{call.method} is not supported")
                    case _:
                        raise RpcError(wire.NO_METHOD, f"there is no method {call.method}")
        except RpcError as error:
            await _whole(send, wire.failure(call.id, error))
        except trio.TooSlowError:
            await _whole(send, wire.failure(call.id, RpcError(wire.INTERNAL, "no answer in time: get the task")))
        except (AgentError, ProtocolError, StorageError) as error:
            await _whole(send, wire.failure(call.id, RpcError(wire.INTERNAL, str(error))))

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        if self._n_calls >= MAX_CALLS:
            raise RpcError(wire.INTERNAL, f"{MAX_CALLS} calls are under way: try again soon")
        self._n_calls += 1
        try:
            yield
        finally:
            self._n_calls -= 1

    async def _answered(self, call: Call, one: Workspace, agent: Announced) -> Json:
        if call.method == "SendMessage":
            wish = wire.read_send(call.params)
            name = await self._begun(wish, one, agent)
            with trio.fail_after(ANSWER_LIMIT_S):
                while (run := _run(one, name)).state not in asking.OVER and not wish.configuration.return_immediately:
                    await one.news(one.n_news)
            return {"task": _task(run)}
        name = wire.read_which(call.params).id
        run = _run(one, name)
        if call.method == "CancelTask":
            if run.state in asking.OVER:
                raise RpcError(wire.NOT_CANCELABLE, f"the task is over: {run.state}")
            await one.say(Put(key=run.task + CANCEL, value=True))
            run = _run(one, name)
        return _task(run)

    async def _begun(self, wish: wire.Send, one: Workspace, agent: Announced) -> str:
        """The name of the task, which is begun unless it was: a message that is sent again is that task, and another
        message under its id is none."""
        said = wish.message
        if said.task_id:
            raise RpcError(wire.UNSUPPORTED, "a task takes one message: send another without taskId")
        told = hashlib.sha256(f"{agent.name} {said.message_id}".encode()).hexdigest()
        name = f"a2a.{told[:24]}"
        me, unix_s = self._node.identity.peer_id, wall.unix_s()
        text = wish.text
        async with self._beginning:  # of two at once with one id the second finds the first
            await asking.begin(one, me, agent.name, text, name, ANSWER_LIMIT_S, unix_s)
        run = asking.state_of(one.space, name)
        if run is not None and not asking.is_asked(run, agent.name, text):
            raise RpcError(wire.BAD_PARAMS, "that messageId was used for another message: give each its own")
        return name

    async def _stream(self, call: Call, one: Workspace, agent: Announced, receive: Receive, send: Send) -> None:
        if call.method == "SubscribeToTask":
            name = wire.read_which(call.params).id
            if _run(one, name).state in asking.OVER:
                raise RpcError(wire.UNSUPPORTED, "the task is over: get it")
        else:
            name = await self._begun(wire.read_send(call.params), one, agent)
        await _begin(send, 200, b"text/event-stream")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            async with aclosing(_told(one, name)) as events:
                async for event in events:
                    data = msgspec.json.encode(wire.result(call, event))
                    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
            nursery.cancel_scope.cancel()
        await finish(send)


async def _told(one: Workspace, name: str) -> AsyncGenerator[Json, None]:
    """A task, and then what changes of it, to its end."""
    run = _run(one, name)
    yield {"task": _task(run)}
    before = run.state
    while run.state not in asking.OVER:
        seen = one.n_news
        run = _run(one, name)
        if run.state != before and run.state in asking.OVER:
            if run.state == "done":
                yield {"artifactUpdate": {**_ids(run), "artifact": _artifact(run), "append": False, "lastChunk": True}}
            yield {"statusUpdate": {**_ids(run), "status": _status(run)}}
            return
        await one.news(seen)


def _run(one: Workspace, name: str) -> Run:
    run = asking.state_of(one.space, name)
    if run is None or not name.startswith("a2a."):
        raise RpcError(wire.NO_TASK, f"there is no task {name!r}")
    why = asking.why_not(one.space, run, run.plan.steps[0].agent or "") if run.state == "done" else ""
    return run._replace(state="failed", why=why) if why else run


def _ids(run: Run) -> Json:
    return {"taskId": run.name, "contextId": run.name}


def _status(run: Run) -> Json:
    return wire.status(run.state, run.why, run.name, run.name)


def _task(run: Run) -> Json:
    found: Json = {"id": run.name, "contextId": run.name, "status": _status(run)}
    if run.state == "done":
        found["artifacts"] = [_artifact(run)]
    return found


def _artifact(run: Run) -> Json:
    view = run.steps[0]
    text = view.output if isinstance(view.output, str) else msgspec.json.encode(plain(view.output)).decode()
    return wire.artifact(text, str(view.commit.id) if view.commit is not None else run.name)


async def _whole(send: Send, value: Json) -> None:
    await _send(send, 200, msgspec.json.encode(value))


async def _send(send: Send, status: int, data: bytes) -> None:
    await _begin(send, status, b"application/json")
    await finish(send, data)


async def _begin(send: Send, status: int, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})


@asynccontextmanager
async def a2a_served(node: "Node") -> AsyncIterator[None]:
    """The face, where it is asked for. Raises: BadConfig when it cannot listen, BadHome."""
    from daemon.api.served import Patience, http_served

    wish = node.config.a2a
    await trio.to_thread.run_sync(node.openai.token.value)
    app = A2aApp(node, (wish.host, *wish.hosts))
    async with http_served(app, wish.host, wish.port, Patience(n_connections=wish.n_connections), section="a2a") as url:
        node.crew.a2a_url = url
        log.info("a2a_serves", url=url)
        yield
    node.crew.a2a_url = None
