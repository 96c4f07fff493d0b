"""Every network takes grey images, freezing keeps what it says still, and local weights fit or are refused."""

import hashlib
import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.errors import BrokenBundle, UnknownNetwork
from models.freezing import freeze, train_mode
from models.heads import with_classes
from models.networks import (
    ARCHITECTURES,
    body_blocks,
    body_parameters,
    build_network,
    head_parameters,
    load_pretrained,
    network_names,
)
from models.pretrained import LocalWeights, PackagedWeights, WeightsAtAddress, find_weights
from models.spec import Calibration, ModelSpec

CHEAP = ["small", "efficientnet_b0", "monai_resnet18"]


@pytest.mark.parametrize("name", [name for name in network_names() if name != "vgg16"])
def test_a_network_takes_grey_images_and_gives_one_logit_per_class(name):
    network = build_network(name, classes=3).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, 80, 80)).shape == (1, 3)
    assert head_parameters(network)
    assert {p.numel() for p in head_parameters(network)} & {3}
    assert len(body_parameters(network)) + len(head_parameters(network)) == len(list(network.parameters()))
    covered = {id(p) for block in body_blocks(network) for p in block.parameters()}
    assert covered == {id(p) for p in body_parameters(network)}


@pytest.mark.parametrize("name", ["small", "monai_resnet18", "densenet121"])
def test_a_network_takes_volumes(name):
    with torch.inference_mode():
        assert build_network(name, 2, channels=2, spatial_dims=3).eval()(torch.zeros(1, 2, 32, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet5"}, "nearest known one is 'resnet50'"),
        ({"name": "resnet50", "spatial_dims": 3}, "spatial dimensions"),
        ({"name": "small", "depth": 3}, "options"),
    ],
)
def test_a_wrong_order_for_a_network_is_explained(arguments, words):
    with pytest.raises(UnknownNetwork, match=words):
        build_network(classes=2, **arguments)


def batch_of(network: nn.Module) -> torch.Tensor:
    return torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("strategy", ["head_only", "partial", "full"])
def test_frozen_layers_and_their_statistics_do_not_move(name, strategy):
    torch.manual_seed(0)
    network = build_network(name, classes=2)
    freeze(network, strategy)
    frozen_blocks = {
        "head_only": body_blocks(network),
        "partial": body_blocks(network)[: len(body_blocks(network)) // 2],
        "full": [],
    }
    still = {name for block in frozen_blocks[strategy] for name in names_inside(network, block)}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.5)
    train_mode(network)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch_of(network)), torch.tensor([0, 1, 0, 0])).backward()
        optimizer.step()
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not moved & still
    head = ARCHITECTURES[name].head
    assert any(name.startswith(head) for name in moved)
    body_moved = {name for name in moved if not name.startswith(head)}
    assert bool(body_moved) is (strategy != "head_only")
    if strategy != "head_only":
        assert any("running_mean" in name for name in body_moved)


def names_inside(network: nn.Module, block: nn.Module) -> list[str]:
    prefix = next(name for name, each in network.named_modules() if each is block)
    return [name for name in network.state_dict() if name.startswith(prefix + ".")]


def test_local_weights_are_taken_except_for_the_head(tmp_path):
    torch.manual_seed(1)
    coloured, grey = build_network("efficientnet_b0", 10, channels=3).eval(), build_network("efficientnet_b0", 2).eval()
    save_file(coloured.state_dict(), tmp_path / "weights.safetensors")
    taken = load_pretrained(grey, tmp_path / "weights.safetensors")
    assert taken
    assert not any(name.startswith("classifier") for name in taken)
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(grey.features(image), coloured.features(image.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(build_network("small", 2, width=8).state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(BrokenBundle):
        load_pretrained(build_network("small", 2, width=16), tmp_path / "small.safetensors")
    save_file({"head.weight": torch.zeros(2, 128)}, tmp_path / "head.safetensors")
    with pytest.raises(BrokenBundle, match="lacks"):
        load_pretrained(build_network("small", 2), tmp_path / "head.safetensors")
    (tmp_path / "rubbish.safetensors").write_bytes(b"rubbish")
    with pytest.raises(BrokenBundle, match="not a readable safetensors"):
        load_pretrained(build_network("small", 2), tmp_path / "rubbish.safetensors")


@pytest.mark.parametrize("name", ["small", "resnet50", "efficientnet_b0", "densenet121", "vgg16", "monai_resnet18"])
def test_new_classes_leave_the_old_ones_as_they_were(name):
    module = build_network(name, 2).eval()
    spec = ModelSpec(
        name="m", task="t", classes=("a", "b"), network=name, calibration=Calibration(temperature=2.0, offsets=(0.5, -0.5))
    )
    images = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    before = module(images)
    wider, grown = with_classes(spec, module, ("c", "d"))
    after = grown.eval()(images)
    assert wider.classes == ("a", "b", "c", "d")
    assert wider.calibration.offsets == (0.5, -0.5, 0.0, 0.0)
    torch.testing.assert_close(after[:, :2], before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module(images), before)
    assert bool((after[:, 2:] == -4).all())
    nn.functional.cross_entropy(grown(images), torch.tensor([2, 3])).backward()
    assert any(float(parameter.grad.abs().sum()) > 0 for parameter in head_parameters(grown) if parameter.grad is not None)
    assert list(grown.state_dict()) == list(build_network(name, 4).state_dict()), "a bundle of four classes holds it"


def test_a_class_twice_is_refused():
    spec = ModelSpec(name="m", task="t", classes=("a", "b"))
    with pytest.raises(ValueError, match="distinct"):
        with_classes(spec, build_network("small", 2), ("b",))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_start_weights_are_found_locally_or_in_a_package_and_checked(tmp_path, monkeypatch):
    network = build_network("small", 2)
    package = tmp_path / "weights_of_ours"
    package.mkdir()
    (package / "__init__.py").write_text("")
    file = package / "small.safetensors"
    save_file(network.state_dict(), file)
    monkeypatch.syspath_prepend(str(tmp_path))
    local = LocalWeights(path=file, sha256=digest(file))
    packed = PackagedWeights(package="weights_of_ours", file="small.safetensors", sha256=digest(file))
    for weights in (local, packed):
        assert load_pretrained(build_network("small", 3), find_weights(weights, tmp_path / "cache"))
    for wrong, words in (
        (local.model_copy(update={"sha256": "0" * 64}), "SHA-256 differs"),
        (local.model_copy(update={"path": tmp_path / "absent"}), "do not exist"),
        (packed.model_copy(update={"package": "no_such_weights"}), "not installed"),
        (packed.model_copy(update={"file": "../../x"}), "leaves its package"),
    ):
        with pytest.raises(BrokenBundle, match=words):
            find_weights(wrong, tmp_path / "cache")
    with pytest.raises(ValueError, match="https"):
        WeightsAtAddress(url="http://example.org/w.pt", sha256="0" * 64)


def test_what_an_address_sends_is_checked_kept_and_not_fetched_twice(tmp_path, monkeypatch):
    file = tmp_path / "small.safetensors"
    save_file(build_network("small", 2).state_dict(), file)
    asked = []

    def answer(url: str, timeout: float) -> object:
        asked.append(url)
        return io.BytesIO(file.read_bytes())

    monkeypatch.setattr("urllib.request.urlopen", answer)
    weights = WeightsAtAddress(url="https://example.org/small.safetensors", sha256=digest(file))
    for _ in range(2):
        assert digest(find_weights(weights, tmp_path / "cache")) == weights.sha256
    assert len(asked) == 1
    with pytest.raises(BrokenBundle, match="SHA-256 differs"):
        find_weights(weights.model_copy(update={"sha256": "1" * 64}), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{weights.sha256[:16]}-small.safetensors"]


def test_a_state_dict_is_read_and_a_pickle_is_never_executed(tmp_path):
    network = build_network("small", 2)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}, tmp_path / "w.pth")
    assert load_pretrained(build_network("small", 2), tmp_path / "w.pth")

    class Bomb:
        def __reduce__(self) -> object:
            return (Path.write_text, (tmp_path / "harmed", "x"))

    with (tmp_path / "bomb.pth").open("wb") as stream:
        pickle.dump({"w": Bomb()}, stream)
    with pytest.raises(BrokenBundle):
        load_pretrained(network, tmp_path / "bomb.pth")
    assert not (tmp_path / "harmed").exists()
