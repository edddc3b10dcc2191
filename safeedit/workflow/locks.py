"""One process at a time in a folder: a lock file that says who holds it.

The lock itself is the operating system's (`flock`): it ends with the process that
holds it, however that process ends, so a lock file left by a killed run holds nobody
up. The file's text, pid, host and command, is there for people and for the message of
the one who waits.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows has no flock: there is no lock there
    fcntl = None  # type: ignore[assignment]


class Lock:
    """A context manager that waits until no other process is in its block.

    Args:
        path: the lock file; made with its folder, and left where it is.
        what: what is locked, for the message to the one who has to wait.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self._stream: TextIO | None = None

    def __enter__(self) -> "Lock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(self.path, "a+", encoding="utf-8")
        try:
            if not _take(stream, wait=False):
                print(f"{self.what}: {self.owner()}. Waiting for it.", file=sys.stderr)
                _take(stream, wait=True)
            stream.truncate(0)
            stream.write(json.dumps(_myself()) + "\n")
            stream.flush()
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.truncate(0)
            self._stream.close()  # ends the lock
            self._stream = None

    def owner(self) -> str:
        """Who holds the lock, in words."""
        try:
            seen = json.loads(self.path.read_text(encoding="utf-8"))
            return (
                f"process {seen['pid']} on {seen['host']} is at work here since "
                f"{seen['since']} ({seen['command']})"
            )
        except (OSError, ValueError, KeyError, TypeError):  # being written just now
            return "another process is at work here"


def _take(stream: TextIO, wait: bool) -> bool:
    """Whether the lock is ours now."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems
        print(
            f"{stream.name}: this file system has no locks ({error.strerror}). Start "
            "no second run here.",
            file=sys.stderr,
        )
    return True


def _myself() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
