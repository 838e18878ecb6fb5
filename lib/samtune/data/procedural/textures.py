"""Procedural noise, colours and textures for all synthetic sets.

Everything depends only on a numpy generator and a size. Images are float32 RGB in [0, 1].
"""

import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

Generator = np.random.Generator


@lru_cache(maxsize=64)
def _frequencies(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertical and horizontal frequencies of a real FFT, in cycles per pixel, float32."""
    return np.fft.fftfreq(height)[:, None].astype(np.float32), np.fft.rfftfreq(width)[None].astype(np.float32)


@lru_cache(maxsize=64)
def _log_radius(height: int, width: int) -> np.ndarray:
    vertical, horizontal = _frequencies(height, width)
    squared = vertical**2 + horizontal**2
    squared[0, 0] = 1.0
    return (0.5 * np.log(squared)).astype(np.float32)


def fractal_noise(
    rng: Generator, height: int, width: int, slope: float = 1.0, stretch: float = 1.0, angle: float = 0.0
) -> np.ndarray:
    """Noise whose amplitude falls as 1 / frequency**slope; zero mean, unit deviation, float32 `(height, width)`.

    Args:
        rng: draws it.
        height: pixels.
        width: pixels.
        slope: 0 is white, 1 is like natural images, 2 is cloudy.
        stretch: above 1 the grain is drawn out along `angle`: brushed metal, fur, wood.
        angle: radians, 0 = along x.
    """
    if slope >= 1.4 and min(height, width) >= 48:  # smooth anyway: a quarter of the pixels will do
        half = fractal_noise(rng, (height + 1) // 2, (width + 1) // 2, slope, stretch, angle)
        return cv2.resize(half, (width, height), interpolation=cv2.INTER_CUBIC)
    # A padded transform: sizes that factor well, and no wrap-around at the borders.
    rows, columns = -(-(height + 8) // 32) * 32, -(-(width + 8) // 32) * 32
    if stretch == 1.0:
        log_radius = _log_radius(rows, columns)
    else:
        vertical, horizontal = _frequencies(rows, columns)
        along = (math.cos(angle) * horizontal + math.sin(angle) * vertical) * np.float32(stretch)
        across = (math.cos(angle) * vertical - math.sin(angle) * horizontal) * np.float32(1.0 / math.sqrt(stretch))
        log_radius = 0.5 * np.log(along**2 + across**2 + np.float32(1e-7))
    spectrum = np.empty(log_radius.shape, np.complex64)
    spectrum.real = rng.random(log_radius.shape, np.float32) - np.float32(0.5)  # uniform will do: the sum is normal
    spectrum.imag = rng.random(log_radius.shape, np.float32) - np.float32(0.5)
    spectrum *= np.exp(np.float32(-slope) * log_radius)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(rows, columns)).astype(np.float32, copy=False)[:height, :width]
    mean, deviation = cv2.meanStdDev(np.ascontiguousarray(field))
    return (field - np.float32(mean.item())) * np.float32(1.0 / (deviation.item() + 1e-6))


def white_noise(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Nearly normal noise, float32 of `shape`, unit deviation: the sum of three random bytes (fast)."""
    total = rng.integers(0, 256, shape, np.uint8).astype(np.float32)
    for _ in range(2):
        total += rng.integers(0, 256, shape, np.uint8)
    return (total - np.float32(382.5)) * np.float32(1 / 128.0)


def times(picture: np.ndarray, field: np.ndarray) -> np.ndarray:
    """`picture` `(H, W, 3)` times `field` `(H, W)`, both float32 (faster than numpy's broadcasting)."""
    return picture * cv2.merge([field, field, field])


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Float 0..1 to uint8 0..255, rounded and clipped."""
    return cv2.convertScaleAbs(np.maximum(picture, 0), alpha=255)


def smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a smooth ramp between them; float32."""
    ramp = np.clip((values - np.float32(low)) * np.float32(1.0 / (high - low)), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Column of y and row of x pixel positions, float32, to be broadcast."""
    return np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]


def linear_ramp(height: int, width: int, angle: float) -> np.ndarray:
    """0 to 1 across the picture in the direction `angle` (radians), float32 `(height, width)`."""
    y, x = grid(height, width)
    ramp = math.cos(angle) * x + math.sin(angle) * y
    low, high = float(ramp.min()), float(ramp.max())
    return (ramp - np.float32(low)) * np.float32(1.0 / max(high - low, 1e-6))


def random_colour(rng: Generator) -> np.ndarray:
    """One RGB colour, float32 `(3,)`: any lightness, mostly muted, as in photographs."""
    lightness = 0.04 + 0.92 * rng.beta(1.4, 1.4)
    chroma = rng.beta(1.0, 2.6) * min(lightness, 1.0 - 0.6 * lightness)
    hue = rng.random() if rng.random() < 0.45 else rng.normal(0.09, 0.06)  # half of them earth and skin tones
    wheel = [math.cos(2 * math.pi * (hue - third)) for third in (0.0, 1 / 3, 2 / 3)]
    return np.array([min(max(lightness + chroma * turn, 0.01), 0.99) for turn in wheel], np.float32)


def near_colour(rng: Generator, colour: np.ndarray, distance: float) -> np.ndarray:
    """A colour at about `distance` from `colour`: lightness moves most, hue less; float32 `(3,)`."""
    draws = rng.standard_normal(4, dtype=np.float32)
    move = draws[0] + np.float32(0.45) * draws[1:]
    return np.minimum(np.maximum(colour + np.float32(distance) * move, np.float32(0.01)), np.float32(0.99))


def random_palette(rng: Generator, base: np.ndarray | None = None) -> np.ndarray:
    """Three colours that belong together, float32 `(3, 3)`; the first is `base` where it is given."""
    first = random_colour(rng) if base is None else base
    contrast = math.exp(rng.uniform(math.log(0.03), math.log(0.5)))
    second = random_colour(rng) if rng.random() < 0.2 else near_colour(rng, first, contrast)
    return np.stack([first, second, near_colour(rng, first, 0.6 * contrast)])


def _plain(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    return np.zeros((height, width), np.float32)


def _gradient(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    return linear_ramp(height, width, rng.uniform(0, 2 * np.pi))


def _cloud(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    return 0.5 + 0.28 * fractal_noise(rng, height, width, rng.uniform(0.7, 2.0))


def _fur(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(3, 12)
    return 0.5 + 0.3 * fractal_noise(rng, height, width, rng.uniform(0.5, 1.2), stretch, angle)


def _speckle(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    noise = white_noise(rng, (height, width))
    noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.4, 1.6))
    return 0.5 + noise * np.float32(0.3 / (float(noise.std()) + 1e-6))


def _stripes(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    y, x = grid(height, width)
    angle, period = rng.uniform(0, np.pi), scale * rng.uniform(0.5, 2.0)
    phase = (math.cos(angle) * x + math.sin(angle) * y) * np.float32(2 * np.pi / period)
    if rng.random() < 0.6:
        phase = phase + np.float32(rng.uniform(0.2, 2.5)) * fractal_noise(rng, height, width, 2.0)
    return np.clip(0.5 + np.float32(np.exp(rng.uniform(-0.7, 1.5))) * np.sin(phase), 0, 1)


def _wood(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    return wood_field(rng, height, width, scale, rng.uniform(0, np.pi))


def wood_field(rng: Generator, height: int, width: int, ring: float, angle: float) -> np.ndarray:
    """A board's growth rings with grain, 0..1, float32; `ring` is their distance in pixels."""
    y, x = grid(height, width)
    along = math.cos(angle) * x + math.sin(angle) * y - np.float32(rng.uniform(-0.5, 1.5) * width)
    across = math.cos(angle) * y - math.sin(angle) * x - np.float32(rng.uniform(-0.5, 0.5) * height)
    radius = np.sqrt((along * np.float32(rng.uniform(0.03, 0.15))) ** 2 + across**2)
    wobble = fractal_noise(rng, height, width, 1.8, 4.0, angle) * np.float32(rng.uniform(0.3, 1.2))
    rings = np.mod(radius / np.float32(ring) + wobble, 1.0)  # slow rise, quick fall: early and late wood
    rings = np.where(rings < 0.85, rings / 0.85, (1 - rings) / 0.15)
    return np.clip(0.75 * rings + 0.12 + 0.12 * fractal_noise(rng, height, width, 0.6, 12.0, angle), 0, 1)


def _checks(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    y, x = grid(height, width)
    angle, period = rng.uniform(0, np.pi), scale * rng.uniform(0.7, 2.0)
    first = np.sin((math.cos(angle) * x + math.sin(angle) * y) * np.float32(2 * np.pi / period))
    other = period * rng.uniform(0.6, 1.6)
    second = np.sin((math.cos(angle) * y - math.sin(angle) * x) * np.float32(2 * np.pi / other))
    if rng.random() < 0.5:
        return np.clip(0.5 + 4 * first * second, 0, 1)
    return np.clip(0.5 + 0.6 * np.clip(4 * first, -0.5, 0.5) + 0.6 * np.clip(4 * second, -0.5, 0.5), 0, 1)


def _blobs(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    noise = white_noise(rng, (height, width))
    noise = cv2.GaussianBlur(noise, (0, 0), max(0.8, 0.3 * scale))
    level = float(noise.std()) + 1e-6
    threshold = rng.uniform(-1.0, 1.2) * level
    return smoothstep(noise, threshold, threshold + rng.uniform(0.1, 1.0) * level)


def _dots(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    y, x = grid(height, width)
    angle, period = rng.uniform(0, np.pi), max(3.0, scale * rng.uniform(0.6, 1.6))
    first = np.mod((math.cos(angle) * x + math.sin(angle) * y) / np.float32(period), 1.0) - 0.5
    second = np.mod((math.cos(angle) * y - math.sin(angle) * x) / np.float32(period), 1.0) - 0.5
    radius = rng.uniform(0.15, 0.42)
    return 1 - smoothstep(np.sqrt(first**2 + second**2), radius, radius + max(0.08, 1.0 / period))


def _bricks(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    y, x = grid(height, width)
    tall, wide = max(3.0, 0.6 * scale), max(5.0, scale * rng.uniform(0.8, 2.2))
    row = np.floor(y / np.float32(tall))
    column = x / np.float32(wide) + 0.5 * np.mod(row, 2)
    joint = (np.mod(y, tall) < max(1.0, 0.12 * tall)) | (np.mod(column, 1.0) < max(1.0, 0.12 * tall) / wide)
    shade = np.mod(np.sin(row * 12.9898 + np.floor(column) * 78.233) * 43758.5453, 1.0)
    return np.where(joint, 1.0, 0.45 * shade).astype(np.float32)


def voronoi(rng: Generator, height: int, width: int, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Random cells about `spacing` pixels apart: a random shade per cell and the distance to its seed, float32."""
    count = int(np.clip(height * width / spacing**2, 2, 2000))
    seeds = np.ones((height, width), np.uint8)
    seeds[rng.integers(0, height, count), rng.integers(0, width, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return rng.random(int(labels.max()) + 1, dtype=np.float32)[labels], distance


def _cells(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    shade, distance = voronoi(rng, height, width, max(3.0, scale))
    weight = np.float32(rng.random())
    return weight * shade + (1 - weight) * np.clip(distance / np.float32(0.8 * max(3.0, scale)), 0, 1)


def _scribble(rng: Generator, height: int, width: int, scale: float) -> np.ndarray:
    ink = np.zeros((height, width), np.uint8)
    thickness = max(1, int(scale / 8))
    for _ in range(int(rng.integers(2, 9))):  # lines of writing: short strokes along a row
        y, x = rng.uniform(0, height), rng.uniform(-0.2, 0.6) * width
        strokes = int(rng.integers(3, 9))
        xs = x + np.cumsum(rng.uniform(0.2, 1.0, 2 * strokes)) * scale * 0.5
        points = np.stack([xs, y + rng.uniform(-0.4, 0.4, 2 * strokes) * scale], 1)
        cv2.polylines(ink, [(points * 16).astype(np.int32)], False, 255, thickness, cv2.LINE_AA, 4)
    return ink.astype(np.float32) * np.float32(1 / 255)


FIELDS: dict[str, tuple[float, Callable[[Generator, int, int, float], np.ndarray]]] = {
    "plain": (2.0, _plain),
    "gradient": (1.0, _gradient),
    "cloud": (4.0, _cloud),
    "fur": (1.5, _fur),
    "speckle": (1.2, _speckle),
    "stripes": (1.5, _stripes),
    "wood": (0.8, _wood),
    "checks": (0.7, _checks),
    "blobs": (1.3, _blobs),
    "dots": (0.5, _dots),
    "bricks": (0.5, _bricks),
    "cells": (1.0, _cells),
    "scribble": (0.6, _scribble),
}
_NAMES = list(FIELDS)
_CUMULATIVE = np.cumsum([weight for weight, _ in FIELDS.values()])


def random_texture(
    rng: Generator, height: int, width: int, palette: np.ndarray, scale: float | None = None, kind: str | None = None
) -> np.ndarray:
    """A texture of a random (or the named) kind in the three colours of `palette`, float32 `(height, width, 3)`.

    `scale` is the size of its elements in pixels (stripe period, cell width); drawn from 4 to 40 where not given.
    """
    if kind is None:
        kind = _NAMES[int(np.searchsorted(_CUMULATIVE, rng.random() * _CUMULATIVE[-1]))]
    if scale is None:
        scale = float(np.exp(rng.uniform(np.log(4), np.log(40))))
    field = FIELDS[kind][1](rng, height, width, scale).astype(np.float32, copy=False)
    picture = cv2.merge([palette[0, c] + field * (palette[1, c] - palette[0, c]) for c in range(3)])
    if rng.random() < 0.6 and height * width > 500:  # a second, slow change of colour: dirt, wear, uneven dye
        slow = fractal_noise(rng, height, width, rng.uniform(1.0, 2.0)) * np.float32(rng.uniform(0.1, 0.5))
        picture += cv2.merge([slow * (palette[2, c] - palette[0, c]) for c in range(3)])
    return picture
