"""What more than one room of the agents' tests needs."""

from tests.agents.workspace.conftest import village

__all__ = ["village"]
