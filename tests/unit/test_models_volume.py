"""A volume of stated voxel size has the patient's proportions, whatever the slices' distances, gaps and tilt."""

import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.errors import UnsuitableStudy
from models.frames import Frame, Frames
from models.geometry import orientations, shear_degrees
from models.planes import Plane
from models.preprocessing import prepare
from models.spec import FixedWindow, PercentileRange, PreprocessingSpec
from models.volume import resampled

UNIT = FixedWindow(center=0.5, width=1)


def ball(centre: np.ndarray, radius: float):
    """Whether points [..., 3] (x, y, z) in mm lie in a ball."""
    return lambda points: (np.linalg.norm(points - centre, axis=-1) <= radius).astype(np.float32)


def frames_of_slices(origins, axes, shape, spacing, content) -> Frames:
    """Slices of `content` (points to values) at planes with the given origins."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    made, planes = [], []
    for origin in origins:
        plane = Plane(np.asarray(origin, float), np.asarray(axes, float), spacing)
        points = plane.origin + columns[..., None] * spacing[1] * plane.axes[0] + rows[..., None] * spacing[0] * plane.axes[1]
        made.append(Frame(content(points)))
        planes.append(plane)
    return Frames(tuple(made), planes=tuple(planes))


def spec(size, spacing, **changes) -> PreprocessingSpec:
    return PreprocessingSpec(size=size, spacing=spacing, intensity=UNIT, mean=0.0, std=1.0, **changes)


def extents(volume: torch.Tensor) -> list[int]:
    """Voxels that the bright part spans along each axis."""
    inside = volume > 0.5
    return [int(inside.any(dim=tuple(other for other in range(3) if other != axis)).sum()) for axis in range(3)]


def centre_of(volume: torch.Tensor) -> list[float]:
    inside = torch.nonzero(volume > 0.5).float()
    return inside.mean(dim=0).tolist()


AXIAL = [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("distances", [[2.0] * 40, [1.0] * 40 + [4.0] * 10, [2.0] * 15 + [6.0] + [2.0] * 22, [5.0] * 16])
def test_a_ball_stays_a_ball_of_its_size(distances):
    places = np.concatenate([[0.0], np.cumsum(distances)])
    origins = [[0, 0, z] for z in places]
    content = ball(np.array([40.0, 40.0, 40.0]), 25)
    prepared = prepare(frames_of_slices(origins, AXIAL, (80, 40), (1.0, 2.0), content), spec((50, 50, 50), (2.0, 2.0, 2.0)))
    assert prepared.tensor.shape == (1, 1, 50, 50, 50)
    assert all(23 <= extent <= 27 for extent in extents(prepared.tensor[0, 0]))
    assert prepared.codes == ()


@pytest.mark.parametrize("degrees", [-18, 12, 25])
def test_a_tilted_gantrys_shear_is_set_straight(degrees):
    tilt = np.radians(degrees)
    axes = [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)]]
    origins = [[0, 0, 3.0 * n] for n in range(40)]
    middle = np.array([0, 0, 58.5]) + 32 * np.array(axes[0]) + 32 * np.array(axes[1])
    frames = frames_of_slices(origins, axes, (64, 64), (1.0, 1.0), ball(middle, 20))
    assert shear_degrees([each for each in frames.planes if each]) == pytest.approx(abs(degrees))
    found = prepare(frames, spec((64, 64, 64), (1.0, 1.0, 1.0))).tensor[0, 0]
    assert all(37 <= extent <= 43 for extent in extents(found))
    assert centre_of(found) == pytest.approx([31.5] * 3, abs=1.5)
    stretched = prepare(frames, PreprocessingSpec(size=(64, 64, 64), intensity=UNIT, mean=0.0, std=1.0)).tensor[0, 0]
    along_tilt = extents(stretched)
    assert along_tilt != extents(found)


def test_outside_of_the_series_it_is_black_and_what_is_cut_off_is_a_note():
    frames = frames_of_slices(
        [[0, 0, z] for z in range(10)], AXIAL, (30, 30), (1.0, 1.0), lambda points: np.ones(points.shape[:2], np.float32)
    )
    roomy = prepare(frames, spec((20, 40, 40), (1.0, 1.0, 1.0)))
    assert roomy.tensor.sum() == pytest.approx(10 * 30 * 30)
    assert roomy.codes == ()
    tight = prepare(frames, spec((20, 20, 40), (1.0, 1.0, 1.0)))
    assert [(each.code, each.detail) for each in tight.findings] == [("volume_cropped", "along H")]


def test_thick_voxels_average_the_slices_they_cover():
    frames = frames_of_slices(
        [[0, 0, z] for z in range(12)],
        AXIAL,
        (4, 4),
        (1.0, 1.0),
        lambda points: (points[..., 2].astype(int) % 2).astype(np.float32),
    )
    found = prepare(frames, spec((3, 4, 4), (4.0, 1.0, 1.0))).tensor[0, 0, 1]
    np.testing.assert_allclose(found, 0.5, atol=0.05)


@pytest.mark.parametrize("planes", [(), (None,) * 10])
def test_without_places_the_volume_is_stretched_and_says_so(planes):
    images = np.random.default_rng(0).random((10, 8, 8)).astype(np.float32)
    frames = Frames(tuple(map(Frame, images)), planes=planes)
    prepared = prepare(frames, spec((10, 8, 8), (1.0, 1.0, 1.0)))
    assert prepared.codes == ("spacing_missing",)
    torch.testing.assert_close(prepared.tensor[0, 0], torch.from_numpy(images))


def test_percentiles_of_a_resampled_volume_leave_padding_out():
    frames = frames_of_slices(
        [[0, 0, z] for z in range(8)], AXIAL, (32, 32), (1.0, 1.0), lambda points: points[..., 0].astype(np.float32)
    )
    padding = np.zeros((32, 32), bool)
    padding[:, :8] = True
    masked = Frames(tuple(Frame(each.values, padding=padding) for each in frames.frames), planes=frames.planes)
    wanted = PreprocessingSpec(size=(8, 32, 32), spacing=(1, 1, 1), intensity=PercentileRange(low=0, high=100), mean=0.0, std=1.0)
    row = prepare(masked, wanted).tensor[0, 0, 4, 16]
    np.testing.assert_allclose(row, [0] * 8 + [each / 23 for each in range(24)], atol=1e-5)


def test_a_single_layer_of_weights_is_an_interpolation():
    planes = [Plane(np.array([0.0, 0, z]), np.asarray(AXIAL, float), (1.0, 1.0)) for z in (0, 10)]
    slices = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])
    volume, findings = resampled(slices, planes, (2.5, 1, 1), (5, 2, 2))
    np.testing.assert_allclose(volume[:, 0, 0], [0, 0.25, 0.5, 0.75, 1])
    assert findings == []


def test_an_absurd_pixel_spacing_does_not_become_an_absurd_image():
    frames = frames_of_slices([[0, 0, z] for z in range(3)], AXIAL, (64, 64), (99.0, 99.0), ball(np.zeros(3), 5))
    with pytest.raises(UnsuitableStudy, match="64 x 64 pixels"):
        prepare(frames, spec((8, 32, 32), (1.0, 1.0, 1.0)))


def test_a_file_of_endless_orientations_costs_no_square():
    angles = np.linspace(0, 3, 20_000)
    planes = [Plane(np.zeros(3), np.array([[np.cos(a), np.sin(a), 0], [0, 0, 1]])) for a in angles]
    same = [Plane(np.zeros(3), np.asarray(AXIAL, float) + 1e-5 * (n % 3)) for n in range(1_000)]
    began = time.monotonic()
    groups = orientations([*same, *planes])
    assert time.monotonic() - began < 10
    assert groups[0] == list(range(1_000))
    assert sorted(index for group in groups for index in group) == list(range(21_000))


def test_spacing_is_for_volumes():
    with pytest.raises(ValidationError, match="spacing is for volumes"):
        PreprocessingSpec(size=(8, 8), spacing=(1, 1, 1))
