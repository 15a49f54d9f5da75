"""The stock A2A client, in an environment of its own: asks two agents, and prints what came of it as JSON."""

import asyncio
import json
import sys

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.types import a2a_pb2 as wire

quick_url, slow_url, token = sys.argv[1:4]


def request(name, **config):
    message = wire.Message(message_id=name, role=wire.ROLE_USER, parts=[wire.Part(text="One. Two. Three.")])
    return wire.SendMessageRequest(message=message, configuration=wire.SendMessageConfiguration(**config))


async def failure(call):
    try:
        await call
    except Exception as error:  # noqa: BLE001 - whatever the client makes of it
        return type(error).__name__
    return ""


async def main():
    found = {}
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=30) as http:
        card = await A2ACardResolver(http, quick_url).get_agent_card()
        found["card"] = card.name
        plain = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)
        async for event in plain.send_message(request("plain")):
            found["send"] = event.task.artifacts[0].parts[0].text
        streaming = ClientFactory(ClientConfig(httpx_client=http, streaming=True)).create(card)
        events = [event async for event in streaming.send_message(request("stream"))]
        found["stream"] = [event.WhichOneof("payload") for event in events]
        task = await streaming.get_task(wire.GetTaskRequest(id=events[0].task.id))
        found["get"] = wire.TaskState.Name(task.status.state)
        slow_card = await A2ACardResolver(http, slow_url).get_agent_card()
        slow = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(slow_card)
        async for event in slow.send_message(request("slow", return_immediately=True)):
            sent = event.task
        found["sent"] = wire.TaskState.Name(sent.status.state)
        ended = await slow.cancel_task(wire.CancelTaskRequest(id=sent.id))
        found["cancel"] = wire.TaskState.Name(ended.status.state)
        found["over"] = await failure(slow.cancel_task(wire.CancelTaskRequest(id=sent.id)))
        found["nothing"] = await failure(slow.get_task(wire.GetTaskRequest(id="nothing")))
    print(json.dumps(found))


asyncio.run(main())
