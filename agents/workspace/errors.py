"""What work in a workspace can fail with; each docstring says what to do next."""

from agents.errors import AgentError


class UnknownWorkspace(AgentError):
    """There is no such workspace here. See those there are: covey ws ls. To take part: covey ws join CID."""

    code = "unknown_workspace"


class NotGranted(AgentError):
    """No grant of this node's covers that. See who may do what: covey ws members WORKSPACE."""

    code = "not_granted"


class NoOrigin(AgentError):
    """No workspace here says where that comes from. Name an entry, or content of one: covey ws log WORKSPACE."""

    code = "no_origin"


class Untrue(AgentError):
    """What is said of the origin does not hold."""

    code = "untrue"


class TooManyWorkspaces(AgentError):
    """This node follows as many workspaces as it can. Let go of one first: covey ws forget WORKSPACE."""

    code = "too_many_workspaces"


class WorkspaceFull(AgentError):
    """It holds as much as this node keeps. Allow more: workspaces.max_mib, on each member's node; or begin another."""

    code = "workspace_full"


class NoSuchKey(AgentError):
    """The key has no value. See those that have: covey ws get WORKSPACE."""

    code = "no_such_key"


class NoKey(AgentError):
    """No admin has given this node the key of that private workspace yet. It comes as soon as one can be reached."""

    code = "no_key"
