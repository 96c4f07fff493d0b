"""C-ECHO client, to find out whether somebody who speaks DICOM answers."""

from typing import Final

from pynetdicom import AE

from listeners.dicom.presentation import VERIFICATION

TIMEOUT_S: Final = 5.0


def echo(host: str, port: int, *, called_ae: str, calling_ae: str = "RECLAIM_SCU", timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the peer accepts an association and answers C-ECHO with success; never raises for a silent peer."""
    ae = AE(calling_ae)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout_s
    ae.add_requested_context(VERIFICATION)
    association = ae.associate(host, port, ae_title=called_ae)
    if not association.is_established:
        return False
    try:
        response = association.send_c_echo()
        return bool(response.get("Status", 0xFFFF) == 0x0000)
    except (RuntimeError, ValueError):
        return False
    finally:
        association.release()
