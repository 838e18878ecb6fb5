"""Ground penetrating radar B-scans: buried pipes and bars as hyperbolas, disturbed ground as bands from top to bottom.

Columns are traces along the survey line, rows are two-way travel time. Each reflection is a Ricker wavelet at its
arrival time. A point-like target is also seen from the side, so that its arrival times form a hyperbola. Where the
ground was dug up or has cracked, all traces differ from their neighbours: a vertical band through the whole section, as
in SAM-SP's set Seg-GPR (figure 3 of the paper).
"""

import math

import cv2
import numpy as np

from samtune.data.procedural.textures import Generator, fractal_noise, grid, smoothstep, to_uint8, white_noise

LINE_SLOPE = 1.4  # how fast a line's spectrum falls; that of a field of which it is a row falls by 0.5 faster


def ricker(time: np.ndarray, period: float) -> np.ndarray:
    """A Ricker wavelet of the shape of `time`, float32: 1 at time 0, side lobes of -0.45 at about 0.4 periods."""
    squared = (time * np.float32(math.pi / period)) ** 2
    return ((1 - 2 * squared) * np.exp(-squared)).astype(np.float32)


def _reflection(size: int, arrival: np.ndarray, strength: np.ndarray, period: float) -> np.ndarray:
    """A wavelet at `arrival` `(size,)` rows in each trace, times `strength` `(size,)`; float32 `(size, size)`."""
    return ricker(grid(size, size)[0] - arrival[None].astype(np.float32), period) * strength[None].astype(np.float32)


def _profile(rng: Generator, size: int, roughness: float) -> np.ndarray:
    """A random line along the survey, zero mean, deviation about `roughness` pixels; `(size,)`."""
    return fractal_noise(rng, 32, size, LINE_SLOPE + 0.5)[16] * roughness


def _ground(rng: Generator, size: int, period: float) -> np.ndarray:
    """Direct wave, ringing, layers and soil clutter; float32 `(size, size)`."""
    unit = size / 256
    surface = size * rng.uniform(0.01, 0.08) + _profile(rng, size, rng.uniform(0, 1.0) * unit)
    coupling = 1 + 0.1 * _profile(rng, size, 1.0)
    field = _reflection(size, surface, 3.5 * coupling, 1.2 * period)
    ring_step, ring_decay, ring = period * rng.uniform(1.0, 1.8), rng.uniform(0.6, 0.9), rng.uniform(0.3, 1.8)
    for number in range(1, 14):  # the antenna rings: level bands, fainter and fainter
        strength = ring * ring_decay**number * rng.choice([-1, 1]) * coupling
        field += _reflection(size, surface + number * ring_step, strength, period * rng.uniform(0.9, 1.2))
    depth = rng.uniform(0.1, 0.35) * size
    tilt = rng.normal(0, 0.06)
    while depth < 0.97 * size:
        line = depth + tilt * (np.arange(size) - size / 2) + _profile(rng, size, rng.uniform(0.5, 7) * unit)
        strength = rng.normal(0, 0.7) * (1 + 0.5 * _profile(rng, size, 1.0)) * math.exp(-depth / size)
        field += _reflection(size, line, strength, period)
        if rng.random() < 0.3:  # a thin bed: top and bottom
            field -= 0.7 * _reflection(size, line + period * rng.uniform(0.8, 1.6), strength, period)
        depth += rng.uniform(0.05, 0.3) * size
    return field + _clutter(rng, size, period, rng.uniform(1.5, 5), (0.06, 0.3))


def _clutter(rng: Generator, size: int, period: float, length: float, strength: tuple[float, float]) -> np.ndarray:
    """Stones and roots: noise with the wavelet's own band in time, patchy, drawn out along the layers by `length`."""
    unit = size / 256
    kernel = ricker(np.arange(-int(period) - 1, int(period) + 2, dtype=np.float32), period)
    soil = cv2.GaussianBlur(white_noise(rng, (size, size)), (0, 0), sigmaX=length * unit, sigmaY=0.6)
    soil = cv2.filter2D(soil, cv2.CV_32F, kernel[:, None])
    patches = np.exp(np.float32(0.5) * fractal_noise(rng, size, size, 1.6, rng.uniform(1, 3)))
    return soil * patches * np.float32(rng.uniform(*strength) / (float(soil.std()) + 1e-6))


def _disturb(rng: Generator, field: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """The field with a band of disturbed ground, and where it is, bool `(size, size)`: one piece in every row.

    In the band layers have sunk or risen, echoes are fainter or stronger, and stones lie without order.
    """
    size = len(field)
    unit = size / 256
    columns = grid(size, size)[1]
    centre = size * rng.uniform(0.2, 0.8) + _profile(rng, size, rng.uniform(0, 6) * unit)
    half = size * rng.uniform(0.05, 0.15) * np.clip(1 + 0.2 * _profile(rng, size, 1.0), 0.4, 2)
    half = half * (1 + rng.uniform(-0.5, 1.0) * np.arange(size) / size)  # narrower or wider with depth
    inside = (half[:, None] - np.abs(columns - centre[:, None])).astype(np.float32)  # pixels from the nearer edge
    shift = np.array([[1, 0, 0], [0, 1, rng.choice([-1, 1]) * rng.uniform(0.3, 1.5) * period]])
    moved = cv2.warpAffine(field, shift, (size, size), borderMode=cv2.BORDER_REFLECT)
    strength = math.exp(rng.uniform(math.log(0.2), math.log(0.5))) * rng.choice([1, 8])
    moved = moved * np.float32(strength) + _clutter(rng, size, period, rng.uniform(1, 4), (0.05, 0.6))
    edge = rng.uniform(0.5, 2) * unit
    share = smoothstep(inside, -edge, edge)
    return field * (1 - share) + moved * share, inside > 0


def _targets(rng: Generator, size: int) -> list[tuple[float, float, float, float]]:
    """Where the buried things are: column and row of each apex, flatness of the hyperbola, strength."""
    speed = math.exp(rng.uniform(math.log(0.7), math.log(2.4)))  # rows per column far out on the flanks
    strength = math.exp(rng.uniform(math.log(0.9), math.log(2.8)))
    if rng.random() < 0.25:  # reinforcement: bars at one depth and even distances
        step, row = rng.uniform(0.13, 0.3) * size, rng.uniform(0.2, 0.6) * size
        columns = np.arange(rng.uniform(0.05, 1) * step, size, step)
        places = np.stack([columns, np.full(len(columns), row)], 1) + rng.normal(0, 0.01 * size, (len(columns), 2))
        return [(x, y, speed, strength * rng.uniform(0.8, 1.2)) for x, y in places.tolist()]
    targets: list[tuple[float, float, float, float]] = []
    for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1]))):
        for _ in range(20):
            x, y = rng.uniform(0.08, 0.92) * size, rng.uniform(0.16, 0.78) * size
            if all(abs(x - other[0]) + abs(y - other[1]) > 0.22 * size for other in targets):
                targets.append((x, y, speed * rng.uniform(0.9, 1.1), strength * rng.uniform(0.6, 1.4)))
                break
    return targets


def b_scan(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """A radar section: image uint8 `(size, size, 3)` (grey, rarely in colour), masks bool `(N, size, size)`, N >= 1,
    and classes.

    "hyperbola": the stripe in which a target's first wavelet, and its first echo if there is one, is visible; down the
    flanks to where it is a quarter as strong as at the apex. "band", at most one: disturbed ground, from the first row
    to the last. Two in five sections have a band, and most of those nothing else.
    """
    unit = size / 256
    period = rng.uniform(6, 14) * unit
    field = _ground(rng, size, period)
    masks, kinds = [], []
    targets = _targets(rng, size)
    if rng.random() < 0.4:
        field, band = _disturb(rng, field, period)
        masks, kinds = [band], ["band"]
        targets = targets if rng.random() < 0.3 else []
    columns, rows = np.arange(size, dtype=np.float32), grid(size, size)[0]
    for x, y, speed, strength in targets:
        zero = y * rng.uniform(0.45, 1.0)  # time counted from the ground's surface: shallow targets have narrow arms
        offset = (columns - x) * speed
        arrival = (y - zero) + np.sqrt(zero**2 + offset**2)
        aperture = rng.uniform(0.4, 0.9) * (zero + 12 * unit)  # the antenna's beam: flanks fade
        fade = np.exp(-((offset / aperture) ** 2)) * (zero / np.sqrt(zero**2 + offset**2))
        fade = fade * np.clip(1 + 0.18 * _profile(rng, size, 1.0), 0.4, 1.6)
        polarity, last = rng.choice([-1.0, 1.0]), 0.0
        near = np.abs(rows - arrival) < period
        strength = max(strength, rng.uniform(1.3, 2.5) * float(field[near].std()) if near.any() else 0.0)  # to be seen
        field += _reflection(size, arrival, polarity * strength * fade, period)
        if rng.random() < 0.5:  # the far side of a pipe, or a ringing metal bar
            later = period * rng.uniform(0.75, 0.95)
            for number in range(1, int(rng.integers(2, 5))):
                echo = polarity * strength * fade * (-0.6) ** number
                field += _reflection(size, arrival + number * later, echo, period)
            last = later  # what follows the first echo is too faint to count
        arms = np.asarray(fade > 0.25)
        gaps = np.cumsum(~arms)
        arms &= gaps == gaps[int(np.clip(round(x), 0, size - 1))]  # one piece, round the apex
        stripe = (rows > arrival - 0.62 * period) & (rows < arrival + last + 0.62 * period)
        mask = stripe & arms[None]
        if np.count_nonzero(mask) >= 20:
            masks.append(mask)
            kinds.append("hyperbola")
    if not masks:  # all targets at the very edge: draw again
        return b_scan(rng, size)
    image = _display(rng, field, period)
    return image, np.stack(masks), tuple(kinds)


def _display(rng: Generator, field: np.ndarray, period: float) -> np.ndarray:
    """Processing and print: noise, background removal, gain over time, clipping, colours; uint8 `(S, S, 3)`."""
    size = len(field)
    rows = grid(size, size)[0]
    field = field * np.exp(-rows * np.float32(rng.uniform(0.2, 0.8) / size))
    noise = cv2.GaussianBlur(white_noise(rng, (size, size)), (0, 0), sigmaX=0.5, sigmaY=max(0.6, 0.08 * period))
    field = field + noise * np.float32(math.exp(rng.uniform(math.log(0.02), math.log(0.12))))
    traces = 1 + np.float32(rng.uniform(0, 0.06)) * white_noise(rng, (1, size))  # unequal contact with the ground
    field = field * traces
    if rng.random() < 0.45:  # the mean trace taken out: direct wave and ringing mostly go
        field = field - np.float32(rng.uniform(0.6, 1.0)) * field.mean(1, keepdims=True)
    if rng.random() < 0.7:  # automatic gain: even strength over time
        level = np.sqrt(cv2.GaussianBlur(field * field, (0, 0), sigmaX=size / 3, sigmaY=size / rng.uniform(5, 12)))
        field = field / (level + np.float32(0.3) * level.mean())
    below = np.abs(field[size // 6 :])  # the direct wave may clip, as it does in practice
    spread = float(np.percentile(below, rng.uniform(96, 99.5)))
    shade = np.clip(np.float32(0.5) + field * np.float32(0.5 / (spread + 1e-6)), 0, 1)
    if rng.random() < 0.3:
        shade = 1 - shade
    if rng.random() < 0.08:  # a seismic palette: blue, white, red
        up, down = smoothstep(shade, 0.5, 1.0), smoothstep(-shade, -0.5, 0.0)
        picture = cv2.merge([1 - down * np.float32(0.85), 1 - np.float32(0.9) * (up + down), 1 - up * np.float32(0.85)])
    else:
        dark, gamma = rng.uniform(0, 0.1), rng.uniform(0.8, 1.25)
        shade = np.float32(dark) + np.float32(1 - 2 * dark) * shade ** np.float32(gamma)
        picture = cv2.merge([shade, shade, shade])
    return to_uint8(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.7) * size / 256))
