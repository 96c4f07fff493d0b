"""C-STORE SCU for the few objects of a result: one association, every object, a status for each."""

from collections.abc import Sequence
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.presentation import build_context

from services.runtime.scu import Peer, PeerLost, Timeouts, association

TIMEOUTS: Final = Timeouts(connect_s=10.0, answer_s=60.0)
_WARNING: Final = 0xB


class Refused(Exception):  # noqa: N818 - named for what the peer does
    """The peer does not take an object. The text holds status and kind, not the peer's own words, which may quote a patient."""


def deliver(peer: Peer, objects: Sequence[Dataset], *, calling_ae: str, timeouts: Timeouts = TIMEOUTS) -> dict[str, str]:
    """Send the objects; returns SOP class names with statuses once the peer has acknowledged all of them.

    Raises PeerAway, PeerBusy, PeerLost or PeerRefuses for the association, Refused for an object. Sending again is harmless:
    the UIDs and bytes are the same.
    """
    syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    contexts = [build_context(uid, syntaxes) for uid in dict.fromkeys(str(each.SOPClassUID) for each in objects)]
    with association(peer, contexts, calling_ae=calling_ae, timeouts=timeouts) as opened:
        accepted = {str(each.abstract_syntax) for each in opened.accepted_contexts}
        missing = [each.SOPClassUID.name for each in objects if str(each.SOPClassUID) not in accepted]
        if missing:
            raise Refused(f"{peer.name} does not accept {', '.join(missing)}: allow it there, or switch that kind of result off")
        return {each.SOPClassUID.name: _send(opened, peer, each) for each in objects}


def _send(opened: object, peer: Peer, instance: Dataset) -> str:
    try:
        response = opened.send_c_store(instance)  # type: ignore[attr-defined]
    except RuntimeError:
        raise PeerLost(f"{peer.name} ended the association before it took the result") from None
    if "Status" not in response:
        raise PeerLost(f"{peer.name} did not answer C-STORE in time, or ended the association")
    if response.Status != 0x0000 and response.Status >> 12 != _WARNING:
        raise Refused(f"{peer.name} answered C-STORE of {instance.SOPClassUID.name} with {response.Status:04X}")
    return f"{response.Status:04X}"
