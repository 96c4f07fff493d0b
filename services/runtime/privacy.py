"""What a process writes is its own user's only: archive, database and traces hold patients' data."""

import os
from typing import Final

UMASK: Final = 0o077


def keep_to_this_user() -> None:
    """To be called first by whatever starts a process or is one; children inherit it."""
    os.umask(UMASK)
