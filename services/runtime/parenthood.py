"""Children that do not outlive their parent, however it ends."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PARENT = os.getpid()


def die_with_parent() -> None:
    """To be called in a fresh child before exec: the kernel kills it when the thread that started it ends (prctl(2)).

    Elsewhere than on Linux it does nothing, and the child is only ended by an orderly stop.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1 and _PARENT != 1:  # the parent ended before the call
        os._exit(1)
