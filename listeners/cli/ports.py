"""Where this machine's services listen, whether somebody does, and whether it is they."""

import json
import socket
from collections.abc import Iterable
from pathlib import Path

from schemas.settings import Settings
from services.runtime.run_state import read_state


def actual_port(settings: Settings, name: str, configured: int) -> int:
    """The port that a running service has announced, else the configured one."""
    try:
        return int(json.loads(_announcement(settings, name).read_text())["port"])
    except (OSError, ValueError, KeyError):
        return configured


def held_by_another(settings: Settings, name: str) -> bool:
    """Whether `reclaim up` runs here and its service has not got the port: what answers there is somebody else's.

    A service announces its port when it has it. Single `reclaim serve` processes may have another state folder, so that
    nothing follows from a missing announcement of theirs.
    """
    has_run = (settings.state_dir / "run" / "supervisor.lock").is_file()  # asking makes one
    return has_run and read_state(settings.state_dir) is not None and not _announcement(settings, name).is_file()


def forget_ports(settings: Settings, names: Iterable[str]) -> None:
    """Take away what services of these names that were killed have announced."""
    for name in names:
        _announcement(settings, name).unlink(missing_ok=True)


def _announcement(settings: Settings, name: str) -> Path:
    return settings.state_dir / "run" / f"{name}.json"


def connects(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False
