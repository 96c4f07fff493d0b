"""Calling peers over TLS: certificates are checked in both directions, and each refusal says what to look at."""

import shutil
import ssl
import subprocess
from contextlib import contextmanager

import pytest
from pynetdicom import AE, evt

from listeners.dicom.peers import verify
from listeners.dicom.send import send_to
from schemas.settings import PeerSettings
from services.runtime import scu
from services.runtime.errors import InvalidInput
from services.runtime.scu import PeerAway, Timeouts
from tests.pacs_world import make_study

QUICK = Timeouts(connect_s=3.0, answer_s=5.0)
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="NOT TESTED: no openssl on PATH to make certificates with")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("pacs", "own", "stranger"):
        subject = [
            "-subj",
            f"/CN={name}",
            "-addext",
            "subjectAltName=IP:127.0.0.1" if name == "pacs" else f"subjectAltName=DNS:{name}",
        ]
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        subprocess.run([*command, *subject, *files], check=True, capture_output=True)
    return folder


@contextmanager
def pacs(certificates, name="pacs", newest=None):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "own.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
    if newest:
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
    ae = AE("PACS")
    ae.add_supported_context("1.2.840.10008.1.1")
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.2")
    handlers = [(evt.EVT_C_STORE, lambda _event: 0x0000)]
    server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=context, evt_handlers=handlers)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def peer(certificates, number, own="own", trusted="pacs", **options):
    settings = {"ca_file": certificates / f"{trusted}.crt", "ae_title": "PACS", "host": "127.0.0.1", "port": number, "tls": True}
    if own:
        settings |= {"certificate_file": certificates / f"{own}.crt", "key_file": certificates / f"{own}.key"}
    return scu.peer({"pacs": PeerSettings(**settings | options)}, "pacs")


def test_a_peer_with_mutual_authentication_is_served(certificates, tmp_path):
    make_study(tmp_path, "tls", count=2)
    with pacs(certificates) as number:
        assert verify(peer(certificates, number), "RECLAIM", QUICK) < 3
        assert send_to(peer(certificates, number), tmp_path, calling_ae="RECLAIM").complete


@pytest.mark.parametrize("change", [{"own": "stranger"}, {"own": None}, {"trusted": "stranger"}])
def test_certificates_are_checked_on_both_sides(certificates, change):
    with pacs(certificates) as number, pytest.raises(PeerAway, match="certificate"):
        verify(peer(certificates, number, **change), "RECLAIM", QUICK)


def test_the_host_name_is_checked_unless_the_site_says_otherwise(certificates):
    with pacs(certificates, "stranger") as number:
        with pytest.raises(PeerAway):
            verify(peer(certificates, number, trusted="stranger"), "RECLAIM", QUICK)
        assert verify(peer(certificates, number, trusted="stranger", check_hostname=False), "RECLAIM", QUICK) < 3


def test_old_tls_is_not_spoken(certificates):
    with pacs(certificates, newest=ssl.TLSVersion.TLSv1_1) as number, pytest.raises(PeerAway):
        verify(peer(certificates, number), "RECLAIM", QUICK)


def test_a_plain_peer_is_told_apart_from_one_with_tls(certificates):
    with pacs(certificates) as number, pytest.raises(scu.PeerAway):
        verify(scu.Peer("pacs", "PACS", "127.0.0.1", number), "RECLAIM", QUICK)


def test_missing_files_are_named(certificates):
    with pytest.raises(InvalidInput, match="TLS files of peer PACS"):
        verify(peer(certificates, 1, ca_file=certificates / "absent.crt"), "RECLAIM", QUICK)
