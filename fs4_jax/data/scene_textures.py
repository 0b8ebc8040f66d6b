"""The textures of scenes: each class's own pattern, drawn once and shared by all pictures."""

import functools

import numpy as np
from scipy import spatial

CLASS_NAMES = ("sky", "water", "grass", "sand", "road",
               "rock", "building", "tree", "vehicle", "animal")  # fmt: skip
SKY, WATER, GRASS, SAND, ROAD, ROCK, BUILDING, TREE, VEHICLE, ANIMAL = range(10)

# Shapes are laid out on a square of UNITS x UNITS, whatever the size in pixels.
UNITS = 96.0
# Standard deviation of a texture relative to the region's colour.
CONTRAST = {WATER: 0.17, GRASS: 0.24, SAND: 0.17, ROAD: 0.18, ROCK: 0.2, TREE: 0.42, ANIMAL: 0.45}


def _noise(rng, side, unit, gain):
    """Periodic noise [side, side], deviation 1; gain(fy, fx) in cycles a unit is its spectrum."""
    fy, fx = np.fft.fftfreq(side)[:, None] * unit, np.fft.rfftfreq(side)[None] * unit
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    noise = np.fft.irfft2(spectrum * gain(np.abs(fy), fx), s=(side, side))
    return noise / noise.std()


def _blob(*pairs):
    """A Gaussian bump around each (frequency, width), one pair per argument of the result."""
    return lambda *f: np.exp(-0.5 * sum(((a - m) / s) ** 2 for a, (m, s) in zip(f, pairs)))


def _ring(period, width, stretch=1.0):
    """Isotropic spectrum around one period; stretch > 1 elongates it horizontally."""
    return lambda fy, fx: _blob((1 / period, width))(np.hypot(fy, fx * stretch))


def _cobbles(rng, side, unit):
    """Rounded stones with light joints: second minus first distance to jittered centres."""
    cells = max(2, round(side / (8.5 * unit)))
    centres = np.indices((cells, cells)).reshape(2, -1).T + rng.uniform(0.2, 0.8, (cells**2, 2))
    centres[:, 1] = (centres[:, 1] + 0.5 * (centres[:, 0].astype(int) % 2)) % cells
    pixels = (np.indices((side, side)).reshape(2, -1).T + 0.5) * (cells / side)
    distance, nearest = spatial.cKDTree(centres, boxsize=cells).query(pixels, k=2)
    joint = np.clip((distance[:, 1] - distance[:, 0]) * 5.0, 0, 1)
    return (joint * rng.normal(-2.2, 0.35, len(centres))[nearest[:, 0]]).reshape(side, side)


def _strata(noise):
    """Slanting creased layers, lit from one side."""
    height = -2.0 * np.abs(noise(_ring(30.0, 0.015, 0.4))) - np.abs(noise(_ring(14.0, 0.03, 0.5)))
    slope = np.roll(height, 1, 1) - height
    row, column = np.indices(slope.shape)
    slope = slope[row, (column + row) % len(slope)]
    return np.clip(slope, *np.percentile(slope, (2, 98)))


# The textures that are filtered noise; periods in units, frequencies in cycles a unit.
_RECIPES = {
    SKY: lambda noise: noise(_ring(50.0, 0.016, stretch=1.8)),
    WATER: lambda noise: np.exp(0.6 * noise(_blob((0.2, 0.05), (0.0, 0.028)))),
    GRASS: lambda noise: noise(_blob((0.0, 0.06), (0.36, 0.07))),
    SAND: lambda noise: noise(_ring(3.5, 0.06)),
    ROCK: _strata,
    TREE: lambda noise: np.tanh(1.6 * noise(_ring(5.0, 0.055)) - 0.1),
    ANIMAL: lambda noise: np.tanh(4.0 * noise(_blob((0.03, 0.03), (0.15, 0.03)))),
}


@functools.lru_cache(maxsize=128)
def texture_tile(kind, variant, image_size):
    """One shared texture float32 [3s, 3s], mean 0, deviation 1; pure in its arguments."""
    side, unit = 3 * image_size, image_size / UNITS * (0.92, 1.0, 1.09)[variant]
    rng = np.random.default_rng((20261121, kind, variant, image_size))
    noise = functools.partial(_noise, rng, side, unit)
    tile = _cobbles(rng, side, unit) if kind == ROAD else _RECIPES[kind](noise)
    return np.clip((tile - tile.mean()) / tile.std(), -2.5, 2.5).astype(np.float32)
