"""Who may call, from where, and what they may store; TLS with mutual authentication."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import time

import pytest

from listeners.cli import checks
from listeners.dicom.connection import tls_context
from listeners.dicom.echo import echo_ourselves
from listeners.dicom.scp import is_within, networks
from schemas.settings import DicomSettings
from services.runtime.errors import InvalidInput
from tests.dicom_listener import CT, EXPLICIT, MR, Listener, associated, dcmtk, encoded, make, one, refused, store
from tests.dicom_wire import ACCEPT, accepted, association_request, connect, receive_pdu, rejection


@pytest.fixture
def own(tmp_path, sqlite_url):
    def start(**dicom):
        return Listener(tmp_path / "state", sqlite_url, **dicom)

    return start


def test_calling_and_called_titles(own, caplog):
    with own(calling_ae_titles=("CT1", "MR 2"), called_ae_titles=("RECLAIM",)) as listener:
        assert rejection(listener.port, calling="CT1") is None
        assert rejection(listener.port, calling="MR 2") is None
        assert rejection(listener.port, calling="CT2") == (1, 1, 3)
        assert rejection(listener.port, calling="CT1", called="PACS") == (1, 1, 7)
    assert "DCM-313" in caplog.text
    assert "DCM-314" in caplog.text


def test_an_address_outside_the_networks_is_not_spoken_to(own):
    with own(allowed_networks=("10.0.0.0/8", "fd00::/8")) as listener, connect(listener.port) as connection:
        connection.sendall(association_request())
        assert receive_pdu(connection) == (None, b"")
    with own(allowed_networks=("127.0.0.0/8",)) as listener:
        assert rejection(listener.port) is None


@pytest.mark.parametrize(
    ("address", "inside"),
    [("10.1.2.3", True), ("11.1.2.3", False), ("::ffff:10.9.9.9", True), ("fe80::1%eth0", True), ("2001:db8::1", False)],
)
def test_networks(address, inside):
    assert is_within(address, networks(("10.0.0.0/8", "fe80::/10"))) is inside


def test_ipv6_is_served(own):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("NOT TESTED: this machine has no IPv6")
    with own(host="::1", allowed_networks=("::1/128",)) as listener, socket.create_connection(("::1", listener.port), 10) as peer:
        peer.sendall(association_request())
        assert receive_pdu(peer)[0] == ACCEPT


def test_associations_of_one_address_have_their_own_limit(own):
    with own(max_associations_per_peer=1) as listener, accepted(listener.port):
        assert rejection(listener.port) == (2, 3, 2)


def test_a_private_class_that_the_site_names_is_stored_like_any_other(own, tmp_path):
    private = "1.3.12.2.1107.5.9.1"
    dataset = make("private-class", tmp_path)
    dataset.SOPClassUID = private
    with own(sop_classes=(private,)) as listener:
        assert one(listener, encoded(dataset), dataset.SOPInstanceUID, private).Status == 0
        assert listener.instance(dataset.SOPInstanceUID).sop_class_uid == private


def test_a_site_that_takes_only_some_classes_is_offered_no_others(own, tmp_path):
    dataset = make("only-class", tmp_path)
    with own(only_sop_classes=(MR,)) as listener, associated(listener.port, (MR, EXPLICIT), (CT, EXPLICIT)) as association:
        assert [context.abstract_syntax for context in association.accepted_contexts] == [MR]
        assert store(association, encoded(dataset), dataset.SOPInstanceUID).Status == 0


def test_a_title_may_store_only_its_classes(own, tmp_path):
    image = make("class-policy", tmp_path, "CT")
    with own(sop_classes_by_ae={"TEST": (MR,)}) as listener:
        refused(listener, [], one(listener, encoded(image), image.SOPInstanceUID, CT), 0x0124)
        other = make("class-policy-mr", tmp_path)
        assert one(listener, encoded(other), other.SOPInstanceUID).Status == 0


def test_other_application_contexts_and_versions_are_rejected(own):
    with own() as listener:
        request = bytearray(association_request())
        request[request.index(b"1.2.840.10008.3.1.1.1") + 20] = ord("2")
        assert _rejected(listener, request) == (1, 1, 2)
        request = bytearray(association_request())
        request[6:8] = b"\x00\x02"
        assert _rejected(listener, request) == (1, 2, 2)


def _rejected(listener, request):
    with connect(listener.port) as connection:
        connection.sendall(request)
        return tuple(receive_pdu(connection)[1][1:4])


def test_the_senders_order_of_syntaxes_decides_and_implicit_comes_last(own):
    jpeg, explicit, implicit = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
    proposals = [(CT, implicit, jpeg, explicit), (CT, implicit, explicit), (CT, implicit), (CT, "1.2.3")]
    with own() as listener, connect(listener.port) as connection:
        connection.sendall(association_request(*proposals))
        _, body = receive_pdu(connection)
    chosen = [(item[2], item[8:].decode()) for item in _context_results(body)]
    assert [syntax for result, syntax in chosen if result == 0] == [jpeg, explicit, implicit]
    assert [result for result, _ in chosen] == [0, 0, 0, 4]


def _context_results(body):
    """Bodies of the presentation context items (PS3.8 §9.3.3.2) of an A-ASSOCIATE-AC."""
    at = 68
    while at < len(body):
        length = int.from_bytes(body[at + 2 : at + 4], "big")
        if body[at] == 0x21:
            yield body[at + 4 : at + 4 + length]
        at += 4 + length


# TLS


def _openssl(*arguments):
    subprocess.run([shutil.which("openssl"), *map(str, arguments)], check=True, capture_output=True, timeout=20)


def _certificate(folder, name, authority=None):
    """A certificate, by `authority` or self-signed, and its key; returns their paths."""
    certificate, key, request = (folder / f"{name}.{suffix}" for suffix in ("crt", "key", "csr"))
    subject = ["-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", key, "-subj", f"/CN={name}"]
    if authority is None:
        _openssl("req", "-x509", "-days", "2", *subject, "-out", certificate)
    else:
        _openssl("req", *subject, "-out", request)
        signer = ["-CA", authority[0], "-CAkey", authority[1], "-CAcreateserial"]
        _openssl("x509", "-req", "-days", "2", "-in", request, *signer, "-out", certificate)
    return certificate, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A CA, a server's and a client's certificate signed by it, and a stranger's."""
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED over TLS: openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    ca = _certificate(folder, "ca")
    signed = {name: _certificate(folder, name, ca) for name in ("server", "client")}
    return signed | {"ca": ca, "stranger": _certificate(folder, "stranger")}


def _tls(authority, name=None):
    context = ssl.create_default_context(cafile=authority["ca"][0])
    context.check_hostname = False
    if name:
        context.load_cert_chain(*authority[name])
    return context


def _tls_rejection(listener, context):
    with connect(listener.port) as plain, context.wrap_socket(plain) as connection:
        connection.sendall(association_request())
        return receive_pdu(connection)[0]


def _told(caplog):
    """What the log says of handshakes that failed."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("DCM-325")]
        if told:
            caplog.clear()
            return told
        time.sleep(0.01)
    return []


def test_why_a_handshake_failed_and_what_to_do_is_in_the_log(own, authority, caplog):
    caplog.set_level("INFO")
    server, ca = authority["server"], authority["ca"]
    with own(tls_certificate=server[0], tls_key=server[1], tls_ca=ca[0]) as listener:
        old, distrustful = _tls(authority, "client"), ssl.create_default_context()
        distrustful.check_hostname = False
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        weak = _tls(authority, "client")
        weak.maximum_version = ssl.TLSVersion.TLSv1_2
        weak.set_ciphers("AES128-SHA:@SECLEVEL=0")
        for context, says in (
            (_tls(authority), "shows no certificate: give it one that RECLAIM_DICOM_TLS_CA has signed"),
            (_tls(authority, "stranger"), "self-signed certificate"),
            (old, "TLS 1.2"),
            (weak, "TLS 1.2"),
            (distrustful, "does not accept our certificate"),
        ):
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                _tls_rejection(listener, context)
            (told,) = _told(caplog)
            assert says in told
        with connect(listener.port) as plain:
            plain.sendall(association_request())
            receive_pdu(plain)
        (told,) = _told(caplog)
        assert "speaks no TLS" in told
        connect(listener.port).close()  # a load balancer's check is no failed handshake
        time.sleep(0.3)
        assert "DCM-325" not in caplog.text


def test_only_certified_peers_get_in(own, authority):
    server, ca = authority["server"], authority["ca"]
    with own(tls_certificate=server[0], tls_key=server[1], tls_ca=ca[0]) as listener:
        assert _tls_rejection(listener, _tls(authority, "client")) == 2
        for unknown in (None, "stranger"):
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                assert _tls_rejection(listener, _tls(authority, unknown)) == 2
        with connect(listener.port) as plain:
            plain.sendall(association_request())
            assert receive_pdu(plain)[0] != 2


def _warned_of(caplog):
    time.sleep(0.3)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_doctor_knows_how_to_reach_us(own, authority, caplog):
    server, ca = authority["server"], authority["ca"]
    tls = {"tls_certificate": server[0], "tls_key": server[1], "tls_ca": ca[0]}
    with own(calling_ae_titles=("CT1",), called_ae_titles=("ARCHIVE",), **tls) as listener:
        assert echo_ourselves(listener.settings.dicom, listener.port)
        assert not _warned_of(caplog), "who asks from this machine whether the listener lives may have no certificate"
        assert not echo_ourselves(DicomSettings(), listener.port)


@pytest.mark.parametrize("allowed", [("10.0.0.0/8",), ("10.0.0.0/8", "127.0.0.0/8"), ()])
def test_doctor_does_not_take_a_listener_that_lets_this_machine_not_in_for_dead(own, allowed):
    with own(allowed_networks=allowed) as listener:
        (finding,) = checks._dicom(listener.settings)
        assert not finding.bad
        assert ("was not tried" if len(allowed) == 1 else "answers C-ECHO") in finding.found


def test_old_protocols_are_not_spoken(own, authority):
    server = authority["server"]
    with own(tls_certificate=server[0], tls_key=server[1]) as listener:
        context = _tls(authority)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _tls_rejection(listener, context)
        context = _tls(authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert _tls_rejection(listener, context) == 2


def test_a_silent_tls_peer_holds_up_nobody(own, authority):
    server = authority["server"]
    with own(tls_certificate=server[0], tls_key=server[1], acse_timeout_s=1.0) as listener:
        with connect(listener.port) as silent:
            assert _tls_rejection(listener, _tls(authority)) == 2
            silent.settimeout(4)
            assert silent.recv(1) == b""
        assert _tls_rejection(listener, _tls(authority)) == 2


@pytest.mark.dcmtk
def test_dcmtk_sends_over_tls(own, authority, tmp_path):
    dataset = make("tls", tmp_path)
    server, ca, client = authority["server"], authority["ca"], authority["client"]
    with own(tls_certificate=server[0], tls_key=server[1], tls_ca=ca[0]) as listener:
        command = [dcmtk("storescu"), "-R", "+tls", client[1], client[0], "+cf", ca[0], "127.0.0.1", str(listener.port)]
        subprocess.run([*command, tmp_path / "tls.dcm"], check=True, timeout=30)
        row = listener.instance(dataset.SOPInstanceUID)
        assert (listener.archive / row.path).read_bytes().endswith(encoded(dataset))


def test_certificates_that_are_none_are_refused_at_start(tmp_path, authority):
    (tmp_path / "none.crt").write_text("no certificate")
    for settings in (
        {"tls_certificate": tmp_path / "none.crt"},
        {"tls_certificate": tmp_path / "absent.crt"},
        {"tls_key": authority["server"][1]},
        {"tls_certificate": authority["server"][0], "tls_key": authority["client"][1]},
    ):
        with pytest.raises(InvalidInput, match="TLS"):
            tls_context(DicomSettings(**settings))
    with pytest.raises(InvalidInput, match="ALLOWED_NETWORKS"):
        networks(("10.0.0",))


def test_a_long_association_is_one_span_of_many_instances(own, tmp_path):
    datasets = [make("many", tmp_path, instance=number) for number in range(5)]
    with own() as listener, associated(listener.port) as association:
        assert {store(association, encoded(each), each.SOPInstanceUID).Status for each in datasets} == {0}
        assert listener.study(datasets[0].StudyInstanceUID).instances == 5
