"""A bundle comes back as it was saved, MONAI can read it, and an altered one is refused; predictions follow from it alone."""

import hashlib
import json
from datetime import UTC, datetime

import pytest
import torch
from monai.bundle import ConfigParser
from safetensors.torch import load_file

from models.bundle import load_bundle, network_of, save_bundle, verify_bundle
from models.errors import BrokenBundle, UnsuitableStudy
from models.predictor import Predictor, predicted_class
from models.spec import Calibration, ModelSpec, PercentileRange, PreprocessingSpec

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SPEC = ModelSpec(
    name="brain-mr",
    task="tumour",
    classes=("glioma", "none", "pituitary"),
    options={"width": 8},
    preprocessing=PreprocessingSpec(size=(32, 32), intensity=PercentileRange(), slices="evenly", max_images=4),
    modality="MR",
    seed=7,
)


@pytest.fixture
def bundle(tmp_path):
    network = network_of(SPEC)
    return save_bundle(tmp_path / "brain-mr" / "1", SPEC, network, {"epochs": 3}, now=NOW), network


def test_a_bundle_comes_back_as_it_was_saved(bundle):
    info, network = bundle
    loaded = load_bundle(info.folder)
    assert loaded.spec == SPEC
    assert loaded.training == {"epochs": 3}
    assert loaded.info == info == verify_bundle(info.folder)
    assert not loaded.module.training
    assert all(torch.equal(tensor, loaded.module.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_the_same_seed_gives_the_same_network_and_the_same_bundle(tmp_path, bundle):
    torch.manual_seed(99)
    again = save_bundle(tmp_path / "again", SPEC, network_of(SPEC), {"epochs": 3}, now=NOW)
    assert again.files == bundle[0].files
    other = network_of(SPEC.model_copy(update={"seed": 8}))
    assert not torch.equal(other.head.weight, bundle[1].head.weight)


def test_monai_reads_the_bundle(bundle):
    info, network = bundle
    parser = ConfigParser()
    parser.read_config(str(info.folder / "configs/inference.json"))
    parser.read_meta(str(info.folder / "configs/metadata.json"))
    parser.parse()
    built = parser.get_parsed_content("network_def")
    built.load_state_dict(load_file(info.folder / "models/model.safetensors"))
    image = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(built.eval()(image), network.eval()(image))
    meta = json.loads((info.folder / "configs/metadata.json").read_text())
    required = {"version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors"}
    assert required | {"copyright", "network_data_format", "required_packages_version"} <= set(meta)


def test_no_bundle_is_overwritten_and_no_draft_stays(bundle):
    folder = bundle[0].folder
    with pytest.raises(FileExistsError):
        save_bundle(folder, SPEC, bundle[1])
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.bundle.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_bundle(tmp_path / "models" / "1", SPEC, network_of(SPEC))
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("name", ["models/model.safetensors", "configs/metadata.json", "configs/inference.json", "docs/README.md"])
def test_an_altered_or_missing_file_is_refused(bundle, name):
    folder = bundle[0].folder
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(BrokenBundle, match="altered"):
        load_bundle(folder)
    path.unlink()
    with pytest.raises(BrokenBundle, match="missing"):
        load_bundle(folder)


@pytest.mark.parametrize("content", [None, "rubbish", "[]", "{}", '{"sha256": {"../../x": "0"}}'])
def test_a_bundle_without_a_sound_manifest_is_refused(bundle, content):
    manifest = bundle[0].folder / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_text(content)
    with pytest.raises(BrokenBundle):
        load_bundle(bundle[0].folder)


def test_weights_of_another_network_are_refused(tmp_path):
    info = save_bundle(tmp_path / "wrong", SPEC, network_of(SPEC.model_copy(update={"options": {"width": 4}})))
    with pytest.raises(BrokenBundle, match="do not fit"):
        load_bundle(info.folder)


def test_a_prediction_is_the_mean_of_its_images_whatever_the_batching(bundle):
    loaded = load_bundle(bundle[0].folder)
    generator = torch.Generator().manual_seed(4)
    studies = [torch.randn(count, 1, 32, 32, generator=generator) for count in (1, 4, 2, 3)]
    small, large = (Predictor(loaded, "cpu", batch_size=size).predict(studies) for size in (3, 64))
    assert predicted_class(small[0]) in SPEC.classes
    for study, first, second in zip(studies, small, large, strict=True):
        with torch.inference_mode():
            expected = torch.softmax(bundle[1].eval()(study).double(), dim=1).mean(dim=0)
        assert list(first) == list(SPEC.classes)
        assert sum(first.values()) == pytest.approx(1, abs=1e-12)
        assert list(first.values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert list(second.values()) == pytest.approx(list(first.values()), abs=1e-5)


def test_calibration_acts_on_the_logits(tmp_path, bundle):
    calibration = Calibration(temperature=2.0, offsets=(0.0, 1.0, 0.0))
    spec = SPEC.model_copy(update={"calibration": calibration})
    info = save_bundle(tmp_path / "calibrated", spec, bundle[1])
    image = torch.rand(1, 1, 32, 32)
    calibrated = Predictor(load_bundle(info.folder), "cpu")
    expected = torch.softmax(calibrated.logits(image).double() / 2 + torch.tensor([0.0, 1.0, 0.0]), dim=1)[0]
    assert list(calibrated.predict([image])[0].values()) == pytest.approx(expected.tolist())


def test_a_study_of_another_shape_or_without_images_is_unsuitable(bundle):
    predictor = Predictor(load_bundle(bundle[0].folder), "cpu")
    assert predictor.predict([]) == []
    for wrong in (torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 16, 16), torch.zeros(0, 1, 32, 32)):
        with pytest.raises(UnsuitableStudy):
            predictor.predict([wrong])


def test_a_network_gone_wrong_gives_no_probabilities(bundle):
    loaded = load_bundle(bundle[0].folder)
    loaded.module.head.bias.data[0] = float("nan")
    with pytest.raises(UnsuitableStudy, match="not finite"):
        Predictor(loaded, "cpu").predict([torch.zeros(1, 1, 32, 32)])


def test_a_pickle_is_never_opened(tmp_path, bundle):
    folder = bundle[0].folder
    weights = folder / "models/model.safetensors"
    torch.save(bundle[1].state_dict(), weights)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["models/model.safetensors"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BrokenBundle):
        load_bundle(folder)
