"""Start weights as a person names them: where they are looked for, what vouches for them, what is said when they are not there."""

import io
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from models.errors import BrokenBundle
from models.networks import build_network, load_pretrained
from models.pretrained import HubWeights, LocalWeights, PackagedWeights, WeightsAtAddress, digest, find_weights, weights_of


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "given" / "small.safetensors"
    path.parent.mkdir()
    save_file(build_network("small", 2).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("weights/x.pth", LocalWeights),
        ("package:torchvision", PackagedWeights),
        ("package:a.b/c/d.pt", PackagedWeights),
        ("hub:ResNet50_Weights.IMAGENET1K_V2", HubWeights),
        ("https://example.org/x.pth", WeightsAtAddress),
    ],
)
def test_words_name_one_kind_of_place(words, kind):
    assert isinstance(weights_of(words, "AB" * 32), kind)


@pytest.mark.parametrize(
    ("words", "sha256", "part"),
    [
        ("https://example.org/x.pth", None, "give their SHA-256"),
        ("http://example.org/x.pth", "0" * 64, "begin with https"),
        ("x.pth", "123", "64 hexadecimal digits"),
        ("hub:resnet50", None, "name is not valid"),
        ("package:../x", None, "package is not valid"),
    ],
)
def test_words_that_name_nothing_are_refused(words, sha256, part):
    with pytest.raises(BrokenBundle, match=part):
        weights_of(words, sha256)


def test_a_file_on_this_machine_may_go_without_a_hash(file, tmp_path):
    assert find_weights(weights_of(str(file)), tmp_path / "cache") == file
    assert find_weights(weights_of(str(file), digest(file).upper()), tmp_path / "cache") == file


def test_a_package_that_holds_one_file_need_not_name_it(file, tmp_path, monkeypatch):
    package = tmp_path / "weights_of_theirs"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BrokenBundle, match="holds 0 weights files"):
        find_weights(weights_of("package:weights_of_theirs"), tmp_path / "cache")
    (package / "data" / "one.safetensors").write_bytes(file.read_bytes())
    assert find_weights(weights_of("package:weights_of_theirs"), tmp_path / "cache").name == "one.safetensors"
    (package / "two.pth").write_bytes(b"")
    with pytest.raises(BrokenBundle, match=r"2 weights files \(data/one.safetensors, two.pth\)"):
        find_weights(weights_of("package:weights_of_theirs"), tmp_path / "cache")
    assert find_weights(weights_of("package:weights_of_theirs/two.pth"), tmp_path / "cache").name == "two.pth"


@pytest.fixture
def hub(monkeypatch):
    """A hub: the address by which the installed package knows a file, and what comes from there."""

    def offer(url: str, sent: bytes) -> None:
        def answer(asked: str, timeout: float) -> object:
            assert (asked, timeout > 0) == (url, True)
            return io.BytesIO(sent)

        known = SimpleNamespace(url=url)
        monkeypatch.setattr(torchvision.models, "get_weight", {"Small_Weights.V1": known}.__getitem__)
        monkeypatch.setattr("urllib.request.urlopen", answer)

    return offer


def test_a_file_of_the_hub_is_what_the_installed_package_says(file, tmp_path, hub):
    named, body = f"https://hub.example.org/models/small-{digest(file)[:8]}.safetensors", file.read_bytes()
    hub(named, body)
    found = find_weights(weights_of("hub:Small_Weights.V1"), tmp_path / "cache")
    assert digest(found) == digest(file)
    with pytest.raises(BrokenBundle, match="SHA-256 differs"):
        find_weights(weights_of("hub:Small_Weights.V1", "0" * 64), tmp_path / "cache")
    with pytest.raises(BrokenBundle, match="offers no weights"):
        find_weights(weights_of("hub:Other_Weights.V1"), tmp_path / "cache")
    found.write_bytes(b"altered since")
    hub(named, b"something else")
    with pytest.raises(BrokenBundle, match="SHA-256 differs"):
        find_weights(weights_of("hub:Small_Weights.V1"), tmp_path / "cache")
    hub("https://hub.example.org/small.pth", body)
    with pytest.raises(BrokenBundle, match="names no hash"):
        find_weights(weights_of("hub:Small_Weights.V1"), tmp_path / "cache")


def test_torchvision_knows_its_own_names():
    with pytest.raises(BrokenBundle, match=r"offers no weights 'ResNet50_Weights\.NONE'"):
        find_weights(weights_of("hub:ResNet50_Weights.NONE"), None)


def test_without_a_network_the_way_out_is_said(tmp_path, monkeypatch):
    def away(url: str, timeout: float) -> object:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", away)
    with pytest.raises(BrokenBundle, match=r"resnet50.*download.pytorch.org.*fetch them elsewhere"):
        find_weights(weights_of("hub:ResNet50_Weights.IMAGENET1K_V2"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [], "no half of a file stays"


def test_the_densenet_of_torchvision_fits_that_of_monai(tmp_path):
    theirs = torchvision.models.densenet121(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "densenet121.pth")
    ours = build_network("densenet121", 2, channels=3).eval()
    assert load_pretrained(ours, tmp_path / "densenet121.pth")
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.features(image), theirs.features(image), rtol=1e-4, atol=1e-5)


def test_weights_of_a_published_volume_network_fit_with_its_options(tmp_path):
    """Published weights for 3D residual networks have none on their shortcuts (type A), and `module.` before each name."""
    start = build_network("monai_resnet18", 3, 1, 3, shortcut_type="A")
    torch.save({"state_dict": {f"module.{name}": value for name, value in start.state_dict().items()}}, tmp_path / "r18.pth")
    with pytest.raises(BrokenBundle, match="does not fit the network"):
        load_pretrained(build_network("monai_resnet18", 2, 1, 3), tmp_path / "r18.pth")
    taken = load_pretrained(build_network("monai_resnet18", 2, 1, 3, shortcut_type="A"), tmp_path / "r18.pth")
    assert len(taken) == len(start.state_dict()) - 2
