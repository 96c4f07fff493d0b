"""Where this machine's services listen, and whether somebody does."""

import json
import socket
from pathlib import Path

from schemas.settings import Settings


def actual_port(settings: Settings, name: str, configured: int) -> int:
    """The port that a running service has announced, else the configured one."""
    file: Path = settings.state_dir / "run" / f"{name}.json"
    try:
        return int(json.loads(file.read_text())["port"])
    except (OSError, ValueError, KeyError):
        return configured


def connects(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False
