"""Endoscopy-like pictures: polyps and flat lesions on a wet, folded, vessel-covered mucosa."""

import math

import cv2
import numpy as np

from samtune.data.procedural.shapes import fourier_outline
from samtune.data.procedural.textures import (
    Generator,
    fractal_noise,
    grid,
    near_colour,
    smoothstep,
    times,
    to_uint8,
    white_noise,
)


def _vessels(rng: Generator, size: int) -> np.ndarray:
    """A net of branching vessels, float32 `(size, size)`, 0..1 where blood shows."""
    unit = size / 256
    ink = np.zeros((2 * size, 2 * size), np.uint8)
    branches = [
        (*(rng.uniform(-0.1, 1.1, 2) * size), rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 2.2) * unit)
        for _ in range(int(rng.integers(1, 6)))
    ]
    drawn = 0
    while branches and drawn < 60:
        x, y, heading, width = branches.pop(0)
        drawn += 1
        steps = int(rng.integers(8, 22))
        headings = heading + np.cumsum(rng.normal(0, 0.25, steps))
        path = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], 1), 0) * 6.0 * unit + (x, y)
        fixed = np.round(path * 32).astype(np.int32)
        cv2.polylines(ink, [fixed], False, 255, max(1, round(2 * width)), cv2.LINE_AA, 4)
        if width > 0.35 * unit:
            for at in np.flatnonzero(rng.random(steps) < 0.16):
                turned = headings[at] + rng.choice([-1, 1]) * rng.uniform(0.4, 1.1)
                branches.append((*path[at], turned, 0.7 * width))
    net = cv2.resize(ink, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) * np.float32(1 / 255)
    deep = cv2.GaussianBlur(net, (0, 0), rng.uniform(0.7, 1.6) * unit)  # seen through tissue
    return deep * smoothstep(fractal_noise(rng, size, size, 1.6), -1.0, 0.8)


def _tunnel(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The wall of a gut: relief in pixels and nearness 0 (far, in the lumen) to 1, float32 `(size, size)` each."""
    rows, columns = grid(size, size)
    inside = rng.random() < 0.55  # the lumen is in the picture, else the camera looks at the wall
    centre = rng.uniform(0.2, 0.8, 2) if inside else 0.5 + rng.uniform(0.8, 1.5) * _direction(rng)
    wobble = fractal_noise(rng, size, size, 2.0)
    y, x = rows / np.float32(size) - np.float32(centre[0]), columns / np.float32(size) - np.float32(centre[1])
    radius = np.sqrt((y * np.float32(rng.uniform(0.8, 1.25))) ** 2 + x * x)
    radius = radius * (1 + np.float32(0.1) * wobble) + np.float32(0.01)
    nearness = np.clip(radius / 1.8, 0, 1)
    if inside:
        nearness = smoothstep(radius, rng.uniform(-0.05, 0.06), rng.uniform(0.45, 0.9))
    # Folds: rings round the lumen, closer together the farther they lie; steep towards the camera.
    phase = np.log(radius) * np.float32(rng.uniform(4, 9)) + np.float32(rng.uniform(0.3, 0.9)) * wobble
    fold = np.abs(np.sin(phase + np.float32(rng.uniform(0, 6)))) ** np.float32(0.6)
    relief = fold * radius * np.float32(size * rng.uniform(0.01, 0.07))
    relief = relief * smoothstep(fractal_noise(rng, size, size, 2.0), -1.0, 0.5)  # folds end somewhere
    relief = cv2.GaussianBlur(relief, (0, 0), 1.5 * size / 256)
    relief += fractal_noise(rng, size, size, 2.2) * np.float32(0.012 * size)
    return relief, nearness.astype(np.float32)


def _direction(rng: Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([math.sin(angle), math.cos(angle)])


def _outline(rng: Generator, size: int, radius: float, amplitude: float) -> np.ndarray:
    """How deep inside a roundish growth each pixel lies: 0 outside, 1 in the middle; float32."""
    points = fourier_outline(rng, amplitude, 1.6) * [1, rng.uniform(0.6, 1.0)]
    turn = rng.uniform(0, np.pi)
    points = points @ np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    centre = rng.uniform(0.16, 0.84, 2) * size
    filled = np.zeros((size, size), np.uint8)
    cv2.fillPoly(filled, [np.round((points * radius + centre) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    distance = cv2.distanceTransform((filled > 127).astype(np.uint8), cv2.DIST_L2, 5)
    return distance * np.float32(1 / max(float(distance.max()), 1e-3))


def endoscopy(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """An endoscope's image: uint8 `(size, size, 3)`, masks bool `(N, size, size)`, N >= 1, and the class of each.

    Classes are "polyp" (raised) and "lesion" (flat: redder, paler or darker). Masks do not overlap, and end at the edge
    of the field of view (outside it is black, as in the real sets).
    """
    unit = size / 256
    relief, nearness = _tunnel(rng, size)
    view = _field_of_view(rng, size)
    hue = near_colour(rng, np.array([0.78, 0.42, 0.33], np.float32), 0.06)
    albedo = np.empty((size, size, 3), np.float32)
    albedo[:] = hue
    flush, pale = fractal_noise(rng, size, size, 1.5), fractal_noise(rng, size, size, 1.0)
    albedo += cv2.merge([flush * np.float32(v) for v in (0.015, -0.04, -0.035)])
    albedo += cv2.merge([pale * np.float32(v) for v in (0.012, 0.02, 0.02)])
    blood = _vessels(rng, size) * np.float32(rng.uniform(0.15, 0.75))
    masks: list[np.ndarray] = []
    kinds: list[str] = []
    wanted = int(rng.choice([1, 2, 3], p=[0.72, 0.2, 0.08]))
    for _ in range(60):  # places are drawn until enough of them are free, lit and inside the field of view
        if len(masks) == wanted:
            break
        radius = math.exp(rng.uniform(math.log(0.05), math.log(0.24))) * size
        flat = rng.random() < 0.3
        depth = _outline(rng, size, radius, rng.uniform(0.15, 0.4) if flat else rng.uniform(0.05, 0.25))
        mask = (depth > 0.02) & view
        taken = sum(masks, np.zeros((size, size), bool))
        if np.count_nonzero(mask) < 60 or np.any(mask & taken) or np.mean(nearness[mask] < 0.3) > 0.2:
            continue
        if flat:
            cover = smoothstep(depth, 0.0, rng.uniform(0.15, 0.5))
            cover = cover * (np.float32(0.8) + np.float32(0.2) * fractal_noise(rng, size, size, 1.2))
            changes = [(-0.08, -0.2, -0.16), (0.08, 0.2, 0.18), (-0.3, -0.22, -0.18), (0.06, -0.12, -0.1)]
            change = np.array(changes[rng.integers(4)]) * rng.uniform(0.6, 1.2)
            albedo += cv2.merge([np.float32(v) * cover for v in change])
            relief = relief + np.float32(rng.uniform(-0.05, 0.08) * radius) * cover
        else:
            relief, albedo, blood = _polyp(rng, relief, albedo, blood, depth, radius)
        masks.append(mask)
        kinds.append("lesion" if flat else "polyp")
    if not masks:
        return endoscopy(rng, size)
    albedo += cv2.merge([blood * np.float32(v) for v in (-0.3, -0.34, -0.26)])
    picture = _lit(rng, relief, nearness, albedo, unit)
    return _camera(rng, picture, view, unit), np.stack(masks), tuple(kinds)


def _polyp(
    rng: Generator, relief: np.ndarray, albedo: np.ndarray, blood: np.ndarray, depth: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raise a polyp out of the wall: a dome or a plateau, lobed or smooth, with its own colour and pits."""
    size = len(depth)
    dome = np.sqrt(np.clip(1 - (1 - depth) ** 2, 0, 1))
    if rng.random() < 0.3:
        dome = np.minimum(dome, np.float32(rng.uniform(0.6, 0.9)))
    dome = cv2.GaussianBlur(dome, (0, 0), 0.06 * radius + 0.6)
    lobes = fractal_noise(rng, size, size, 1.7) * np.float32(rng.uniform(0.0, 0.12))
    tall = np.float32(rng.uniform(0.25, 0.8) * radius)
    # The wall's own relief is stretched over the growth, hence fainter there.
    relief = relief * (1 - np.float32(0.6) * dome) + tall * dome * (1 + lobes)
    cover = smoothstep(depth, 0.0, 0.25)
    changes = [(0.05, -0.1, -0.08), (0.06, 0.08, 0.06), (-0.04, -0.1, -0.07)]  # redder, paler, darker
    change = np.array(changes[rng.integers(3)]) * rng.uniform(0.4, 1.0)
    albedo = albedo + cv2.merge([np.float32(v) * cover for v in change])
    pits = fractal_noise(rng, size, size, 0.6) * np.float32(rng.uniform(0.005, 0.03))
    pits = cv2.GaussianBlur(pits, (0, 0), 0.8) * cover
    albedo += cv2.merge([pits * 2, pits * 3, pits * 3])
    # Less light gets to the crease at its foot, and least on the side away from the lamp.
    shift = _direction(rng) * rng.uniform(0.05, 0.3) * radius
    move = np.array([[1, 0, shift[1]], [0, 1, shift[0]]], np.float32)
    shadow = cv2.warpAffine(cover, move, (size, size))
    foot = cv2.GaussianBlur(shadow, (0, 0), rng.uniform(0.06, 0.2) * radius + 0.5) * (1 - cover)
    albedo = times(albedo, 1 - np.float32(rng.uniform(0.05, 0.65)) * foot)
    return relief, albedo, blood * (1 - np.float32(rng.uniform(0.3, 0.9)) * cover)


def _lit(rng: Generator, relief: np.ndarray, nearness: np.ndarray, albedo: np.ndarray, unit: float) -> np.ndarray:
    """The wet wall in the light of a lamp beside the camera; float32 `(S, S, 3)`."""
    size = len(relief)
    rows, columns = grid(size, size)
    slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    lamp_y, lamp_x = rng.uniform(0.2, 0.8, 2) * size
    high = np.float32(rng.uniform(0.5, 0.9) * size)
    to_x, to_y = np.float32(lamp_x) - columns, np.float32(lamp_y) - rows
    far = np.sqrt(to_x * to_x + to_y * to_y + high * high)
    length = np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    diffuse = np.maximum(high - slope_x * to_x - slope_y * to_y, 0) / (far * length)
    fall = np.float32(0.12) + np.float32(0.95) * nearness
    arriving = ((np.float32(0.22) + np.float32(0.85) * diffuse) * fall).astype(np.float32)
    # Light that has crossed much blood-filled tissue comes back red: the far lumen is dark red, not grey.
    redder = fall ** np.float32(rng.uniform(0.1, 0.5))
    picture = albedo * cv2.merge([arriving, arriving * redder, arriving * redder])
    # Mirror reflections of the lamp on a wet film, broken up by fine bumps.
    film = fractal_noise(rng, size, size, 1.3) * np.float32(rng.uniform(0.05, 0.2) * unit)
    bump_x = slope_x + cv2.Sobel(film, cv2.CV_32F, 1, 0, ksize=3, scale=0.5)
    bump_y = slope_y + cv2.Sobel(film, cv2.CV_32F, 0, 1, ksize=3, scale=0.5)
    half_z = high + far
    towards = half_z - bump_x * to_x - bump_y * to_y
    half_length = np.sqrt(to_x * to_x + to_y * to_y + half_z * half_z)
    mirror = towards / (half_length * np.sqrt(1 + bump_x * bump_x + bump_y * bump_y))
    gleam = np.maximum(mirror, 0) ** np.float32(rng.uniform(120, 500)) * fall
    gleam = smoothstep(gleam, rng.uniform(0.35, 0.6), 0.98) * np.float32(rng.uniform(0.6, 1.3))
    gleam = gleam + np.float32(0.35) * cv2.GaussianBlur(gleam, (0, 0), 2.0 * unit)
    return picture + cv2.merge([gleam, gleam, gleam])


def _field_of_view(rng: Generator, size: int) -> np.ndarray:
    """What the endoscope shows, bool `(size, size)`: all, an octagon or a disc."""
    rows, columns = grid(size, size)
    y, x = np.abs(rows - size / 2) / size, np.abs(columns - size / 2) / size
    choice = rng.random()
    if choice < 0.5:
        return np.ones((size, size), bool)
    if choice < 0.8:
        return (x + y < rng.uniform(0.72, 0.9)) & (x < 0.49) & (y < 0.49)
    return x * x + y * y < rng.uniform(0.49, 0.58) ** 2


def _camera(rng: Generator, picture: np.ndarray, view: np.ndarray, unit: float) -> np.ndarray:
    """Vignette, blur of focus and motion, exposure, interlacing noise, JPEG; float32 in, uint8 out."""
    size = len(view)
    rows, columns = grid(size, size)
    reach = ((rows / size - 0.5) ** 2 + (columns / size - 0.5) ** 2) * np.float32(rng.uniform(0.3, 1.2))
    gain = rng.uniform(0.36, 0.52) / max(float(picture[view].mean()), 1e-3)
    picture = times(picture, (np.float32(gain) * (1 - np.minimum(reach, np.float32(0.8)))).astype(np.float32))
    cast = rng.normal(0, 0.04)
    picture = cv2.multiply(picture, (1 + cast, 1.0, 1 - cast, 0.0))
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.3) * unit)
    if rng.random() < 0.2:  # the tip moves
        reach_px = rng.uniform(2, 6) * unit
        step = _direction(rng) * reach_px
        moves = [np.array([[1, 0, step[1] * k], [0, 1, step[0] * k]], np.float32) for k in (-0.5, 0.0, 0.5)]
        shifted = [cv2.warpAffine(picture, m, (size, size), borderMode=cv2.BORDER_REPLICATE) for m in moves]
        picture = (shifted[0] + shifted[1] + shifted[2]) * np.float32(1 / 3)
    over = np.maximum(picture - np.float32(0.85), 0)
    picture = np.minimum(picture, np.float32(0.85)) + over / (1 + 5 * over)
    window = cv2.GaussianBlur(view.astype(np.float32), (0, 0), 0.7 * unit)
    picture = times(picture, window) + white_noise(rng, picture.shape) * np.float32(rng.uniform(0.004, 0.02))
    image = to_uint8(picture)
    quality = int(rng.integers(55, 98))
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
