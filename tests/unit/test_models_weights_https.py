"""Start weights from an address, over a real HTTPS server on this machine with a certificate of its own."""

import shutil
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torchvision
from safetensors.torch import save_file

from models.errors import BrokenBundle
from models.networks import build_network
from models.pretrained import digest, find_weights, read_weights, weights_of

Asked = Counter[str]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of 127.0.0.1 in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED over TLS: openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "made.pem", folder / "key.pem"
    ask = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    alternative = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *ask, *alternative, "-keyout", key, "-out", made], check=True, capture_output=True, timeout=20)
    both = folder / "both.pem"
    both.write_bytes(made.read_bytes() + key.read_bytes())
    return both


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "given.safetensors"
    save_file(build_network("small", 2).state_dict(), path)
    return path


@pytest.fixture
def server(certificate: Path, weights: Path) -> Iterator[SimpleNamespace]:
    """Offers the weights at /small.safetensors; `asked` counts the requests by path."""
    asked, body = Counter[str](), weights.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            answers: dict[str, Callable[[], None]] = {
                "/small.safetensors": self._whole,
                "/small.safetensors?download=true": self._whole,
                "/moved": self._moved,
                "/half.safetensors": self._half,
                "/rubbish": lambda: self.wfile.write(b"rubbish\r\n\r\n") and None,
            }
            answers.get(self.path, lambda: self.send_error(404))()

        def _whole(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _moved(self) -> None:
            self.send_response(302)
            self.send_header("Location", "/small.safetensors")
            self.end_headers()

        def _half(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield SimpleNamespace(url=f"https://127.0.0.1:{running.server_address[1]}", asked=asked)
        running.shutdown()
        thread.join()


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a hospital trusts its own authority: OpenSSL's own variable."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("place", ["/small.safetensors", "/small.safetensors?download=true"])
def test_what_was_named_is_fetched_once_and_read(server: SimpleNamespace, weights: Path, tmp_path: Path, place: str) -> None:
    named = weights_of(server.url + place, digest(weights))
    found = find_weights(named, tmp_path / "cache")
    assert found.read_bytes() == weights.read_bytes()
    assert read_weights(found).keys() == read_weights(weights).keys()
    assert find_weights(named, tmp_path / "cache") == found
    assert server.asked == {place: 1}, "what came is never fetched twice"


@pytest.mark.usefixtures("trusted")
def test_a_file_that_was_altered_since_is_fetched_anew(server: SimpleNamespace, weights: Path, tmp_path: Path) -> None:
    named = weights_of(f"{server.url}/small.safetensors", digest(weights))
    found = find_weights(named, tmp_path / "cache")
    found.write_bytes(b"altered")
    assert find_weights(named, tmp_path / "cache").read_bytes() == weights.read_bytes()
    assert server.asked["/small.safetensors"] == 2


@pytest.mark.usefixtures("trusted")
def test_a_server_may_send_us_on(server: SimpleNamespace, weights: Path, tmp_path: Path) -> None:
    assert find_weights(weights_of(f"{server.url}/moved", digest(weights)), tmp_path).read_bytes() == weights.read_bytes()


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/small.safetensors", "its SHA-256 differs"),
        ("/half.safetensors", "SHA-256 differs|IncompleteRead"),
        ("/gone.safetensors", "the server answers 404 Not Found"),
        ("/rubbish", "could not be fetched"),
    ],
)
def test_anything_else_is_refused_and_not_kept(server: SimpleNamespace, tmp_path: Path, place: str, said: str) -> None:
    with pytest.raises(BrokenBundle, match=said):
        find_weights(weights_of(server.url + place, "0" * 64), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert server.asked == {place: 1}


def test_a_certificate_that_nobody_vouches_for_is_named(server: SimpleNamespace, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(BrokenBundle, match="certificate"):
        find_weights(weights_of(f"{server.url}/small.safetensors", digest(weights)), tmp_path / "cache")
    assert not server.asked


@pytest.mark.usefixtures("trusted")
def test_a_hub_is_asked_at_the_address_that_the_installed_package_knows(
    server: SimpleNamespace, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = SimpleNamespace(url=f"{server.url}/small.safetensors")
    monkeypatch.setattr(torchvision.models, "get_weight", {"Small_Weights.V1": known}.__getitem__)
    found = find_weights(weights_of("hub:Small_Weights.V1", digest(weights)), tmp_path / "cache")
    assert digest(found) == digest(weights)
    with pytest.raises(BrokenBundle, match="SHA-256 differs"):
        find_weights(weights_of("hub:Small_Weights.V1", "1" * 64), tmp_path / "cache")
