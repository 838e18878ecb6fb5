"""Images of industrial inspection: a surface with scratches, cracks, dents and stains, from subtle to obvious.

Everything is drawn with and without the defects. So each defect's contrast can be set in grey levels, and the same
image exists without defects.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from samtune.data.procedural.shapes import fourier_outline
from samtune.data.procedural.surfaces import SURFACES, Light, Surface, random_light, render
from samtune.data.procedural.textures import (
    Generator,
    fractal_noise,
    near_colour,
    smoothstep,
    times,
    to_uint8,
    white_noise,
)

# What a stain does to the colour beneath: times the first, plus the second. Oil, rust, water, paint, ink.
LIQUIDS = (
    ((0.35, 0.3, 0.25), (0.02, 0.02, 0.02)),
    ((0.5, 0.34, 0.24), (0.14, 0.07, 0.03)),
    ((0.75, 0.72, 0.6), (0.0, 0.0, 0.0)),
    ((0.6, 0.6, 0.6), (0.32, 0.32, 0.3)),
    ((0.5, 0.55, 0.7), (0.02, 0.03, 0.1)),
)


@dataclass(frozen=True)
class Defect:
    """One defect, at strength 1.

    Fields:
        kind: "scratch", "crack", "dent" or "stain".
        mask: bool `(S, S)`: the defect's pixels.
        cover: float32 `(S, S)` in [0, 1]: where it is, and how much it covers.
        tint: the albedo is blended towards albedo * tint + paint.
        paint: see `tint`.
        relief: added to the height, in pixels.
    """

    kind: str
    mask: np.ndarray
    cover: np.ndarray
    tint: np.ndarray
    paint: np.ndarray
    relief: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """An image of a surface.

    Fields:
        image: uint8 `(S, S, 3)`.
        faultless: the same image (same material, light, camera and noise) without the defects.
        masks: bool `(N, S, S)`.
        kinds: of the N defects.
        surface: a key of `SURFACES`.
    """

    image: np.ndarray
    faultless: np.ndarray
    masks: np.ndarray
    kinds: tuple[str, ...]
    surface: str


def _wandering_line(rng: Generator, size: int, length: float, wander: float, steps: int) -> np.ndarray:
    """Points `(steps, 2)` of a line through a random place, whose direction drifts by `wander` radians in all."""
    start, heading = rng.uniform(0.15, 0.85, 2) * size, rng.uniform(0, 2 * np.pi)
    heading = heading + np.cumsum(rng.normal(0, wander / math.sqrt(steps), steps))
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0) * (length / steps)
    return points - points[steps // 2] + start


Stroke = tuple[np.ndarray, np.ndarray, np.ndarray]  # points (n, 2), widths (n,) in pixels, strengths (n,) 0..1


def _draw_strokes(size: int, strokes: list[Stroke]) -> np.ndarray:
    """Antialiased lines of changing width and strength, float32 `(size, size)` 0..1."""
    scale = 4  # drawn large and shrunk: widths below a pixel get their due
    big = np.zeros((size * scale, size * scale), np.uint8)
    for points, widths, strengths in strokes:
        fixed = np.round((points + 0.5) * scale * 16).astype(np.int32).tolist()
        for i in range(len(fixed) - 1):
            thickness = max(1, round(float(widths[i]) * scale))
            cv2.line(big, fixed[i], fixed[i + 1], int(255 * strengths[i]), thickness, cv2.LINE_8, 4)
    return cv2.resize(big, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) * np.float32(1 / 255)


def _scratch(rng: Generator, size: int, surface: Surface) -> Defect:
    unit, steps = size / 256, 40
    points = _wandering_line(rng, size, rng.uniform(0.12, 0.9) * size, rng.uniform(0.02, 0.5), steps)
    progress = np.linspace(0, 1, steps)
    pressure = np.clip(1.3 * np.sin(np.pi * np.clip(progress, 0.03, 0.97)) ** 0.4 + rng.normal(0, 0.08, steps), 0.5, 1)
    width = rng.uniform(0.9, 2.6) * unit
    strokes = [(points, width * pressure, pressure)]
    for _ in range(int(rng.choice([0, 0, 1, 2]))):  # the same grain scratched again, beside it
        beside = points + rng.normal(0, 2.5 * unit, 2)
        some = slice(int(rng.integers(0, steps // 2)), int(rng.integers(steps // 2 + 4, steps)))
        strokes.insert(0, (beside[some], 0.7 * width * pressure[some], 0.8 * pressure[some]))
    soft = cv2.GaussianBlur(_draw_strokes(size, strokes), (0, 0), 0.6 * unit)
    bright = rng.random() < (0.7 if surface.kind in ("brushed_metal", "wood") else 0.4)
    tint, paint = (np.full(3, 0.75), np.full(3, 0.32)) if bright else (np.full(3, 0.45), np.full(3, 0.02))
    return Defect("scratch", soft > 0.3, soft, tint, paint, -soft * np.float32(1.2 * unit))


def _crack(rng: Generator, size: int, surface: Surface) -> Defect:
    unit = size / 256
    strokes: list[Stroke] = []

    def grow(points: np.ndarray, width: float, depth: int) -> None:
        steps = len(points)
        widths = width * np.clip(np.linspace(1.0, 0.35, steps) + rng.normal(0, 0.25, steps), 0.25, 1.6)
        strokes.append((points, widths, np.ones(steps)))
        for _ in range(int(rng.integers(0, 4)) if depth < 2 else 0):
            at = int(rng.integers(steps // 5, steps - 2))
            turn = math.atan2(*(points[at + 1] - points[at])[::-1]) + rng.choice([-1, 1]) * rng.uniform(0.4, 1.2)
            count = int(rng.integers(8, max(9, steps // 2)))
            headings = turn + np.cumsum(rng.normal(0, 0.2, count)) + rng.normal(0, 0.5, count)
            step = np.linalg.norm(points[at + 1] - points[at]) * rng.uniform(0.6, 1.0)
            branch = points[at] + np.cumsum(np.stack([np.cos(headings), np.sin(headings)], 1), 0) * step
            grow(np.concatenate([points[at : at + 1], branch]), 0.65 * width, depth + 1)

    steps = int(rng.integers(30, 70))
    main = _wandering_line(rng, size, rng.uniform(0.25, 1.0) * size, 1.2, steps)
    main = main + rng.normal(0, rng.uniform(0.4, 1.4) * unit, main.shape)  # a crack zigzags
    grow(main, rng.uniform(1.0, 3.4) * unit, 0)
    cover = _draw_strokes(size, strokes)
    soft = cv2.GaussianBlur(cover, (0, 0), 0.5 * unit)
    shade = rng.uniform(0.08, 0.4)
    edge = cv2.GaussianBlur(cover, (0, 0), 1.5 * unit)  # lips a little raised
    relief = (0.5 * edge - 2.0 * soft) * np.float32(unit)
    return Defect("crack", soft > 0.3, soft, np.full(3, shade), np.full(3, 0.01), relief)


def _blob_field(rng: Generator, size: int, radius: float, roughness: float, elongation: float) -> np.ndarray:
    """A bump, float32: 1 in the middle, 0 from an irregular outline about `radius` pixels away."""
    outline = fourier_outline(rng, roughness, 1.3) * [1, elongation]
    turn = rng.uniform(0, np.pi)
    outline = outline @ np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    centre = rng.uniform(0.12, 0.88, 2) * size
    filled = np.zeros((size, size), np.uint8)
    cv2.fillPoly(filled, [np.round((outline * radius + centre) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    distance = cv2.distanceTransform((filled > 127).astype(np.uint8), cv2.DIST_L2, 5)
    return distance * np.float32(1 / max(float(distance.max()), 1e-3))


def _dent(rng: Generator, size: int, surface: Surface) -> Defect:
    radius = math.exp(rng.uniform(math.log(0.03), math.log(0.16))) * size
    field = _blob_field(rng, size, radius, rng.uniform(0.05, 0.3), rng.uniform(0.5, 1.0))
    hit = smoothstep(field, 0.0, rng.uniform(0.6, 1.0))
    cover = smoothstep(field, 0.0, 0.35)
    tint, paint, smooth = np.full(3, 0.72), np.zeros(3), 0.14
    if surface.kind == "tiles" and rng.random() < 0.7:  # a chip: the glaze is off, raw clay shows
        hit = smoothstep(field, 0.0, 0.25)
        hit = hit * (1 + 0.2 * fractal_noise(rng, size, size, 0.9))
        cover = smoothstep(field, 0.0, 0.12)
        paint = near_colour(rng, np.array([0.5, 0.36, 0.27], np.float32), 0.08) * 0.8
        tint, smooth = np.full(3, 0.15), 0.02
    relief = -hit * np.float32(rng.uniform(0.2, 0.55) * radius)
    relief = cv2.GaussianBlur(relief.astype(np.float32), (0, 0), smooth * radius + 0.5)
    return Defect("dent", field > 0.02, cover, tint, paint, relief)


def _stain(rng: Generator, size: int, surface: Surface) -> Defect:
    radius = math.exp(rng.uniform(math.log(0.03), math.log(0.22))) * size
    field = _blob_field(rng, size, radius, rng.uniform(0.1, 0.5), rng.uniform(0.5, 1.0))
    noise = fractal_noise(rng, size, size, 1.4) * np.float32(rng.uniform(0.02, 0.12))
    level = np.where(field > 0, field + noise, 0).astype(np.float32)
    if rng.random() < 0.4:  # splashes around it
        for _ in range(int(rng.integers(2, 8))):
            y, x = np.unravel_index(int(np.argmax(field)), field.shape)
            at = np.array([x, y]) + rng.normal(0, 1.3 * radius, 2)
            spot = np.zeros((size, size), np.uint8)
            drop = round(16 * (rng.uniform(0.04, 0.16) * radius + 1))
            cv2.circle(spot, np.round(at * 16).astype(int).tolist(), drop, 255, -1, cv2.LINE_AA, 4)
            level = np.maximum(level, spot * np.float32(0.5 / 255))
    cover = smoothstep(level, 0.02, rng.uniform(0.1, 0.45))
    cover = cv2.GaussianBlur(cover, (0, 0), rng.uniform(0.4, 1.5) * size / 256)
    tint, paint = (np.array(c, np.float32) for c in LIQUIDS[rng.integers(len(LIQUIDS))])
    mask = cover > 0.2
    if rng.random() < 0.4:  # dried from the edge: a darker rim
        cover = cover * np.float32(0.65) + np.float32(0.6) * cover * smoothstep(-level, -0.45, -0.05)
    else:
        patches = fractal_noise(rng, size, size, 1.5) * np.float32(rng.uniform(0.05, 0.25))
        cover = cover * (np.float32(0.8) + patches)
    return Defect("stain", mask, np.clip(cover, 0, 1), near_colour(rng, tint, 0.05), paint, np.zeros_like(cover))


DEFECTS: dict[str, Callable[[Generator, int, Surface], Defect]] = {
    "scratch": _scratch,
    "crack": _crack,
    "dent": _dent,
    "stain": _stain,
}


def _damage(surface: Surface, defect: Defect, strength: float) -> Surface:
    """The surface with one defect of that strength (about 0.05 to 1)."""
    amount = defect.cover * np.float32(strength)
    target = surface.albedo * defect.tint.astype(np.float32) + defect.paint.astype(np.float32)
    albedo = surface.albedo + times(target - surface.albedo, amount)
    return replace(surface, albedo=albedo, height=surface.height + defect.relief * np.float32(strength))


def _contrast(defect: Defect, with_it: np.ndarray, without: np.ndarray) -> float:
    """Mean change inside the mask, in grey levels (of 255)."""
    return float(np.abs(with_it[defect.mask] - without[defect.mask]).mean() * 255)


def _apply(
    rng: Generator, surface: Surface, light: Light, defect: Defect, before: np.ndarray
) -> tuple[Surface, np.ndarray]:
    """The surface and its picture with the defect, at a contrast drawn between subtle and obvious."""
    local = cv2.dilate(defect.mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    clutter = float(before[local].std() * 255)  # it must not drown in the material's own pattern
    wanted = math.exp(rng.uniform(math.log(5), math.log(45))) + 0.35 * clutter
    strength = 0.5
    for _ in range(3):
        damaged = _damage(surface, defect, strength)
        picture = render(damaged, light)
        measured = _contrast(defect, picture, before)
        if abs(measured - wanted) < 0.1 * wanted or (strength >= 1.3 and measured < wanted):
            break
        strength = float(np.clip(strength * wanted / max(measured, 1e-3), 0.05, 1.3))
    else:
        damaged = _damage(surface, defect, strength)
        picture = render(damaged, light)
    return damaged, picture


def inspect(
    rng: Generator, size: int, surface: str | None = None, defects: tuple[str, ...] | None = None
) -> Inspection:
    """An inspection image of a random (or the named) surface with random (or the named) defects.

    One generator state gives one surface, light and camera, whatever the defects; `defects=()` gives a good part. Names
    are keys of `SURFACES` and `DEFECTS` (else KeyError). A defect that is too small (under 20 pixels) or covers another
    one is drawn again.
    """
    material_rng, defect_rng, camera_rng = (np.random.default_rng(int(seed)) for seed in rng.integers(0, 2**63, 3))
    name = str(material_rng.choice(list(SURFACES)))
    material = SURFACES[surface or name](material_rng, size)
    light = random_light(material_rng, size)
    faultless = render(material, light)
    if defects is None:
        count = int(defect_rng.choice([1, 2, 3, 4], p=[0.6, 0.22, 0.12, 0.06]))
        defects = tuple(str(kind) for kind in defect_rng.choice(list(DEFECTS), count))
    picture, masks = faultless, []
    taken = np.zeros((size, size), bool)
    for kind in defects:
        while True:
            defect = DEFECTS[kind](defect_rng, size, material)
            area = np.count_nonzero(defect.mask)
            if area >= 20 and np.count_nonzero(defect.mask & taken) <= 0.15 * area:
                break
        material, picture = _apply(defect_rng, material, light, defect, picture)
        masks.append(defect.mask)
        taken |= defect.mask
    brightness, camera = float(faultless.mean()), camera_rng.bit_generator.state
    image = _photograph(camera_rng, picture, brightness)
    camera_rng.bit_generator.state = camera  # the same noise again
    clean = _photograph(camera_rng, faultless, brightness)
    stack = np.stack(masks) if masks else np.zeros((0, size, size), bool)
    return Inspection(image, clean, stack, tuple(defects), surface or name)


def _photograph(rng: Generator, picture: np.ndarray, brightness: float) -> np.ndarray:
    """Exposure, white balance, a little blur, noise; at times a grey camera. float32 in, uint8 out."""
    gain = rng.uniform(0.32, 0.6) / max(brightness, 1e-3)
    cast = rng.normal(0, 0.02)
    picture = cv2.multiply(picture, (gain * (1 + cast), gain, gain * (1 - cast), 0.0))
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.9) * picture.shape[0] / 256)
    if rng.random() < 0.25:
        picture = cv2.merge([picture.mean(2)] * 3)
    over = np.maximum(picture - np.float32(0.8), 0)
    picture = np.minimum(picture, np.float32(0.8)) + over / (1 + 4 * over)
    noise = white_noise(rng, picture.shape) * np.float32(rng.uniform(0.003, 0.02))
    return to_uint8(picture + noise)
