"""Faultless industrial surfaces (brushed metal, fabric, wood, tiles) and the light on them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from samtune.data.procedural.textures import (
    Generator,
    fractal_noise,
    grid,
    linear_ramp,
    near_colour,
    smoothstep,
    times,
    voronoi,
    white_noise,
    wood_field,
)

# RGB in 0..1. Steel, aluminium, iron, brass, copper; common cloths; light and dark of each wood; glazes of tiles.
METALS = ((0.52, 0.53, 0.55), (0.62, 0.63, 0.64), (0.42, 0.42, 0.44), (0.62, 0.52, 0.34), (0.6, 0.43, 0.34))
CLOTHS = (
    (0.75, 0.7, 0.6), (0.25, 0.32, 0.45), (0.5, 0.5, 0.48), (0.5, 0.25, 0.22), (0.3, 0.38, 0.28), (0.82, 0.82, 0.8),
)  # fmt: skip
WOODS = (
    ((0.8, 0.63, 0.42), (0.62, 0.43, 0.25)),
    ((0.66, 0.47, 0.29), (0.47, 0.3, 0.17)),
    ((0.42, 0.28, 0.18), (0.27, 0.17, 0.1)),
    ((0.75, 0.53, 0.36), (0.62, 0.38, 0.24)),
    ((0.7, 0.62, 0.5), (0.55, 0.47, 0.37)),
)
GLAZES = (
    (0.85, 0.84, 0.8), (0.72, 0.62, 0.5), (0.5, 0.56, 0.6), (0.62, 0.4, 0.3), (0.36, 0.45, 0.42), (0.3, 0.3, 0.32),
)  # fmt: skip


@dataclass(frozen=True)
class Surface:
    """A flat piece of material: `albedo` float32 `(S, S, 3)` in 0..1, `height` float32 `(S, S)` in pixels."""

    kind: str
    albedo: np.ndarray
    height: np.ndarray
    gloss: float  # strength of mirror-like reflection, 0..1
    sharpness: float  # its exponent: small gives a wide sheen


@dataclass(frozen=True)
class Light:
    """A lamp at `azimuth` and `elevation` (radians) and how much of it arrives where, float32 `(S, S)` around 1."""

    azimuth: float
    elevation: float
    arriving: np.ndarray


def _mix(low: np.ndarray, high: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Colours from `low` to `high` as `field` `(H, W)` goes from 0 to 1; float32 `(H, W, 3)`."""
    return cv2.merge([np.float32(a) + np.float32(b - a) * field for a, b in zip(low, high, strict=True)])


def _turned(rng: Generator, size: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """y and x positions, float32 `(size, size)`, seen by a camera slightly turned and shifted."""
    rows, columns = grid(size, size)
    angle = rng.normal(0, spread)
    y = math.cos(angle) * rows - math.sin(angle) * columns + np.float32(rng.uniform(0, size))
    x = math.sin(angle) * rows + math.cos(angle) * columns + np.float32(rng.uniform(0, size))
    return y, x


def _brushed_metal(rng: Generator, size: int) -> Surface:
    metal = METALS[rng.choice(len(METALS), p=[0.35, 0.3, 0.2, 0.08, 0.07])]
    colour = near_colour(rng, np.array(metal, np.float32), 0.03)
    rows, columns = grid(size, size)
    if rng.random() < 0.15:  # turned on a lathe: grain in circles
        y0, x0 = rng.uniform(-0.5, 1.5, 2) * size
        radius = np.sqrt((rows - y0) ** 2 + (columns - x0) ** 2).astype(np.float32)
        angle = np.arctan2(rows - np.float32(y0), columns - np.float32(x0))
        flat = fractal_noise(rng, 2 * size, size, 0.3, 40.0)
        map_y = np.mod(radius, 2 * size - 1).astype(np.float32)
        map_x = (angle + np.float32(np.pi)) * np.float32((size - 1) / (2 * np.pi))
        grain = cv2.remap(flat, map_x, map_y, cv2.INTER_LINEAR)
        sheen = 0.5 + 0.5 * np.cos(2 * angle + np.float32(rng.uniform(0, 6)))
    else:
        angle = rng.normal(0, 0.05) + (math.pi / 2 if rng.random() < 0.4 else 0.0)
        grain = fractal_noise(rng, size, size, rng.uniform(0.2, 0.6), rng.uniform(20, 70), angle)
        along = linear_ramp(size, size, angle)
        sheen = np.exp(-(((along - np.float32(rng.uniform(-0.2, 1.2))) / np.float32(rng.uniform(0.2, 0.7))) ** 2))
    fine = white_noise(rng, (size, size)) * np.float32(0.012)
    cloudy = fractal_noise(rng, size, size, 1.6) * np.float32(rng.uniform(0.005, 0.03))
    shade = 0.8 + np.float32(rng.uniform(0.1, 0.45)) * sheen + fine + cloudy
    shade += np.float32(rng.uniform(0.02, 0.08)) * grain
    albedo = times(np.ascontiguousarray(np.broadcast_to(colour, (size, size, 3))), shade)
    height = grain * np.float32(rng.uniform(0.03, 0.1))
    return Surface("brushed_metal", albedo, height, rng.uniform(0.15, 0.4), rng.uniform(6, 25))


def _fabric(rng: Generator, size: int) -> Surface:
    unit = size / 256
    period = rng.uniform(3.2, 9.0) * unit
    y, x = _turned(rng, size, 0.15)
    bend = np.float32(rng.uniform(0.3, 1.2) * unit)
    across = (x + bend * fractal_noise(rng, size, size, 1.5)) / np.float32(period)
    down = (y + bend * fractal_noise(rng, size, size, 1.5)) / np.float32(period * rng.uniform(0.8, 1.25))
    column, row = np.floor(across), np.floor(down)
    weave = rng.random()
    if weave < 0.5:  # linen
        over = np.mod(column + row, 2) < 1
    elif weave < 0.85:  # twill, denim
        over = np.mod(column + row, 4) < 2
    else:  # satin
        over = np.mod(column + 2 * row, 5) < 1
    bulge_x, bulge_y = np.sin(np.pi * (across - column)), np.sin(np.pi * (down - row))
    # A thread is round across, and dips at its ends where it goes under the other.
    height = np.where(over, bulge_x * (0.55 + 0.45 * bulge_y), bulge_y * (0.55 + 0.45 * bulge_x)).astype(np.float32)
    threads = int(max(column.max(), row.max())) + 2
    shade_x, shade_y = (rng.normal(0, rng.uniform(0.01, 0.06), threads).astype(np.float32) for _ in range(2))
    first = near_colour(rng, _cloth_colour(rng), 0.05)
    second = near_colour(rng, first, 0.05) if rng.random() < 0.6 else near_colour(rng, _cloth_colour(rng), 0.05)
    tint = np.where(over, shade_x[np.maximum(column, 0).astype(int)], shade_y[np.maximum(row, 0).astype(int)])
    colour = _mix(second, first, over.astype(np.float32))
    if rng.random() < 0.25:  # woven stripes
        width = rng.uniform(3, 12)
        stripe = (np.mod(column, 2 * width) < width) & over
        colour[stripe] = near_colour(rng, first, 0.25)
    fuzz = 0.04 * white_noise(rng, (size, size)) + np.float32(0.03) * fractal_noise(rng, size, size, 1.2)
    albedo = times(colour, (0.72 + 0.3 * height + tint + fuzz).astype(np.float32))
    return Surface("fabric", albedo, height * np.float32(0.22 * period), 0.03, 4.0)


def _cloth_colour(rng: Generator) -> np.ndarray:
    return np.array(CLOTHS[rng.integers(len(CLOTHS))], np.float32)


def _wood(rng: Generator, size: int) -> Surface:
    light, dark = (near_colour(rng, np.array(c, np.float32), 0.03) for c in WOODS[rng.integers(len(WOODS))])
    angle = rng.normal(0, 0.06) + (math.pi / 2 if rng.random() < 0.5 else 0.0)
    unit = size / 256
    rings = wood_field(rng, size, size, rng.uniform(8, 26) * unit, angle)
    height = np.zeros((size, size), np.float32)
    if rng.random() < 0.35:  # boards side by side, each its own piece of tree
        ramp = linear_ramp(size, size, angle + math.pi / 2) * rng.uniform(1.5, 3.5) + rng.uniform(0, 1)
        board = np.floor(ramp).astype(int)
        for index in range(1, int(board.max()) + 1):
            rings = np.where(board == index, wood_field(rng, size, size, rng.uniform(8, 26) * unit, angle), rings)
        shade = (1 + rng.normal(0, 0.06, int(board.max()) + 1)).astype(np.float32)[board]
        gap = np.minimum(ramp - board, 1 - (ramp - board))
        seam = 1 - smoothstep(gap.astype(np.float32), 0.004, 0.015)
        height -= 1.5 * seam
    else:
        shade, seam = np.ones((size, size), np.float32), height
    fibre = fractal_noise(rng, size, size, 0.4, 35.0, angle)
    pores = smoothstep(fractal_noise(rng, size, size, 0.1, 14.0, angle), 1.4, 2.4)
    field = np.clip(np.float32(rng.uniform(0.4, 1.0)) * rings + 0.14 * fibre, -0.2, 1.2)
    albedo = _mix(light, dark, field.astype(np.float32))
    slow = 1 + np.float32(0.05) * fractal_noise(rng, size, size, 1.8)
    albedo = times(albedo, (shade * slow * (1 - 0.3 * pores) * (1 - 0.6 * seam)).astype(np.float32))
    height += 0.15 * fibre - 0.5 * pores
    return Surface("wood", albedo, height.astype(np.float32), rng.uniform(0.02, 0.18), rng.uniform(8, 40))


def _tiles(rng: Generator, size: int) -> Surface:
    unit = size / 256
    y, x = _turned(rng, size, 0.08)
    tall = rng.uniform(45, 190) * unit
    wide = tall * (1.0 if rng.random() < 0.6 else rng.uniform(1.3, 2.2))
    row = np.floor(y / np.float32(tall))
    shift = rng.choice([0.0, 0.0, 0.5])
    across = x / np.float32(wide) + np.mod(row, 2) * np.float32(shift)
    column = np.floor(across)
    in_y, in_x = y - row * np.float32(tall), (across - column) * np.float32(wide)
    edge = np.minimum(np.minimum(in_y, tall - in_y), np.minimum(in_x, wide - in_x)).astype(np.float32)
    joint = rng.uniform(1.0, 3.0) * unit
    inside = smoothstep(edge, joint, joint + 1.2)
    shades = (1 + rng.normal(0, rng.uniform(0.0, 0.05), 4096)).astype(np.float32)
    tile = np.mod(row * 61 + column * 17, 4096).astype(int)
    base = near_colour(rng, np.array(GLAZES[rng.integers(len(GLAZES))], np.float32), 0.05)
    face = _tile_face(rng, size, base)
    face = times(face, shades[tile])
    mortar = near_colour(rng, np.full(3, rng.uniform(0.25, 0.8), np.float32), 0.03)
    grout = _mix(mortar, np.float32(0.5) * mortar, 0.3 * rng.random((size, size), np.float32))
    albedo = cv2.blendLinear(face, grout, inside, 1 - inside)
    pillow = smoothstep(edge, joint, joint + rng.uniform(2, 7) * unit) * np.float32(rng.uniform(1.0, 3.0))
    rough = white_noise(rng, (size, size)) * np.float32(0.25)
    height = pillow + rough * (1 - inside) + np.float32(rng.uniform(0.0, 0.5)) * fractal_noise(rng, size, size, 1.6)
    return Surface("tiles", albedo, height, rng.uniform(0.1, 0.5), rng.uniform(20, 80))


def _tile_face(rng: Generator, size: int, base: np.ndarray) -> np.ndarray:
    """The glaze or stone of tiles, float32 `(size, size, 3)`."""
    choice = rng.random()
    if choice < 0.3:  # mottled glaze
        field = fractal_noise(rng, size, size, rng.uniform(0.6, 1.6)) * np.float32(0.3) + np.float32(0.5)
        return _mix(near_colour(rng, base, 0.04), near_colour(rng, base, 0.05), field)
    if choice < 0.55:  # veined stone
        veins = 1 - np.abs(fractal_noise(rng, size, size, 1.4)) * np.float32(rng.uniform(2, 5))
        field = np.clip(veins, 0, 1) * smoothstep(fractal_noise(rng, size, size, 1.6), -0.8, 0.8)
        return _mix(base, near_colour(rng, base * np.float32(0.8), 0.08), field)
    if choice < 0.8:  # terrazzo, granite
        shade, distance = voronoi(rng, size, size, rng.uniform(3, 9) * size / 256)
        chips = shade * (distance < np.float32(rng.uniform(1.5, 6)))
        return _mix(base, near_colour(rng, base * np.float32(0.75), 0.15), np.ascontiguousarray(chips, np.float32))
    return np.ascontiguousarray(np.broadcast_to(base, (size, size, 3)))


SURFACES: dict[str, Callable[[Generator, int], Surface]] = {
    "brushed_metal": _brushed_metal,
    "fabric": _fabric,
    "wood": _wood,
    "tiles": _tiles,
}


def random_light(rng: Generator, size: int) -> Light:
    """A lamp: raking or steep, even or falling off to one side or round a spot."""
    rows, columns = grid(size, size)
    choice = rng.random()
    if choice < 0.4:
        ramp = linear_ramp(size, size, rng.uniform(0, 2 * np.pi)) - np.float32(0.5)
        arriving = 1 + np.float32(rng.uniform(0.05, 0.5)) * ramp
    elif choice < 0.8:
        y, x = rng.uniform(0.0, 1.0, 2) * size
        reach = np.float32((rng.uniform(0.5, 1.5) * size) ** 2)
        arriving = 0.65 + 0.5 * np.exp(-((rows - np.float32(y)) ** 2 + (columns - np.float32(x)) ** 2) / reach)
    else:
        arriving = np.ones((size, size), np.float32)
    return Light(rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.2), arriving.astype(np.float32))


def render(surface: Surface, light: Light) -> np.ndarray:
    """The surface in that light: diffuse and mirror-like reflection of its relief; float32 `(S, S, 3)` around 0..1."""
    slope_x = cv2.Sobel(surface.height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    slope_y = cv2.Sobel(surface.height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    length = np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    flat = math.cos(light.elevation)
    lamp_x, lamp_y, lamp_z = flat * math.cos(light.azimuth), flat * math.sin(light.azimuth), math.sin(light.elevation)
    towards = (lamp_z - slope_x * lamp_x - slope_y * lamp_y) / length
    # Blinn: the half-way vector between lamp and a camera straight above.
    half = math.sqrt(lamp_x**2 + lamp_y**2 + (lamp_z + 1) ** 2)
    mirror = np.maximum(((lamp_z + 1) - slope_x * lamp_x - slope_y * lamp_y) / (length * half), 0)
    shine = np.float32(0.5 * surface.gloss) * mirror ** np.float32(surface.sharpness) * light.arriving
    diffuse = (0.35 + np.float32(0.65 / lamp_z) * np.maximum(towards, 0)) * light.arriving
    return times(surface.albedo, diffuse.astype(np.float32)) + cv2.merge([shine.astype(np.float32)] * 3)
