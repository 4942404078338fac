"""Run as a script: locks itself in, then becomes the program. Linux; Python's standard library alone.

    parent ─▶ this, new namespaces ─▶ fork: first process of its PID namespace ─▶ mounts, limits ─▶ exec the program

New namespaces hide the network, other processes and shared memory; the file system is read-only but for the working
directory, a tmpfs. As the process is no root inside, exec takes the rights away that the mounts needed.
"""

import ctypes
import json
import os
import resource
import signal
import sys

NEW_NS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 1 << 12, 1 << 14, 1 << 18
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NOBODY = 65534
HIDDEN = ("/tmp", "/var/tmp", "/run", "/home", "/proc")
DEVICES = ("null", "zero", "random", "urandom")
FAILED = 97
"""Exit code when the program could not be locked in."""

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def new_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    call("unshare", NEW_USER | NEW_NS | NEW_NET | NEW_PID | NEW_IPC | NEW_UTS)
    for file, text in [
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ]:
        with open(f"/proc/self/{file}", "w") as stream:
            stream.write(text)


def mount_tmpfs(path: str, num_bytes: int) -> None:
    call("mount", b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, f"size={num_bytes},mode=0700".encode())


def set_attributes(path: str, flags: int, attributes: int, cleared: int) -> None:
    packed = (ctypes.c_uint64 * 4)(attributes, cleared, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, packed, ctypes.sizeof(packed))


def shut_file_system(folder: str, num_bytes: int, needed: list[str]) -> None:
    """Read-only but for `folder`; what other programs leave in places such as /tmp is gone, sockets among it."""
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    devices = {f"/dev/{name}": os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    mount_tmpfs("/dev", 4096)
    for path, descriptor in devices.items():
        os.close(os.open(path, os.O_CREAT))
        call("mount", f"/proc/self/fd/{descriptor}".encode(), path.encode(), None, MS_BIND, None)
    for path in HIDDEN:
        if os.path.isdir(path) and not any(os.path.commonpath([path, one]) == path for one in [*needed, folder]):
            mount_tmpfs(path, 4096)
    set_attributes("/", AT_RECURSIVE, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0)
    for path, descriptor in devices.items():
        set_attributes(path, 0, 0, ATTR_NODEV)
        os.close(descriptor)
    mount_tmpfs(folder, num_bytes)
    os.chdir(folder)


def limit(job: dict) -> None:
    for name, most in [
        ("RLIMIT_AS", job["memory_bytes"]),
        ("RLIMIT_FSIZE", job["file_bytes"]),
        ("RLIMIT_CPU", job["cpu_s"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
    ]:
        resource.setrlimit(getattr(resource, name), (most, most))


def main() -> None:
    with os.fdopen(int(sys.argv[1])) as stream:
        job = json.load(stream)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a reward process that is killed takes its program along
    try:
        if job["isolated"]:
            new_namespaces()
            child = os.fork()
            if child:
                _, status = os.waitpid(child, 0)
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            shut_file_system(job["folder"], job["file_bytes"], job["needed"])
        os.chdir(job["folder"])
        with open("program.py", "w") as stream:
            stream.write(job["program"])
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        limit(job)
    except OSError as error:
        os.write(2, f"{error}".encode())
        os._exit(FAILED)
    environment = {"PATH": "/usr/bin:/bin", "HOME": job["folder"], "TMPDIR": job["folder"], "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, "-I", "program.py"], environment)


main()
