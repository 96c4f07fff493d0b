"""What a change of scanner and protocol does to an image, as physics would: contrast, coil shading, resolution, noise."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Array = npt.NDArray[np.float64]


def change_scanner(image: npt.NDArray[np.uint8], generator: np.random.Generator, *, strength: float = 1.0) -> npt.NDArray[np.uint8]:
    """Image uint8 [H, W] as another scanner would show it; `strength` 0 leaves it as it is, 1 is the demonstration's change."""
    scaled = image.astype(np.float64) / 255
    changed = _contrast(scaled, strength)
    changed = gaussian_filter(changed, 0.7 * strength)
    changed *= _coil_shading(changed.shape, generator, strength)
    return to_uint8(rician(changed, 0.04 * strength, generator))


def _contrast(image: Array, strength: float) -> Array:
    """Swap the grey levels of tissue as between T1 and T2 weighting (fluid dark becomes fluid bright); air stays black."""
    tissue = 1 / (1 + np.exp(-(image - 0.08) / 0.015))
    swapped = tissue * (1.0 - 0.8 * image)
    return (1 - strength) * image + strength * swapped


def _coil_shading(shape: tuple[int, ...], generator: np.random.Generator, strength: float) -> Array:
    """Receive sensitivity of a surface coil: a smooth slope across the field of view, strongest on a random side."""
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    slope = 0.35 * strength * (np.cos(angle) * rows + np.sin(angle) * columns)
    return np.asarray(np.exp(slope))


def rician(image: Array, sigma: float, generator: np.random.Generator) -> Array:
    """Magnitude of the image with complex Gaussian noise (Gudbjartsson and Patz, 1995)."""
    real = image + generator.normal(0, sigma, image.shape)
    imaginary = generator.normal(0, sigma, image.shape)
    return np.asarray(np.hypot(real, imaginary))


def to_uint8(image: Array) -> npt.NDArray[np.uint8]:
    """Clip [0, 1] to uint8."""
    return np.asarray(np.clip(image * 255, 0, 255).round(), dtype=np.uint8)
