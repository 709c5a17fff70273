"""Shuts a process in where there is no container, then becomes the program: Landlock for files, a seccomp filter for the rest.

It is started as a script by the sandbox's interpreter and imports nothing of ours. It fails rather than start a program that is not
shut in.

    python -I -S lock.py FILTER-TEMPLATE-FILE READABLE:READABLE -- command...
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every machine that the filter knows
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
EXECUTE, WRITE_FILE, READ_FILE, READ_DIRECTORY = 1, 2, 4, 8
RIGHTS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many kinds of access each version of Landlock handles
OWN_PROCESS = b"\xef\xbe\xad\xde"  # the placeholder in the template for the number of this process


class SockFprog(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def call(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    """A system call. Raises `OSError`."""
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return result


def landlock_version(libc: ctypes.CDLL) -> int:
    """The kernel's version of Landlock. Raises `OSError` where it has none."""
    return call(libc, CREATE_RULESET, None, ctypes.c_size_t(0), 1)


def restrict_files(libc: ctypes.CDLL, readable: list[str]) -> None:
    """Leaves the process what is readable, `/dev/null` and `/dev/urandom`; only `/dev/null` can be written to."""
    version = landlock_version(libc)
    handled = (1 << RIGHTS_OF_VERSION.get(min(version, 5), 13)) - 1
    network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    attributes = struct.pack("=QQQ", handled, network, scopes)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = call(libc, CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path in (*readable, "/dev/null", "/dev/urandom"):
        if not os.path.exists(path):
            continue
        allowed = EXECUTE | READ_FILE | (READ_DIRECTORY if os.path.isdir(path) else 0)
        allowed |= WRITE_FILE if path == "/dev/null" else 0
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(libc, ADD_RULE, rules, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    call(libc, RESTRICT_SELF, rules, 0)
    os.close(rules)


def main(arguments: list[str]) -> None:
    """Restricts this process for good and becomes the command."""
    with open(arguments[0], "rb") as file:
        code = file.read().replace(OWN_PROCESS, struct.pack("<I", os.getpid()))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses no_new_privs")
    restrict_files(libc, arguments[1].split(":"))
    program = SockFprog(len(code) // 8, code)
    if libc.prctl(SECCOMP, FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses the seccomp filter")
    os.execve(arguments[3], arguments[3:], dict(os.environ))


if __name__ == "__main__":
    main(sys.argv[1:])
