"""Outlines of invented things: the shapes of the objects in synthetic scenes, before they are painted.

A shape is a list of parts, painted in order. A part is a list of `(polygon, filled)` steps; `filled` False cuts a hole
into that part. Polygons are float arrays `(n, 2)` of x, y in arbitrary units, y pointing down.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

Generator = np.random.Generator
Part = list[tuple[np.ndarray, bool]]
Shape = list[Part]


@lru_cache(maxsize=16)
def _circle(n: int) -> np.ndarray:
    turn = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(turn), np.sin(turn)], 1)


_HALF_TURN = np.linspace(-np.pi / 2, np.pi / 2, 7)
_HALF_CIRCLE = np.stack([np.cos(_HALF_TURN), np.sin(_HALF_TURN)], 1)


def ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0, power: float = 2.0, n: int = 36) -> np.ndarray:
    """Outline of a superellipse (`power` 2: ellipse, larger: rounded box)."""
    points = _circle(n)
    if power != 2.0:
        points = np.sign(points) * np.abs(points) ** (2 / power)
    cosine, sine = math.cos(angle), math.sin(angle)
    return points @ np.array([[a * cosine, a * sine], [-b * sine, b * cosine]]) + (x, y)


def capsule(start: np.ndarray, end: np.ndarray, r0: float, r1: float) -> np.ndarray:
    """Outline of a tapered limb from `start` (radius r0) to `end` (radius r1)."""
    x, y = float(end[0] - start[0]), float(end[1] - start[1])
    length = math.hypot(x, y) or 1.0
    x, y = x / length, y / length
    cap = _HALF_CIRCLE @ np.array([[x, y], [-y, x]])
    return np.concatenate([end + r1 * cap, start - r0 * cap])


def limb(joints: list, radii: list[float]) -> Part:
    """A chain of capsules through `joints`."""
    points = np.asarray(joints, float)
    return [(capsule(points[i], points[i + 1], radii[i], radii[i + 1]), True) for i in range(len(points) - 1)]


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Outline of an upright rectangle."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def fourier_outline(rng: Generator, amplitude: float, decay: float, n: int = 80) -> np.ndarray:
    """A closed, star-shaped outline around 0 whose log radius is a random Fourier series."""
    order = np.arange(1, 16)[:, None]
    phase = rng.uniform(0, 2 * np.pi, (15, 1))
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    wave = (rng.normal(0, 1, (15, 1)) * order**-decay * np.cos(order * turn + phase)).sum(0)
    radius = np.exp(np.clip(amplitude * wave, -1.6, 1.2))
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)


def _blob(rng: Generator) -> Shape:
    outline = fourier_outline(rng, rng.uniform(0.1, 0.8), rng.uniform(0.8, 2.0)) * [1, rng.uniform(0.4, 1)]
    return [[(outline, True)]]


def _polygon(rng: Generator) -> Shape:
    n = int(rng.integers(3, 9))
    turn = np.sort((np.arange(n) + rng.uniform(-0.35, 0.35, n)) / n) * 2 * np.pi
    radius = rng.uniform(rng.uniform(0.3, 0.95), 1.0, n)
    return [[(np.stack([radius * np.cos(turn), radius * np.sin(turn) * rng.uniform(0.4, 1)], 1), True)]]


def _ellipse(rng: Generator) -> Shape:
    power = 2.0 if rng.random() < 0.6 else rng.uniform(1.3, 6.0)
    return [[(ellipse(0, 0, 1, rng.uniform(0.35, 1), power=power), True)]]


def _cuboid(rng: Generator) -> Shape:
    w, h = rng.uniform(0.5, 1.5, 2)
    dx, dy = rng.uniform(-0.6, 0.6), -rng.uniform(0.1, 0.5)
    front = box(0, 0, w, h)
    top = np.array([[0, 0], [w, 0], [w + dx, dy], [dx, dy]])
    side_x = w if dx > 0 else 0.0
    side = np.array([[side_x, 0], [side_x + dx, dy], [side_x + dx, h + dy], [side_x, h]])
    return [[(side, True)], [(top, True)], [(front, True)]]


def _strip(rng: Generator, thickness: tuple[float, float] = (0.06, 0.3)) -> Shape:
    n = 14
    bend = rng.normal(0, rng.uniform(0.05, 0.35)) + np.cumsum(rng.normal(0, 0.12, n))
    heading = np.cumsum(bend) * rng.uniform(0.3, 1.0)
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0) * 2 / n
    base = rng.uniform(*thickness)
    taper = base * (1 - rng.uniform(0, 0.85) * np.abs(np.linspace(rng.uniform(-1, 0), 1, n)) ** 1.5)
    return [limb(list(points), list(taper))]


def _thin(rng: Generator) -> Shape:
    if rng.random() < 0.4:
        return _strip(rng, (0.015, 0.05))
    part: Part = []  # a twig: a stem that forks
    tips = [(np.zeros(2), -np.pi / 2, rng.uniform(0.02, 0.06))]
    for _ in range(int(rng.integers(2, 5))):
        grown = []
        for start, angle, radius in tips:
            for _ in range(int(rng.integers(1, 4))):
                turned = angle + rng.normal(0, 0.5)
                end = start + rng.uniform(0.25, 0.6) * np.array([np.cos(turned), np.sin(turned)])
                part.append((capsule(start, end, radius, 0.75 * radius), True))
                grown.append((end, turned, 0.75 * radius))
        tips = grown[:8]
    return [part]


def _person(rng: Generator) -> Shape:
    fat, lean = rng.uniform(0.8, 1.5), rng.normal(0, 0.12)
    shoulder, hip = 0.27 * fat, 0.17 * fat
    neck = np.array([lean, -1.0])
    legs: Part = []
    for side in (-1, 1):
        knee = np.array([side * 0.12 + rng.normal(0, 0.18), 0.5])
        foot = knee + [rng.normal(0, 0.15), 0.5]
        toe = foot + [rng.normal(0, 0.14), 0.03]
        legs += limb([[side * 0.1 * fat, 0], knee, foot, toe], [0.13 * fat, 0.1, 0.07, 0.06])
    if rng.random() < 0.25:  # a skirt or a coat
        legs.append((np.array([[-hip, -0.1], [hip, -0.1], [0.4 * fat, 0.55], [-0.4 * fat, 0.55]]), True))
    shoulders = [neck + [-shoulder, 0.05], neck + [0, -0.06], neck + [shoulder, 0.05]]
    torso: Part = [(np.array([*shoulders, [hip, 0.08], [-hip, 0.08]]), True)]
    skin: Part = [(ellipse(lean * 1.3, -1.27, 0.15, 0.19), True), (capsule(neck, neck + [0, -0.15], 0.08, 0.07), True)]
    for side in (-1, 1):
        start = neck + [side * shoulder * 0.9, 0.1]
        elbow = start + 0.42 * np.array([np.sin(a := rng.normal(side * 0.4, 0.5)), np.cos(a)])
        hand = elbow + 0.4 * np.array([np.sin(b := a + rng.normal(0, 0.7)), np.cos(b)])
        torso += limb([start, elbow], [0.09 * fat, 0.075])
        skin += limb([elbow, hand], [0.065, 0.055])
    hair: Part = [(ellipse(lean * 1.3, -1.36, 0.17, 0.13, rng.normal(0, 0.3)), True)]
    parts = [legs, skin, torso] if rng.random() < 0.5 else [legs, torso, skin]
    return parts + ([hair] if rng.random() < 0.8 else [])


def _animal(rng: Generator) -> Shape:
    tall, deep = rng.uniform(0.25, 0.9), rng.uniform(0.25, 0.42)
    body: Part = [(fourier_outline(rng, 0.1, 1.0, 40) * [0.75, deep], True)]
    for x in (-0.55, -0.4, 0.4, 0.52):
        knee = [x + rng.normal(0, 0.08), deep * 0.6 + 0.5 * tall]
        body += limb([[x, 0.05], knee, [knee[0] + rng.normal(0, 0.08), deep * 0.6 + tall]], [0.17, 0.085, 0.05])
    neck = np.array([0.75, -deep]) + [rng.uniform(0, 0.3), -rng.uniform(-0.2, 0.6)]
    body += limb([[0.5, -0.1], neck], [0.8 * deep, 0.13])
    bend = [-0.7 - rng.uniform(0.1, 0.3), rng.normal(-0.1, 0.3)]
    tip = [-0.7 - rng.uniform(0.2, 0.6), rng.normal(-0.1, 0.4)]
    body += limb([[-0.7, -0.1], bend, tip], [0.08, 0.06, 0.03])
    angle = rng.uniform(-0.2, 0.8)
    nose = neck + rng.uniform(0.15, 0.45) * np.array([np.cos(angle), np.sin(angle)])
    head = limb([neck, nose], [0.18, rng.uniform(0.07, 0.14)])
    for x in (-0.1, 0.06):
        head.append((neck + np.array([[x - 0.06, -0.08], [x + 0.06, -0.1], [x, -rng.uniform(0.2, 0.45)]]), True))
    return [body, head]


def _bird_or_fish(rng: Generator) -> Shape:
    deep = rng.uniform(0.25, 0.55)
    body: Part = [(ellipse(0, 0, 0.9, deep, power=rng.uniform(1.5, 2.2)), True)]
    spread = rng.uniform(0.2, 0.6)
    notch, lower = -1.4 + rng.uniform(0, 0.3), spread * rng.uniform(0, 1)
    tail: Part = [(np.array([[-0.7, 0], [-1.4, -spread], [notch, 0], [-1.4, lower]]), True)]
    root, tip = rng.uniform(-0.3, 0.3), rng.uniform(-1.3, 0.3)
    wing: Part = [(np.array([[root - 0.3, -0.1], [root + 0.35, -0.1], [tip, -rng.uniform(0.5, 1.5)]]), True)]
    head: Part = [(ellipse(0.85, -0.15, 0.28, 0.25), True), (np.array([[1.0, -0.25], [1.4, -0.1], [1.0, -0.02]]), True)]
    return [tail, body, wing] + ([head] if rng.random() < 0.5 else [])


def _ring(rng: Generator) -> Shape:
    b, power = rng.uniform(0.5, 1), (2.0 if rng.random() < 0.6 else 8.0)
    inner = rng.uniform(0.35, 0.85)
    hole = ellipse(rng.normal(0, 0.03), rng.normal(0, 0.03), inner, b * inner, power=power)
    return [[(ellipse(0, 0, 1, b, power=power), True), (hole, False)]]


def _holed(rng: Generator) -> Shape:
    part: Part = [(fourier_outline(rng, rng.uniform(0.05, 0.4), 1.2), True)]
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.uniform(-0.5, 0.5, 2)
        part.append((ellipse(x, y, rng.uniform(0.08, 0.35), rng.uniform(0.08, 0.3), rng.uniform(0, 3)), False))
    return [part]


def _mug(rng: Generator) -> Shape:
    w, x = rng.uniform(0.35, 0.7), rng.uniform(0.15, 0.3)
    handle: Part = [(ellipse(w, 0, x + 0.12, 0.42), True), (ellipse(w, 0, x, 0.28), False)]
    wall = np.array([[-w, -0.7], [w, -0.7], [w * 0.9, 0.7], [-w * 0.9, 0.7]])
    body: Part = [(wall, True), (ellipse(0, 0.7, w * 0.9, 0.12), True)]
    return [handle, body, [(ellipse(0, -0.7, w, 0.14), True)]]


def _bottle(rng: Generator) -> Shape:
    knots = np.linspace(0, 1, 7)
    radius = np.clip(rng.uniform(0.08, 0.45, 7), 0.06, None)
    radius[1] = radius[0] * rng.uniform(0.8, 1.3)
    t = np.linspace(0, 1, 30)
    smooth = np.convolve(np.pad(np.interp(t, knots, radius), 3, mode="edge"), np.ones(7) / 7, "valid")
    right, left = np.stack([smooth, 2 * t], 1), np.stack([-smooth, 2 * t], 1)
    parts: Shape = [[(np.concatenate([right, left[::-1]]), True)]]
    if rng.random() < 0.7:  # a label round the belly
        a, b = np.sort(rng.integers(6, 29, 2))
        if b - a > 3:
            parts.append([(np.concatenate([right[a:b], left[a:b][::-1]]), True)])
    if rng.random() < 0.5:
        parts.append([(box(-smooth[0] * 1.1, -0.15, smooth[0] * 1.1, 0.08), True)])
    return parts


def _vehicle(rng: Generator) -> Shape:
    long, roof = rng.uniform(0.9, 1.6), rng.uniform(0.25, 0.9)
    a, b = np.sort(rng.uniform(-0.95, 0.95, 2)) * long
    a, b = (a, b) if b - a > 0.5 else (-0.5 * long, 0.6 * long)
    slope = rng.uniform(0, 0.35)
    body: Part = [
        (ellipse(0, 0, long, 0.3, power=7), True),
        (np.array([[a, -0.2], [a + slope, -0.2 - roof], [b - slope * 0.7, -0.2 - roof], [b, -0.2]]), True),
    ]
    panes: Part = []
    edges = np.linspace(a + slope * 0.9, b - slope * 0.7, int(rng.integers(2, 6)))
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        panes.append((box(left + 0.04, -0.14 - roof * 0.85, right - 0.04, -0.2), True))
    size = rng.uniform(0.16, 0.3)
    wheels: Part = [(ellipse(x, 0.3, size, size), True) for x in (-0.6 * long, 0.6 * long)]
    hubs: Part = [(ellipse(x, 0.3, 0.5 * size, 0.5 * size), True) for x in (-0.6 * long, 0.6 * long)]
    return [body, panes, wheels] + ([hubs] if rng.random() < 0.5 else [])


def _house(rng: Generator) -> Shape:
    w, h = rng.uniform(0.5, 1.3), rng.uniform(0.6, 1.8)
    wall: Part = [(box(-w, 0, w, h), True)]
    peak = rng.uniform(-0.5, 0.5) * w
    roof: Part = [(np.array([[-1.15 * w, 0.02], [peak, -rng.uniform(0.2, 0.8)], [1.15 * w, 0.02]]), True)]
    openings: Part = [(box(-0.15, 0.65 * h, 0.15, h), True)]
    for y in np.arange(0.2, 0.6 * h, 0.4):
        for x in np.linspace(-0.75 * w, 0.75 * w, int(rng.integers(2, 5))):
            openings.append((box(x - 0.1, y, x + 0.1, y + 0.22), True))
    return [wall, roof, openings] if rng.random() < 0.7 else [wall, openings]


def _tree(rng: Generator) -> Shape:
    trunk = limb([[0, 1.2], [rng.normal(0, 0.08), 0.4], [rng.normal(0, 0.15), -0.2]], [0.16, 0.11, 0.07])
    crown: Part = []
    for _ in range(int(rng.integers(1, 6))):
        scale = rng.uniform(0.35, 0.7)
        centre = np.array([rng.normal(0, 0.35), rng.uniform(-0.9, 0.1)])
        crown.append((centre + scale * fourier_outline(rng, rng.uniform(0.15, 0.4), 0.35, 120), True))
    return [trunk, crown]


def _furniture(rng: Generator) -> Shape:
    w, leg, slant = rng.uniform(0.4, 1.0), rng.uniform(0.5, 1.1), rng.uniform(0, 0.2)
    thick = rng.uniform(0.025, 0.07)
    legs: Part = []
    for x, length in ((-w, leg), (w, leg), (-0.6 * w, 0.75 * leg), (0.7 * w, 0.75 * leg)):
        legs += limb([[x * 0.92, 0], [x * (1 + slant), length]], [thick, thick * 0.8])
    deep = rng.uniform(0.08, 0.3)
    top: Part = [(np.array([[-w, 0.08], [-0.75 * w, -deep], [0.85 * w, -deep], [w, 0.08]]), True)]
    if rng.random() < 0.5:
        return [legs, top]
    back: Part = [(ellipse(0.05 * w, -0.6, 0.8 * w, 0.55, power=6), True)]
    for x in np.linspace(-0.5, 0.6, int(rng.integers(0, 5))):
        back.append((box(x * w - 0.06, -0.95, x * w + 0.06, -0.3), False))
    return [legs, back, top]


def _flower(rng: Generator) -> Shape:
    petals: Part = []
    n, a, b = int(rng.integers(4, 13)), rng.uniform(0.25, 0.5), rng.uniform(0.08, 0.3)
    for turn in np.arange(n) * 2 * np.pi / n + rng.normal(0, 0.08, n):
        petals.append((ellipse((a + 0.12) * np.cos(turn), (a + 0.12) * np.sin(turn), a, b, turn, n=20), True))
    parts = [petals, [(ellipse(0, 0, rng.uniform(0.12, 0.3), rng.uniform(0.12, 0.25)), True)]]
    if rng.random() < 0.5:
        parts.insert(0, limb([[0, 0], [rng.normal(0, 0.2), 0.9], [rng.normal(0, 0.3), 1.8]], [0.04, 0.04, 0.05]))
    return parts


def _leaf(rng: Generator) -> Shape:
    t = np.linspace(0, 1, 25)
    width = rng.uniform(0.15, 0.5) * np.sin(np.pi * t ** rng.uniform(0.6, 1.4))
    width = width * (1 + 0.12 * np.sin(t * rng.uniform(20, 70)))
    spine = rng.normal(0, 0.3) * (t - t**2)
    outline = np.concatenate([np.stack([2 * t, spine + width], 1), np.stack([2 * t, spine - width], 1)[::-1]])
    return [[(outline, True), *limb([[-0.3, 0], [0.1, 0]], [0.03, 0.03])]]


def _cluster(rng: Generator) -> Shape:
    part: Part = []
    for _ in range(int(rng.integers(3, 10))):
        x, y, r = rng.normal(0, 0.5), rng.normal(0, 0.4), rng.uniform(0.2, 0.45)
        part.append((ellipse(x, y, r, r * rng.uniform(0.7, 1.2), n=24), True))
    return [part]


def _umbrella(rng: Generator) -> Shape:
    turn = np.linspace(np.pi, 2 * np.pi, 20)
    deep = rng.uniform(0.35, 0.9)
    cap = np.stack([np.cos(turn), deep * np.sin(turn)], 1)
    stem = limb([[0, 0], [rng.normal(0, 0.1), rng.uniform(0.7, 1.6)]], [r := rng.uniform(0.03, 0.25), r])
    return [stem, [(cap, True), (ellipse(0, 0, 1, rng.uniform(0.05, 0.25)), True)]]


def _patched(rng: Generator) -> Shape:
    """A blob of several differently coloured parts: a band, a half, or patches (all inside the outline)."""
    outline = fourier_outline(rng, rng.uniform(0.05, 0.5), 1.3) * [1, rng.uniform(0.5, 1)]
    parts: Shape = [[(outline, True)]]
    for _ in range(int(rng.integers(1, 4))):
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.4)
        side = outline @ np.array([np.cos(angle), np.sin(angle)])
        across = outline @ np.array([-np.sin(angle), np.cos(angle)])
        kept = np.clip(side, offset, offset + rng.uniform(0.15, 1.5))  # the outline squeezed into a band
        if np.ptp(kept) > 0.1:
            axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            parts.append([(np.stack([kept, across * 0.97], 1) @ axes, True)])
    return parts


SHAPES: dict[str, tuple[float, Callable[[Generator], Shape], float]] = {
    # name: (weight, function, how far it may be turned in radians)
    "blob": (3.0, _blob, np.pi),
    "polygon": (1.5, _polygon, np.pi),
    "ellipse": (1.5, _ellipse, np.pi),
    "cuboid": (1.3, _cuboid, 0.15),
    "strip": (1.5, _strip, np.pi),
    "thin": (0.8, _thin, np.pi),
    "person": (2.0, _person, 0.15),
    "animal": (2.0, _animal, 0.2),
    "bird_or_fish": (1.2, _bird_or_fish, 0.6),
    "ring": (0.7, _ring, np.pi),
    "holed": (0.6, _holed, np.pi),
    "mug": (0.7, _mug, 0.1),
    "bottle": (1.2, _bottle, 0.2),
    "vehicle": (1.5, _vehicle, 0.1),
    "house": (0.8, _house, 0.05),
    "tree": (1.0, _tree, 0.1),
    "furniture": (0.9, _furniture, 0.1),
    "flower": (0.8, _flower, 0.4),
    "leaf": (0.8, _leaf, np.pi),
    "cluster": (0.7, _cluster, np.pi),
    "umbrella": (0.6, _umbrella, 0.4),
    "patched": (2.0, _patched, np.pi),
}
_NAMES = list(SHAPES)
_CUMULATIVE = np.cumsum([weight for weight, _, _ in SHAPES.values()])


def random_kind(rng: Generator) -> str:
    """The name of a shape, drawn by weight."""
    return _NAMES[int(np.searchsorted(_CUMULATIVE, rng.random() * _CUMULATIVE[-1]))]


def rasterise(rng: Generator, kind: str, side: float, margin: int) -> list[np.ndarray]:
    """Draw a random shape of `kind`: for each part one antialiased uint8 alpha `(h, w)`, its longer side `side` pixels.

    The shape is randomly mirrored, turned and slightly sheared, with `margin` empty pixels around it.
    """
    _, make, most_turn = SHAPES[kind]
    parts = make(rng)
    turn = rng.uniform(-most_turn, most_turn)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.array([[rng.choice([-1.0, 1.0]), rng.normal(0, 0.12)], [0, 1]])
    everything = np.concatenate([polygon for part in parts for polygon, _ in part]) @ matrix.T
    low, high = everything.min(0), everything.max(0)
    scale = side / max(float((high - low).max()), 1e-6)
    width, height = np.ceil((high - low) * scale).astype(int) + 2 * margin + 1
    everything = np.round((everything - low) * (16 * scale) + 16 * margin).astype(np.int32)
    start = 0
    layers = []
    for part in parts:
        layer = np.zeros((height, width), np.uint8)
        for polygon, filled in part:
            fixed = everything[start : start + len(polygon)]
            start += len(polygon)
            cv2.fillPoly(layer, [fixed], 255 if filled else 0, cv2.LINE_AA, 4)
        layers.append(layer)
    return layers
