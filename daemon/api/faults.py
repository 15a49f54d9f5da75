"""From an error to what a client of the control API is told: status, stable code, text, and what to do next."""

import errno
from dataclasses import dataclass
from typing import Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_RUNNING: Final = 3
EXIT_REFUSED: Final = 4
EXIT_NOT_FOUND: Final = 5
EXIT_INTERRUPTED: Final = 130

EXITS: Final = {
    EXIT_OK: "it worked",
    EXIT_FAILED: "it failed; the line on stderr says why and what to do next",
    EXIT_USAGE: "the command line is wrong",
    EXIT_NOT_RUNNING: "no daemon runs in this home",
    EXIT_REFUSED: "refused: not trusted, not for this node, forged, replayed or expired",
    EXIT_NOT_FOUND: "there is no such thing here, or no peer has it",
    EXIT_INTERRUPTED: "interrupted",
}

ANSWER_HEADER: Final = "Covey-Answer"
"""What an answer is called where the events tell of it."""

# code -> HTTP status. A code that is not listed is a failure: 500.
STATUSES: Final = {
    "bad_request": 400,
    "bad_config": 400,
    "bad_flock_key": 400,
    "bad_input": 400,
    "invalid_cid": 400,
    "invalid_car": 400,
    "invalid_peer_id": 400,
    "invalid_name": 400,
    "invalid_text": 400,
    "unsafe_link": 400,
    "invalid_option": 400,
    "invalid_request": 400,
    "malformed": 400,
    "bad_links": 400,
    "bad_sequence": 400,
    "unlinked": 400,
    "full": 409,
    "bad_data": 400,
    "bad_task": 400,
    "bad_plan": 400,
    "bad_run": 400,
    "effect_failed": 500,
    "bad_agent": 400,
    "bad_memory": 400,
    "bad_state": 400,
    "already_attached": 409,
    "nothing_asked": 409,
    "tool_failed": 500,
    "tool_refused": 403,
    "bad_tensors": 400,
    "bad_option": 400,
    "bad_compressed": 400,
    "not_finite": 400,
    "bad_ledger": 500,
    "bad_vault": 500,
    "unread_journal": 500,
    "own_events_missing": 503,
    "false_shares": 409,
    "false_parcel": 409,
    "still_masked": 404,
    "budget_spent": 409,
    "cannot_aggregate": 400,
    "unknown_codec": 400,
    "not_a_file": 400,
    "not_a_folder": 400,
    "not_unixfs": 400,
    "not_sealed": 400,
    "special_file": 400,
    "bad_recipient": 400,
    "untrusted": 403,
    "relay_refused": 403,
    "forged": 403,
    "replayed": 403,
    "expired": 403,
    "wrong_base": 403,
    "bad_adapter": 403,
    "bad_artifact": 403,
    "bad_model": 403,
    "protocol_refused": 403,
    "peer_refused": 403,
    "tampered": 403,
    "misstated": 403,
    "no_grant": 403,
    "no_member": 403,
    "unmet_needs": 403,
    "not_granted": 403,
    "no_key": 403,
    "foreign": 403,
    "secure_refused": 403,
    "not_a_recipient": 403,
    "broken_seal": 403,
    "unknown_operation": 404,
    "not_found": 404,
    "no_such_name": 404,
    "not_here": 404,
    "unknown_name": 404,
    "unknown_chat": 404,
    "unknown_experiment": 404,
    "let_go": 404,
    "unknown_workspace": 404,
    "unknown_agent": 404,
    "unknown_memory": 404,
    "no_origin": 404,
    "untrue": 500,
    "no_such_key": 404,
    "undecided": 404,
    "no_such_file": 404,
    "no_providers": 404,
    "unfit": 409,
    "no_adapters": 409,
    "unknown_seal": 409,
    "already_running": 409,
    "already_training": 409,
    "unlike_run": 409,
    "cannot_resume": 409,
    "target_exists": 409,
    "too_large": 413,
    "too_big": 413,
    "too_long": 413,
    "in_use": 423,
    "too_many_authors": 429,
    "too_many_chats": 429,
    "too_many_questions": 429,
    "quota_spent": 429,
    "engine_busy": 429,
    "backend_busy": 429,
    "too_many_experiments": 429,
    "too_many_workspaces": 429,
    "workspace_full": 409,
    "dial_failed": 502,
    "stream_broken": 502,
    "peer_failed": 502,
    "peer_busy": 503,
    "invalid_block": 502,
    "kubo_unreachable": 502,
    "kubo_refused": 502,
    "http_failed": 502,
    "backend_unreachable": 502,
    "backend_refused": 502,
    "backend_failed": 502,
    "engine_missing": 503,
    "engine_died": 503,
    "timed_out": 504,
    "store_full": 507,
    "over_quota": 507,
    "disk_full": 507,
    "no_room": 507,
    "cannot_collect": 409,
    "blocks_damaged": 500,
    "refuted": 500,
    "differs": 500,
}
# Only what was refused for whom it comes from, or for what it is, ends so: another state (409) is a failure.
_EXIT_OF_STATUS: Final = {403: EXIT_REFUSED, 404: EXIT_NOT_FOUND}
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong, as the control API says it: `{"error": {"code", "text", "hint"}}`."""

    code: str
    text: str
    hint: str = ""

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return STATUSES.get(self.code, 500)

    @property
    def exit_code(self) -> int:
        """The exit code that the command line ends with."""
        return _EXIT_OF_STATUS.get(self.status, EXIT_FAILED)


def fault_of(error: BaseException) -> Fault:
    """Tell an error in words. One that Covey does not know is a bug: its text stays in the log."""
    if isinstance(error, BaseExceptionGroup):
        return fault_of(_gravest(error))
    if isinstance(error, TimeoutError) or type(error).__name__ == "TooSlowError":
        return Fault("timed_out", "it took too long", "Try again, or raise the timeout.")
    if isinstance(error, FileNotFoundError):
        return Fault("no_such_file", f"there is no file {error.filename}", "Check the path.")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in _NO_ROOM:
            from storage.errors import DiskFull

            return Fault("disk_full", f"{where}{error.strerror or error}", _hint(DiskFull))
        return Fault("os_error", f"{where}{error.strerror or error}", "Check the path and its permissions.")
    code = _code_of(error)
    if code is None:
        return Fault("internal", f"a bug in Covey: {type(error).__name__}", "Please report it with the log: covey logs")
    hint = _hint(type(error))
    text = str(error) or hint
    # A docstring of one sentence says only what happened; nor is a hint needed where the text names a command already.
    return Fault(code, text, "" if text == hint or ". " not in hint or "covey " in text else hint)


def _hint(kind: type[BaseException]) -> str:
    return " ".join((kind.__doc__ or "").split())


def _code_of(error: BaseException) -> str | None:
    from agents.errors import AgentError
    from daemon.errors import DaemonError
    from protocols.errors import Local, ProtocolError, Remote
    from storage.errors import StorageError

    if isinstance(error, AgentError | DaemonError | Remote):
        return error.code
    if isinstance(error, StorageError | ProtocolError) and not isinstance(error, Local):
        return _snake(type(error).__name__)
    return None


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")


def _gravest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    # Of several errors at once a bug is the one to tell: the others usually follow from it.
    return max(group.exceptions, key=lambda error: fault_of(error).status)
