"""C-ECHO client, to find out whether somebody who speaks DICOM answers."""

from typing import Final

from listeners.dicom.peers import verify
from services.runtime.errors import InvalidInput, Transient
from services.runtime.scu import Peer, Timeouts

TIMEOUT_S: Final = 5.0


def echo(host: str, port: int, *, called_ae: str, calling_ae: str = "RECLAIM_SCU", timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the peer accepts an association and answers C-ECHO with success; never raises for a silent peer."""
    try:
        verify(Peer(f"{host}:{port}", called_ae, host, port), calling_ae, Timeouts(timeout_s, timeout_s))
    except (InvalidInput, Transient):
        return False
    return True
