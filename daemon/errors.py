"""What the running program can fail with. Each docstring is what the user reads, and says what to do next."""

from typing import ClassVar


class DaemonError(Exception):
    """Covey could not do that."""

    code: ClassVar[str] = "failed"


class BadHome(DaemonError):
    """The home folder cannot be used. Choose another with COVEY_HOME, or mend its permissions."""

    code = "bad_home"


class BadConfig(DaemonError):
    """The configuration is wrong. Mend config.toml; `covey config show` prints the defaults too."""

    code = "bad_config"


class BadSetting(BadConfig):
    """The setting is left as it was. `covey config show` tells what each is, and its value."""


class AlreadyRunning(DaemonError):
    """Another daemon runs in this home. Stop it with `covey down`, or choose another COVEY_HOME."""

    code = "already_running"


class BadRequest(DaemonError):
    """The request does not fit the operation. daemon/CONTROL.md lists every operation and its parameters."""

    code = "bad_request"


class UnknownOperation(DaemonError):
    """There is no such operation. daemon/CONTROL.md lists every one."""

    code = "unknown_operation"


class NotFoundHere(DaemonError):
    """There is nothing by that name on this node."""

    code = "not_found"


class Unfit(DaemonError):
    """The operation does not fit what is there."""

    code = "unfit"


class BadInput(DaemonError):
    """What was given does not have the form that it is said to have. Mend it, or name the form that it has."""

    code = "bad_input"
