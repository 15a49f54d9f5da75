"""The daemon from a Python program: every operation of its control API, and agents of one's own. See CLIENT.md."""

from daemon.client.agent import Agent, Asked, agent, serve
from daemon.client.control import Client, NotRunning, Refused

__all__ = ["Agent", "Asked", "Client", "NotRunning", "Refused", "agent", "serve"]
