"""What work with agents can fail with; each docstring says what to do next."""

from agents.errors import AgentError


class UnknownAgent(AgentError):
    """There is no such agent. See those there are: covey agent ls WORKSPACE."""

    code = "unknown_agent"
