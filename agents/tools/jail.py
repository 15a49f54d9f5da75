"""What runs code that nobody vouches for: this file, as a process of its own, which locks itself in before it begins.

python -I -S jail.py SCRATCH LIBRARY... < CODE: nothing is imported but the standard library, nothing is inherited.
Once locked, and it cannot be undone:

- Landlock: files are read in the standard library and the system's libraries, and written in SCRATCH. Nothing else is
  there to be opened: no home, no keys, no /proc, no socket in a folder.
- seccomp: of the kernel's calls a list of those that a calculation needs. There is no socket, no other process to be
  started, signalled or looked into, no change of a file's mode or owner, no limit that could be raised.
- rlimits: processor time, memory, length of files, open files. One process, so these hold for all that it does.
- A timer that kills: its parent ends it long before, unless that has died.

A lock that cannot be had ends the process before it has read any code. What is left open: whether a file is there, and
how long it is, can be asked of the kernel by who knows its path (Landlock does not hide that).
Source: the kernel's documentation of Landlock (userspace-api/landlock) and of seccomp filters.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import time
import traceback
from typing import Any, Final, NoReturn

NO_JAIL: Final = 97  # the exit code of who could not lock itself in; code that runs may end with it too, so:
LOCKED: Final = b"\x06locked\n"  # what is written first once it is, before any code is read
MIN_ABI: Final = 3  # from which on Landlock knows of truncating
CPU_S: Final = 10
CLOCK_S: Final = 60
MEMORY_BYTES: Final = 512 << 20
FILE_BYTES: Final = 16 << 20
OPEN_FILES: Final = 64
MAX_CODE_BYTES: Final = 64 << 10

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_READ: Final = 1 << 2 | 1 << 3
_WRITE: Final = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 14
_REFER: Final = 1 << 13  # to rename from one folder of the scratch to another
_EVERY_FILE_RIGHT: Final = (1 << 15) - 1
_FILES: Final = {"/etc/ld.so.cache": 1 << 2, "/dev/null": 1 << 1 | 1 << 2, "/dev/zero": 1 << 2, "/dev/urandom": 1 << 2}

_NO_NEW_PRIVILEGES, _SECCOMP = 38, 22
_X86_64: Final = 0xC000003E
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCH = 0, 4
_CLONE_THREAD: Final = 0x10000

# By their numbers on x86_64.
_CALLS: Final = (
    *(0, 1, 3, 8, 17, 18, 19, 20, 40, 74, 75, 76, 77, 285, 295, 296, 326),  # read, write, close, lseek, sync, truncate
    *(2, 4, 5, 6, 21, 89, 257, 262, 267, 269, 332, 439, 217),  # open, stat, access, readlink, getdents64
    *(82, 83, 84, 87, 258, 263, 264, 316, 79, 80, 81, 95),  # rename, mkdir, rmdir, unlink, getcwd, chdir, umask
    *(9, 10, 11, 12, 25, 26, 27, 28),  # mmap and its kin, brk, mremap, madvise
    *(13, 14, 15, 127, 128, 130, 131),  # signals that it gets: handlers, masks
    *(7, 23, 270, 271, 22, 293, 32, 33, 292, 213, 232, 233, 281, 291, 284, 290),  # poll, pipe, dup, epoll, eventfd
    *(45, 48, 51, 52, 55),  # recvfrom and its kin, on the two ends of its own socketpair
    *(39, 102, 104, 107, 108, 110, 111, 186, 63, 97, 98, 99, 100),  # who and where it is, what it used
    *(35, 96, 201, 228, 229, 230),  # the time, and to wait
    *(24, 202, 204, 218, 273, 324, 334, 158, 318, 60, 231, 219),  # threads, random numbers, the end
)
_IOCTL, _FCNTL, _PAIR, _SEND, _CLONE, _CLONE3, _PRLIMIT = 16, 72, 53, 44, 56, 435, 302
_PRCTL, _TIMER_CREATE, _TIMER_SET = 157, 222, 223
_FCNTL_COMMANDS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
_IOCTL_COMMANDS: Final = (0x5401, 0x5421, 0x5450, 0x5451)  # is it a terminal, may it block, is it closed on exec
_UNIX: Final = 1


class CannotLock(Exception):
    """A lock that this machine does not have."""


def why_not() -> str:
    """Why no sandbox can be had on this machine; nothing where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 1 << 32:
        return f"it is made for Linux on x86_64, and this is {sys.platform} on {platform.machine()}"
    if (abi := _abi()) < MIN_ABI:
        return f"it needs Landlock {MIN_ABI} (Linux 6.2), and this kernel has {max(abi, 0) or 'none'}"
    return ""


def _abi() -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, 1))


def _call(what: str, *arguments: Any) -> int:
    found = int(ctypes.CDLL(None, use_errno=True).syscall(*arguments))
    if found < 0:
        raise CannotLock(f"{what}: {os.strerror(ctypes.get_errno())}")
    return found


def _lock_files(scratch: str, libraries: list[str]) -> None:
    abi = _abi()
    files = _EVERY_FILE_RIGHT | (1 << 15 if abi >= 5 else 0)
    rules = struct.pack("=QQQ", files, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    ruleset = _call("Landlock", _CREATE, rules, ctypes.c_size_t(len(rules) if abi >= 6 else 16 if abi >= 4 else 8), 0)
    rights = dict.fromkeys(libraries, _READ) | _FILES | {scratch: _READ | _WRITE | _REFER}
    for path, right in rights.items():
        try:
            below = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        _call(f"Landlock, {path}", _ADD, ruleset, 1, struct.pack("=Qi", right, below), 0)
        os.close(below)
    _call("Landlock", _RESTRICT, ruleset, 0)
    os.close(ruleset)


def _filter() -> bytes:
    """The kernel's calls that may be made, as a program of the kernel's own machine."""

    def op(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_so, if_not, value)

    def low(argument: int) -> int:
        return 16 + 8 * argument

    refuse, allow = op(_RETURN, _ERRNO | _EPERM), op(_RETURN, _ALLOW)

    def only(call: int, *checks: bytes) -> bytes:
        """What is done for one call alone; each check is passed over where its call is another."""
        body = b"".join(checks)
        return op(_EQUAL, call, 0, len(body) // 8) + body

    def one_of(argument: int, values: tuple[int, ...]) -> bytes:
        return op(_LOAD, low(argument)) + b"".join(op(_EQUAL, one, 0, 1) + allow for one in values) + refuse

    thread = op(_LOAD, low(0)) + op(_ANY_BIT, _CLONE_THREAD, 0, 1) + allow + refuse

    def nothing(argument: int) -> bytes:
        halves = op(_LOAD, low(argument)), op(_LOAD, low(argument) + 4)
        return halves[0] + op(_EQUAL, 0, 0, 3) + halves[1] + op(_EQUAL, 0, 0, 1) + allow + refuse

    return b"".join(
        (
            op(_LOAD, _ARCH), op(_EQUAL, _X86_64, 1, 0), op(_RETURN, _KILL), op(_LOAD, _NUMBER),
            only(_CLONE, thread),
            only(_CLONE3, op(_RETURN, _ERRNO | _ENOSYS)),  # then threads are begun by the older call
            only(_PRLIMIT, nothing(2)),  # no limit is set
            only(_SEND, nothing(4)),  # to the other end, not to an address
            only(_PAIR, one_of(0, (_UNIX,))),
            only(_IOCTL, one_of(1, _IOCTL_COMMANDS)),
            only(_FCNTL, one_of(1, _FCNTL_COMMANDS)),
            *(op(_EQUAL, call, 0, 1) + allow for call in _CALLS),
            refuse,
        )
    )  # fmt: skip


def _lock_calls() -> None:
    code = _filter()
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    _call("seccomp", _PRCTL, _SECCOMP, 2, program, 0, 0)


def _limit() -> None:
    for which, most in (
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (most, most + 1 if which == resource.RLIMIT_CPU else most))


def _kill_later() -> None:
    made = ctypes.c_int()
    kill = struct.pack("=Qii48x", 0, signal.SIGKILL, 0)
    _call("a timer", _TIMER_CREATE, time.CLOCK_MONOTONIC, kill, ctypes.byref(made))
    _call("a timer", _TIMER_SET, made.value, 0, struct.pack("=qqqq", 0, 0, CLOCK_S, 0), None)


def lock(scratch: str, libraries: list[str]) -> None:
    """Lock this process in, for ever. Raises: CannotLock, OSError, ValueError."""
    if why := why_not():
        raise CannotLock(why)
    _limit()
    _kill_later()
    _call("no new privileges", _PRCTL, _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _lock_files(scratch, libraries)
    _lock_calls()


def main() -> NoReturn:
    """Lock this process in, and run what stands on its stdin."""
    scratch, *libraries = sys.argv[1:]
    os.chdir(scratch)
    try:
        lock(scratch, libraries)
    except (CannotLock, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(NO_JAIL)
    os.write(1, LOCKED)
    code = sys.stdin.buffer.read(MAX_CODE_BYTES + 1)
    sys.argv = ["code"]
    # It is its own module, and sees none of this one's names.
    try:
        exec(compile(code, "code", "exec"), {"__name__": "__main__"})  # noqa: S102 - what this process is for
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - told without this file's own frame
        sys.stdout.flush()
        traceback.print_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
