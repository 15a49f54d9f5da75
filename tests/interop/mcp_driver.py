"""The stock MCP client, in an environment of its own: lists a server's tools, calls some, prints what came as JSON."""

import asyncio
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


async def main():
    server = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:], env=dict(os.environ))
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        tools = (await session.list_tools()).tools
        said = await session.call_tool("ws_say", {"workspace": "village", "text": "hello"})
        asked = await session.call_tool("agent_ask", {"workspace": "village", "agent": "quick", "prompt": "One. Two."})
        ended = []

        async def timed(agent):
            await session.call_tool("agent_ask", {"workspace": "village", "agent": agent, "prompt": "Again."})
            ended.append(agent)

        await asyncio.gather(timed("slow"), timed("quick"))
        wrong = await session.call_tool("ws_get", {"workspace": "village", "key": "nothing"})
    print(
        json.dumps(
            {
                "tools": sorted(tool.name for tool in tools),
                "said": json.loads(said.content[0].text)["code"],
                "asked": json.loads(asked.content[0].text)["answer"],
                "ended": ended,
                "wrong": [getattr(wrong, "isError", getattr(wrong, "is_error", None)), wrong.content[0].text],
            }
        )
    )


asyncio.run(main())
