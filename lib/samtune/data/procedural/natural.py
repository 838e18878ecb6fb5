"""Natural-like scenes: many overlapping textured objects, painted from back to front, with masks of their visible
parts.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from samtune.data.procedural import shapes
from samtune.data.procedural.textures import (
    fractal_noise,
    grid,
    linear_ramp,
    near_colour,
    random_colour,
    random_palette,
    random_texture,
    times,
    to_uint8,
    white_noise,
)

Generator = np.random.Generator
Extent = tuple[slice, slice, np.ndarray]
MIN_VISIBLE = 20  # pixels; what shows less of itself gets no mask


@dataclass(frozen=True)
class Scene:
    """An image and what is in it.

    Fields:
        image: uint8 `(size, size, 3)`.
        masks: bool `(N, size, size)`: the visible part of each thing.
        kinds: N of "object" (nearest last), "part" (of an object) and "region" (ground, sky, wall).
        extents: N of rows, columns and, within them, bool: all that the thing would cover if nothing were in front of
            it.
    """

    image: np.ndarray
    masks: np.ndarray
    kinds: tuple[str, ...]
    extents: tuple[Extent, ...]


@dataclass
class _Painting:
    """The picture under way: colours, which object and which part is nearest at each pixel, light, focus."""

    image: np.ndarray  # float32 (size, size, 3), 0..1
    objects: np.ndarray  # int16 (size, size): 0 where only background shows
    parts: np.ndarray  # int16 (size, size): 0 where no part of its own shows
    light: float  # where the light comes from, radians
    shadow: float  # how dark cast shadows are, 0 none
    edge: float  # blur of every outline, in pixels
    defocus: float  # added blur, in pixels, of the farthest things
    near_focus: bool  # the nearest things blur instead


def natural_scene(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene without classes: image uint8 `(size, size, 3)` and masks bool `(N, size, size)`, N >= 1.

    The masks are objects, then their parts of other colours, then (sometimes) regions of the background. Every mask
    holds only what is visible, and at least 20 pixels. The same generator state gives the same scene.
    """
    scene = draw_scene(rng, size)
    return scene.image, scene.masks


def draw_scene(rng: Generator, size: int) -> Scene:
    """The scene of `natural_scene`, with all that is known about it."""
    scene = _draw(rng, size)
    while len(scene.masks) == 0:  # rare: everything hidden or too small
        scene = _draw(rng, size)
    return scene


def _draw(rng: Generator, size: int) -> Scene:
    image, regions, horizon = _background(rng, size)
    defocus = rng.uniform(0.5, 4.0) * size / 256 if rng.random() < 0.35 else 0.0
    near_focus = bool(rng.random() < 0.25)
    if defocus and not near_focus:
        image = cv2.GaussianBlur(image, (0, 0), defocus)
    blank = np.zeros((size, size), np.int16)
    painting = _Painting(
        image=image,
        objects=blank.copy(),
        parts=blank.copy(),
        light=rng.uniform(0, 2 * np.pi),
        shadow=rng.uniform(0.15, 0.7) if rng.random() < 0.6 else 0.0,
        edge=rng.uniform(0.2, 1.0) * max(1.0, size / 256),
        defocus=defocus,
        near_focus=near_focus,
    )
    objects: list[Extent] = []
    parts: list[Extent] = []
    plan = _plan(rng, size, horizon)
    for depth, thing in enumerate(plan):
        outline, own = _paint(rng, painting, *thing, depth / max(1, len(plan) - 1), len(objects) + 1, len(parts))
        objects.append(outline)
        parts += own
    everywhere = slice(0, size)
    found = [("object", painting.objects == index, extent) for index, extent in enumerate(objects, 1)]
    found += [("part", painting.parts == index, extent) for index, extent in enumerate(parts, 1)]
    found += [("region", region & (painting.objects == 0), (everywhere, everywhere, region)) for region in regions]
    found = [thing for thing in found if np.count_nonzero(thing[1]) >= MIN_VISIBLE]
    masks = np.stack([mask for _, mask, _ in found]) if found else np.zeros((0, size, size), bool)
    kinds, extents = tuple(kind for kind, _, _ in found), tuple(extent for _, _, extent in found)
    return Scene(develop(rng, painting.image), masks, kinds, extents)


def _plan(rng: Generator, size: int, horizon: float | None) -> list[tuple[str, float, float, float, np.ndarray | None]]:
    """What stands where, farthest first: shape, side in pixels, centre x and y, shared palette or None."""
    count = int(rng.integers(6, 26))
    small = np.log(rng.uniform(0.02, 0.08) if rng.random() < 0.6 else rng.uniform(0.08, 0.2))
    large = np.log(rng.uniform(0.35, 0.6))
    things = []
    while len(things) < count:
        kind = shapes.random_kind(rng)
        herd = int(rng.integers(2, 8)) if rng.random() < 0.15 else 1  # the same thing several times
        palette = random_palette(rng) if herd > 1 and rng.random() < 0.7 else None
        middle = rng.uniform(0.1, 0.9, 2)
        side = np.exp(rng.uniform(small, large)) * (1.0 if herd == 1 else 0.7)
        if not things and rng.random() < 0.6:  # a main motive
            side = rng.uniform(0.35, 0.6)
        for _ in range(herd):
            x, y = rng.uniform(-0.02, 1.02, 2) if herd == 1 else middle + rng.normal(0, 0.18, 2)
            if horizon is None:
                nearness = rng.random()
            else:  # things stand on the ground: the lower, the nearer, the larger
                nearness = float(np.clip(rng.beta(1.2, 1.2) if herd == 1 else y, 0, 1))
                y = horizon + (1 - horizon) * nearness - 0.4 * side * (0.6 + 0.6 * nearness)
            own = side * rng.uniform(0.8, 1.25) * (1.0 if horizon is None else 0.6 + 0.6 * nearness)
            own = float(np.clip(own, 0.02, 0.6))
            # Large things mostly lie behind small ones: otherwise little would be left to see.
            things.append((nearness - 0.7 * own, (kind, own * size, x * size, y * size, palette)))
    return [thing for _, thing in sorted(things[:count], key=lambda pair: pair[0])]


def _paint(
    rng: Generator,
    painting: _Painting,
    kind: str,
    side: float,
    x: float,
    y: float,
    palette: np.ndarray | None,
    nearness: float,
    index: int,
    part_count: int,
) -> tuple[Extent, list[Extent]]:
    """Paint one object as number `index`; returns what it covers, and what its parts cover."""
    size = painting.image.shape[0]
    blur = painting.defocus * (nearness if painting.near_focus else 1 - nearness)
    blur = float(np.hypot(painting.edge, blur if blur > 0.3 else 0.0))
    layers = shapes.rasterise(rng, kind, max(side, 4.0), 2 + int(2.5 * blur))
    if side > 24 and rng.random() < 0.15:
        layers = _roughen(rng, layers)
    height, width = layers[0].shape
    top, left = round(y - height / 2), round(x - width / 2)
    rows, columns = slice(max(top, 0), min(top + height, size)), slice(max(left, 0), min(left + width, size))
    if rows.stop <= rows.start or columns.stop <= columns.start:
        return (rows, columns, np.zeros((0, 0), bool)), []
    here = (rows, columns)
    patch = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))

    if palette is None:
        base = None
        if rng.random() < 0.3:  # camouflage: near the colour of what lies behind
            behind = painting.image[here].mean((0, 1))
            base = near_colour(rng, behind, float(rng.uniform(0.03, 0.2)))
        palette = random_palette(rng, base)
    same_paint = kind == "cuboid" and rng.random() < 0.8
    scale = float(np.exp(rng.uniform(np.log(3), np.log(max(6.0, 0.35 * side)))))
    colour = random_texture(rng, height, width, palette, scale)
    alpha = layers[0]
    for layer in layers[1:]:
        alpha = np.maximum(alpha, layer)
        if same_paint:
            paint = colour * np.float32(np.exp(rng.normal(0, 0.35)))
        else:
            own = palette if rng.random() < 0.15 else random_palette(rng, near_colour(rng, palette[0], 0.3))
            own = own if rng.random() < 0.5 else random_palette(rng)
            paint = random_texture(rng, height, width, own, scale)
        colour = cv2.blendLinear(paint, colour, layer * np.float32(1 / 255), (255 - layer) * np.float32(1 / 255))
    colour = times(colour, _shading(rng, alpha, painting.light))
    if rng.random() < 0.25 and side > 16:
        colour += _highlight(rng, height, width, side, painting.light)[..., None]

    soft = cv2.GaussianBlur(alpha.astype(np.float32) * np.float32(1 / 255), (0, 0), blur)
    if blur > 1.0:
        colour = cv2.GaussianBlur(colour, (0, 0), blur)
    if painting.shadow:
        _cast_shadow(rng, painting, soft, top, left, side)
    view = soft[patch]
    painting.image[here] = cv2.blendLinear(colour[patch], painting.image[here], view, 1 - view)

    visible = view > 0.5
    painting.objects[here][visible] = index
    painting.parts[here][visible] = 0
    parts = []
    if len(layers) > 1 and side > 20:
        for number, layer in enumerate(layers):
            cover = (layer[patch] > 127) & visible
            painting.parts[here][cover] = part_count + number + 1
            parts.append((rows, columns, cover))
    return (rows, columns, visible), parts


def _roughen(rng: Generator, layers: list[np.ndarray]) -> list[np.ndarray]:
    """Ragged outlines (hair, foliage, torn paper): every layer moved by the same noise."""
    height, width = layers[0].shape
    strength = rng.uniform(0.5, 2.5)
    rows, columns = grid(height, width)
    map_x = columns + fractal_noise(rng, height, width, 0.6) * np.float32(strength)
    map_y = rows + fractal_noise(rng, height, width, 0.6) * np.float32(strength)
    return [cv2.remap(layer, map_x, map_y, cv2.INTER_LINEAR) for layer in layers]


def _shading(rng: Generator, alpha: np.ndarray, light: float) -> np.ndarray:
    """Light over an object, float32 `(h, w)` around 1: none, a ramp, or that of an inflated body."""
    height, width = alpha.shape
    choice = rng.random()
    if choice < 0.2:
        return np.ones((height, width), np.float32)
    strength = np.float32(rng.uniform(0.1, 0.6))
    if choice < 0.5:
        return 1 + strength * (linear_ramp(height, width, light) - np.float32(0.5))
    distance = cv2.distanceTransform((alpha > 127).astype(np.uint8), cv2.DIST_L2, 3)
    thick = float(distance.max()) + 1e-3
    body = cv2.GaussianBlur(np.sqrt(distance * np.float32(thick)), (0, 0), max(0.8, 0.2 * thick))
    slope_x, slope_y = cv2.Sobel(body, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(body, cv2.CV_32F, 0, 1, scale=0.125)
    lit = slope_x * np.float32(-math.cos(light)) + slope_y * np.float32(-math.sin(light))
    return 1 - strength * np.tanh(lit) * np.float32(0.9) - strength * np.float32(0.2)


def _highlight(rng: Generator, height: int, width: int, side: float, light: float) -> np.ndarray:
    """A soft gleam towards the light, float32 `(h, w)`, 0 or more."""
    rows, columns = grid(height, width)
    y = rows - np.float32(height / 2 + 0.2 * height * math.sin(light))
    x = columns - np.float32(width / 2 + 0.2 * width * math.cos(light))
    spread = np.float32((side * rng.uniform(0.04, 0.15)) ** 2)
    return np.float32(rng.uniform(0.1, 0.6)) * np.exp(-(x * x + y * y * np.float32(rng.uniform(0.4, 1.5))) / spread)


def _cast_shadow(rng: Generator, painting: _Painting, soft: np.ndarray, top: int, left: int, side: float) -> None:
    """Darken what lies behind an object, on the side away from the light."""
    size = painting.image.shape[0]
    reach = side * rng.uniform(0.03, 0.2)
    top, left = top - round(reach * np.sin(painting.light)), left - round(reach * np.cos(painting.light))
    spread = max(0.7, side * rng.uniform(0.01, 0.07))
    dark = cv2.GaussianBlur(soft, (0, 0), spread)
    rows = slice(max(top, 0), min(top + soft.shape[0], size))
    columns = slice(max(left, 0), min(left + soft.shape[1], size))
    if rows.stop > rows.start and columns.stop > columns.start:
        part = dark[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        painting.image[rows, columns] = times(painting.image[rows, columns], 1 - np.float32(painting.shadow) * part)


def _background(rng: Generator, size: int) -> tuple[np.ndarray, list[np.ndarray], float | None]:
    """A background float32 `(size, size, 3)`, the regions in it that may get masks, and the horizon (0..1) or None."""
    choice = rng.random()
    if choice < 0.35:
        return _landscape(rng, size)
    if choice < 0.5:
        return _room(rng, size)
    if choice < 0.7:  # a table top or a wall
        return random_texture(rng, size, size, random_palette(rng)), [], None
    if choice < 0.78:  # a studio's paper
        return random_texture(rng, size, size, random_palette(rng), kind="gradient"), [], None
    return _clutter(rng, size), [], None


def _clutter(rng: Generator, size: int) -> np.ndarray:
    """1/f colours, at times with many unlabelled scraps in it."""
    palette = random_palette(rng)
    slope, contrast = rng.uniform(0.8, 1.8), rng.uniform(0.1, 0.4)
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = palette[0]
    for colour in (palette[1], palette[2], random_colour(rng)):
        field = fractal_noise(rng, size, size, slope) * np.float32(contrast)
        picture += cv2.merge([field * change for change in colour - palette[0]])
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(10, 50))):
            points = shapes.fourier_outline(rng, 0.4, 1.0, 24) * size * rng.uniform(0.01, 0.12)
            points += rng.uniform(0, size, 2)
            colour = near_colour(rng, palette[0], 0.2)
            cv2.fillPoly(picture, [points.astype(np.int32)], tuple(float(c) for c in colour))
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.6, 3.0) * size / 256)
    return picture


def _ridge(rng: Generator, size: int, height: float, roughness: float) -> np.ndarray:
    """A line of hills: bool `(size, size)`, true below it."""
    frequency = np.arange(1, 40)
    wave = (rng.normal(0, 1, (39, 1)) * frequency[:, None] ** -1.5) * np.cos(
        np.pi * frequency[:, None] * np.linspace(0, 1, size) + rng.uniform(0, 2 * np.pi, (39, 1))
    )
    line = (height + roughness * wave.sum(0)) * size
    return grid(size, size)[0] > line[None].astype(np.float32)


def _foreshorten(rng: Generator, texture: np.ndarray, horizon: float) -> np.ndarray:
    """A texture lying on the ground: seen in perspective below the horizon (0..1)."""
    size = texture.shape[0]
    far = np.clip(horizon, 0, 0.9) * size
    spread = rng.uniform(0.3, 2.0) * size
    source = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
    target = np.array([[0, far], [size, far], [size + spread, size], [-spread, size]], np.float32)
    matrix = cv2.getPerspectiveTransform(source, target)
    return cv2.warpPerspective(texture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _landscape(rng: Generator, size: int) -> tuple[np.ndarray, list[np.ndarray], float]:
    horizon = rng.uniform(0.1, 0.75)
    sky_low, sky_high = random_colour(rng), random_colour(rng)
    if rng.random() < 0.6:  # blue to pale
        sky_high = np.array([0.25, 0.45, 0.75], np.float32) * np.float32(rng.uniform(0.5, 1.3))
        sky_low = near_colour(rng, np.array([0.8, 0.85, 0.9], np.float32), 0.1)
    ramp = np.clip(grid(size, size)[0] / np.float32(horizon * size), 0, 1)[..., None]
    sky = np.ascontiguousarray(np.broadcast_to(sky_high + ramp * (sky_low - sky_high), (size, size, 3)))
    if rng.random() < 0.5:
        clouds = np.clip(fractal_noise(rng, size, size, rng.uniform(1.2, 1.8), 2.0), 0, 1.5)
        sky += (clouds * np.float32(rng.uniform(0.1, 0.5)))[..., None] * (np.float32(0.95) - sky)
    layers = [np.ones((size, size), bool)]
    picture = sky
    if rng.random() < 0.5:  # hills or a wood between sky and ground
        hills = _ridge(rng, size, horizon - rng.uniform(0.02, 0.25), rng.uniform(0.02, 0.15))
        kind = str(rng.choice(["cloud", "speckle", "plain"]))
        texture = random_texture(rng, size, size, random_palette(rng), kind=kind)
        haze = np.float32(rng.uniform(0, 0.6))
        picture = np.where(hills[..., None], texture * (1 - haze) + sky_low * haze, picture)
        layers.append(hills)
    ground = _ridge(rng, size, horizon, rng.choice([0.0, 0.01, 0.05]))
    base = random_colour(rng)
    if rng.random() < 0.5:  # grass, sand, water
        grounds = [[0.3, 0.4, 0.18], [0.6, 0.5, 0.36], [0.2, 0.35, 0.45]]
        base = near_colour(rng, np.array(grounds[rng.integers(3)], np.float32), 0.1)
    kind = str(rng.choice(["cloud", "fur", "speckle", "checks", "stripes", "blobs", "plain"]))
    texture = _foreshorten(rng, random_texture(rng, size, size, random_palette(rng, base), kind=kind), horizon)
    picture = np.where(ground[..., None], texture, picture)
    layers.append(ground)
    if rng.random() < 0.6:
        return picture, [], horizon
    nearest = np.zeros((size, size), np.int16)
    for number, layer in enumerate(layers):
        nearest[layer] = number
    return picture, [nearest == number for number in range(len(layers))], horizon


def _room(rng: Generator, size: int) -> tuple[np.ndarray, list[np.ndarray], float]:
    horizon = rng.uniform(0.3, 0.8)
    tilt = rng.normal(0, 0.08)
    rows, columns = grid(size, size)
    floor = rows > (np.float32(horizon * size) + (columns - size / 2) * np.float32(tilt))
    wall = random_texture(rng, size, size, random_palette(rng))
    boards = _foreshorten(rng, random_texture(rng, size, size, random_palette(rng)), horizon)
    picture = np.where(floor[..., None], boards, wall)
    picture = times(picture, np.float32(0.75) + np.float32(0.45) * linear_ramp(size, size, rng.uniform(0, 2 * np.pi)))
    regions = [~floor, floor] if rng.random() < 0.4 else []
    return picture, regions, horizon


def develop(rng: Generator, picture: np.ndarray) -> np.ndarray:
    """From light to a photograph: exposure, colour cast, vignette, lens blur, sensor noise, JPEG.

    `picture` is float32 `(H, W, 3)`, about 0 to 1; the result is uint8 of the same shape.
    """
    height, width = picture.shape[:2]
    brightness = float(picture.mean())
    exposure = np.clip(brightness, 0.22, 0.6) / max(brightness, 1e-3) * np.exp(rng.normal(0, 0.12))
    temperature = rng.normal(0, 0.07)
    picture = cv2.multiply(picture, (exposure * (1 + temperature), exposure, exposure * (1 - temperature), 0.0))
    if rng.random() < 0.3:
        rows, columns = grid(height, width)
        reach = ((rows / height - 0.5) ** 2 + (columns / width - 0.5) ** 2) * np.float32(rng.uniform(0.3, 1.5))
        picture = times(picture, 1 - np.minimum(reach, np.float32(0.8)))
    if rng.random() < 0.25:  # uneven light over the scene
        picture = times(picture, 1 + np.float32(rng.uniform(0.05, 0.25)) * fractal_noise(rng, height, width, 2.5))
    if rng.random() < 0.3:  # flat or hard contrast
        middle = np.float32(picture.mean())
        picture = (picture - middle) * np.float32(np.exp(rng.normal(-0.1, 0.3))) + middle
    if rng.random() < 0.08:
        picture[:] = picture.mean(2, keepdims=True)
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.0) * height / 256)
    if rng.random() < 0.7:
        noise = white_noise(rng, picture.shape)
        if rng.random() < 0.3:  # demosaiced: noise in blotches
            noise = cv2.GaussianBlur(noise, (0, 0), 0.8) * np.float32(2)
        picture = picture + noise * np.float32(np.exp(rng.uniform(np.log(0.004), np.log(0.05))))
    # A film's shoulder instead of hard clipping: what is very bright keeps some of its contrast.
    over = np.maximum(picture - np.float32(0.8), 0)
    picture = np.minimum(picture, np.float32(0.8)) + over / (1 + 4 * over)
    image = to_uint8(picture)
    if rng.random() < 0.6:
        quality = int(rng.integers(25, 96))
        image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    return image
