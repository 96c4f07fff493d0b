"""What is kept of an image: bounded, the same for the same image, and moved by a fault in the way that the fault is named for."""

import numpy as np
import pytest
import torch

from models.embedding import WIDTH, features_of, projected
from models.faults import flipped, inverted, known_faults, rewindowed, turned, unscaled
from models.frames import Frame, Frames
from models.networks import build_network
from models.preprocessing import prepare
from models.signature import GRID, LAYOUT, QUALITY, sampled
from models.spec import DicomWindow, FixedWindow, PercentileRange, PreprocessingSpec

SPEC = PreprocessingSpec(size=(48, 48), intensity=DicomWindow())


def picture(seed=0, edge=64):
    """A bright disc up on the left, in noise, shown through a window of 0 to 100."""
    rows, columns = np.mgrid[0:edge, 0:edge]
    disc = ((rows - edge / 4) ** 2 + (columns - edge / 3) ** 2) < (edge / 5) ** 2
    return (30 + 50 * disc + np.random.default_rng(seed).normal(0, 4, (edge, edge))).astype(np.float32)


def signature(change=None, spec=SPEC, image=None):
    frames = Frames.from_array(picture() if image is None else image, (0, 100))
    if change is not None:
        frames = Frames(tuple(change(frame) for frame in frames.frames))
    return prepare(frames, spec).signature


def quality(**options):
    return dict(zip(QUALITY, signature(**options).quality.tolist(), strict=True))


def test_a_signature_is_bounded_numbers_and_repeats():
    first, second = signature(), signature()
    assert first.quality.shape == (len(QUALITY),)
    assert first.layout.shape == (LAYOUT,)
    assert np.array_equal(first.vector, second.vector)
    assert np.isfinite(first.vector).all()
    assert first.layout.min() >= 0
    assert first.layout.max() <= 1


def test_the_statistics_say_what_they_are_called():
    known = quality()
    image = picture()
    assert known["mean"] == pytest.approx(image.mean() / 100, abs=0.01)
    assert known["noise"] == pytest.approx(0.04 * 0.75, abs=0.02)
    assert known["value_high"] == pytest.approx(np.log10(1 + np.percentile(image, 99)), abs=0.01)
    smooth = quality(image=np.full((64, 64), 50, np.float32) + np.arange(64, dtype=np.float32)[None] / 4)
    assert smooth["sharpness"] < known["sharpness"]
    assert smooth["gradient_ratio"] > 1


def test_each_fault_moves_the_signature_in_its_own_way():
    layout = signature().layout.reshape(GRID, GRID)
    assert np.allclose(signature(turned(1)).layout.reshape(GRID, GRID), np.rot90(layout), atol=1e-5)
    assert np.allclose(signature(flipped(1)).layout.reshape(GRID, GRID), layout[:, ::-1], atol=1e-5)
    assert np.allclose(signature(inverted).layout, 1 - signature().layout, atol=1e-5)
    shares = {name: quality(change=change) for name, change in known_faults(SPEC, "MR").items() if name.startswith("window")}
    assert shares["window too low"]["bright_share"] > 0.1 > quality()["bright_share"]
    assert shares["window too high"]["dark_share"] > 0.5
    assert shares["window too wide"]["contrast"] < quality()["contrast"]
    assert quality(change=unscaled)["value_middle"] == pytest.approx(np.log10(1 + 1024 + 32), abs=0.01)


def test_a_model_that_sets_its_own_scale_knows_no_wrong_window():
    names = known_faults(PreprocessingSpec(intensity=PercentileRange()), "MR")
    assert "inverted" in names
    assert not any(name.startswith("window") for name in names)
    assert "without rescale" in known_faults(PreprocessingSpec(intensity=FixedWindow(center=40, width=400)), "CT")
    assert "without rescale" not in known_faults(SPEC, "DX")


def test_padding_is_no_value_and_moves_with_the_image():
    values = picture()
    padding = np.zeros_like(values, dtype=bool)
    padding[:16] = True
    values[padding] = -2000
    frame = Frame(values, None, padding=padding)
    assert sampled(frame).min() > 0
    assert sampled(turned(1)(frame)).min() > 0
    assert rewindowed(0.6, 1.0)(frame).voi.valid


def test_a_volume_has_the_signature_of_its_slices():
    spec = PreprocessingSpec(size=(6, 48, 48), slices="evenly", max_images=6, intensity=PercentileRange())
    volume = np.stack([picture(seed) for seed in range(6)])
    found = prepare(Frames.from_array(volume), spec).signature
    flat = signature(spec=PreprocessingSpec(size=(48, 48), intensity=PercentileRange()))
    assert np.abs(found.layout - flat.layout).max() < 0.1


@pytest.mark.parametrize("name", ["small", "resnet50", "efficientnet_b0", "densenet121"])
def test_embeddings_are_what_the_head_is_given(name):
    network = build_network(name, 3).eval()
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode(), features_of(network) as caught:
        network(images[:1])
        network(images[1:])
    found = caught.embeddings()
    assert found.shape == (2, WIDTH)
    with torch.inference_mode():
        network(images)
    assert caught.embeddings().shape == (2, WIDTH)


def test_the_projection_is_fixed_and_keeps_distances():
    features = torch.randn(40, 2048, generator=torch.Generator().manual_seed(1))
    first = projected(features)
    assert np.array_equal(first, projected(features))
    ratio = np.linalg.norm(first[0] - first[1:], axis=1) / (features[0] - features[1:]).norm(dim=1).numpy()
    assert 0.7 < ratio.mean() < 1.3
    assert np.array_equal(projected(features[:, :10]), features[:, :10].numpy())
