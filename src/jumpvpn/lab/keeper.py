"""The process that holds a lab's namespaces open and ends everything inside them when its owner is gone.

Namespaces are anonymous: they exist as file descriptors of this process, so none can be left behind. The owner holds
the writing end of our standard input; its end (close, exit, SIGKILL) is the signal to tidy up.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from jumpvpn.lab.linux import CLONE_NEWNET, CLONE_NEWUSER, unshare
from jumpvpn.lab.processes import RECORD, carries_tag, end_processes, read_text, start_ticks


def main() -> None:
    """Run as `python -m jumpvpn.lab.keeper DIRECTORY OWNER NAMESPACE...`; prints one JSON line on what was made."""
    directory, owner, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        user = _become_privileged()
        namespaces = {name: _new_network_namespace() for name in names}
        record = _write_record(directory, owner, user, namespaces)
    except OSError as error:
        print(json.dumps({"error": explain(error)}), flush=True)
        sys.exit(1)
    inodes = {os.fstat(fd).st_ino for fd in namespaces.values()}
    signal.signal(signal.SIGTERM, lambda *_: os.close(0))
    print(json.dumps(record), flush=True)
    _wait_for_owner()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A program that is just being started carries the tag before it enters its namespace.
    end_processes(lambda pid: _network_inode(pid) in inodes or carries_tag(pid, directory.name))
    shutil.rmtree(directory, ignore_errors=True)


def explain(error: OSError) -> str:
    """Say which kernel setting or right is missing for a lab; source: user_namespaces(7), unshare(2)."""
    causes = [
        f"{path} is {value}"
        for path, bad in (
            ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
            ("/proc/sys/user/max_user_namespaces", "0"),
            ("/proc/sys/user/max_net_namespaces", "0"),
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
        )
        if (value := read_text(path)) == bad
    ]
    cause = "; ".join(causes) or "a container's or the kernel's policy forbids new user and network namespaces"
    return f"no network namespace can be made ({error.strerror}): {cause}. Run as root, or allow user namespaces."


def _become_privileged() -> int | None:
    """Return the descriptor of a new user namespace, or None if this process may make network namespaces as it is."""
    try:
        unshare(CLONE_NEWNET)
    except PermissionError:
        uid, gid = os.getuid(), os.getgid()
        unshare(CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        return os.open("/proc/self/ns/user", os.O_RDONLY)
    return None


def _new_network_namespace() -> int:
    unshare(CLONE_NEWNET)
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def _write_record(directory: Path, owner: int, user: int | None, namespaces: dict[str, int]) -> dict[str, object]:
    """Make the lab's directory and its record appear as one, so that no sweep ever sees half of it."""
    record: dict[str, object] = {
        "id": directory.name,
        "keeper": os.getpid(),
        "started": start_ticks(os.getpid()),
        "owner": owner,
        "user": user,
        "namespaces": namespaces,
    }
    draft = directory.with_name(f".{directory.name}")
    draft.mkdir(mode=0o700)
    (draft / RECORD).write_text(json.dumps(record))
    draft.rename(directory)
    return record


def _wait_for_owner() -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:  # closed by our own SIGTERM handler
        pass


def _network_inode(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


if __name__ == "__main__":
    main()
