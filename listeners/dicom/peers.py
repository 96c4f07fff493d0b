"""The DICOM systems that we call (settings dicom.peers), and C-ECHO to them."""

import time

from pynetdicom.presentation import build_context

from listeners.dicom.presentation import VERIFICATION
from services.runtime.scu import Peer, PeerLost, PeerRefuses, Timeouts, association, status_words

ECHO_TIMEOUTS = Timeouts(connect_s=5.0, answer_s=10.0)


def verify(peer: Peer, calling_ae: str, timeouts: Timeouts = ECHO_TIMEOUTS) -> float:
    """Verification (PS3.4 Annex A): seconds from connecting to the answer. Raises PeerAway, PeerBusy, PeerLost or PeerRefuses."""
    began = time.monotonic()
    with association(peer, [build_context(VERIFICATION)], calling_ae=calling_ae, timeouts=timeouts) as opened:
        try:
            response = opened.send_c_echo()
        except (RuntimeError, ValueError):
            raise PeerLost(f"{peer.address} ended the association before it answered C-ECHO") from None
        if "Status" not in response:
            raise PeerLost(f"{peer.address} accepted the association but did not answer C-ECHO in time")
        if response.Status != 0x0000:
            raise PeerRefuses(f"{peer.address} answered C-ECHO with {status_words(response)}")
    return time.monotonic() - began
