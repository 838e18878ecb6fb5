"""Masks for a user's own pictures from a tuned checkpoint: prompts from files or options, masks and overlays out."""

import csv
import difflib
import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from samtune import __version__
from samtune.commands.tuned import load_tuned
from samtune.common.atomic import write_atomically
from samtune.common.devices import choose_precision, usable_device
from samtune.common.errors import InputError, counted, explains_out_of_memory
from samtune.common.paths import check_is_no_file
from samtune.data.files import IMAGE_SUFFIXES, by_name, readable
from samtune.data.files import pictures as picture_files
from samtune.data.pixels import image_size, read_image
from samtune.methods.zero_shot import ZeroShot
from samtune.prompts import Prompts
from samtune.sam.checkpoints import sha256, state_hash

# Okabe and Ito's colours, RGB: told apart by colour-blind readers too.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
CLICK = {1: (0, 200, 0), 0: (220, 0, 0)}  # foreground, background
LABEL = "1 (the object) or 0 (not the object)"
LISTED = 3  # names shown of a longer list
MADE_FROM = "samtune"  # in an overlay's file: a hash of model, picture and prompts, by which a rerun knows its work
PNG_HEADER = 33  # bytes before which no text may stand


@dataclass
class ObjectPrompt:
    """What the user says of one object, pixels of the picture: a box (x0, y0, x1, y1), clicks (x, y, label 1 or 0)."""

    box: tuple[float, ...] | None = None
    clicks: list[tuple[float, ...]] = field(default_factory=list)
    source: str = ""  # where it was said, for messages
    name: str = ""  # the user's, where there is one


def predict(
    checkpoint: Path,
    images: Path,
    out: Path,
    boxes: Path | None = None,
    points: Path | None = None,
    box: Sequence[Sequence[float]] = (),
    point: Sequence[Sequence[float]] = (),
    backbone: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Segment what the prompts point at in one picture or a folder of them, preprocessed as in tuning.

    Prompts: a csv of `boxes` (columns image, x0, y0, x1, y1: a row an object), or a csv of `points` (image, x, y, and
    if wanted label and object), or for every picture alike `box` (each an object) or `point` (x, y or x, y, label; all
    on one object), or one `box` with `point`s on its object. A checkpoint tuned with the prompt "none" needs none.

    Writes `out/predicted_masks/<name>.png` (0/255) and `out/overlays/<name>.png`, and returns the masks' paths. Of
    several objects it writes `<name>/1.png`, `2.png` ...: numbered as in the column object, or in the file's order.
    Masks that are there, of the same model, picture and prompts, are not made again. 16-bit pictures are read as bright
    as in tuning. Raises `InputError` for bad input; for pictures that cannot be read, after all others are done.
    """
    device = usable_device(device)
    pictures = _pictures(images)
    prompts = _prompts(pictures, images, boxes, points, box, point)
    check_is_no_file(out)
    for name, objects in (prompts or {}).items():  # all, before the work begins
        _check_inside(objects, image_size(pictures[name]), pictures[name])
    tuned = load_tuned(checkpoint, backbone)
    if isinstance(tuned.method, ZeroShot):
        say(f"{checkpoint} is a whole SAM, not what samtune tune wrote: used as it is")
    if prompts is not None and not tuned.method.takes_prompts:
        raise InputError(f"{tuned.method.name} takes no prompt: leave --boxes, --points, --box and --point out")
    if prompts is None:
        if "none" not in tuned.prompts:
            raise InputError("no prompt: give --boxes, --points, --box or --point (see samtune predict --help)")
        prompts = {name: [ObjectPrompt()] for name in pictures}
    predictor = tuned.predictor(device)
    halved = choose_precision(precision, device) == "bf16"
    model = [__version__, state_hash(tuned.method.state_dict()), tuned.preprocess, tuned.white, halved]
    written: list[Path] = []
    bad: list[str] = []
    done = 0
    names = [name for name in pictures if name in prompts]
    for name in tqdm(names, "predict", mininterval=2, leave=False):
        files, drawing = _files(out, name, prompts[name]), out / "overlays" / f"{name}.png"
        said = [(one.box, one.clicks, one.name) for one in prompts[name]]
        try:
            key = hashlib.sha256(repr([*model, sha256(pictures[name]), said]).encode()).hexdigest()
            if _made_from(drawing) == key and all(file.is_file() for file in files):
                written += files
                done += 1
                continue
            image = read_image(pictures[name], tuned.white)
        except (InputError, OSError) as error:
            bad.append(str(error))
            continue
        height, width = image.shape[:2]
        where = f"{tuned.backbone} at {predictor.preprocess.size} px"
        work = f"prediction on {pictures[name]}, {width}x{height} pixels, with {where}"
        halving = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=halved)
        with explains_out_of_memory(work, "a smaller picture, or tune a smaller backbone"), halving:
            predictor.set_image(image)
            given = predictor.preprocess.prompts(as_prompts(prompts[name]), image.shape[:2])
            stale = _earlier(out, name) - set(files)
            _write(files, drawing, image, predictor.each_mask(given.to(device)), prompts[name], key, stale)
        with suppress(OSError):  # still in use
            (out / "predicted_masks" / name).rmdir()
        written += files
    found = f"{counted(len(names) - len(bad), 'picture')}, {counted(len(written), 'mask')}"
    found += f" ({done} done before, with the same model and prompts)" if done else ""
    say(f"{found}: {out / 'predicted_masks'}; to look at: {out / 'overlays'}")
    if without := [name for name in pictures if name not in prompts]:
        say(f"without a prompt, left out: {counted(len(without), 'picture')} ({_some(without)})")
        if stale := [name for name in without if _earlier(out, name)]:
            say(f"{out} still has an earlier run's masks of {counted(len(stale), 'picture')} of these ({_some(stale)})")
    if bad:
        raise InputError(f"{counted(len(bad), 'picture')} could not be read, all others are done: {'; '.join(bad)}")
    return written


def read_boxes(path: Path) -> dict[str, list[ObjectPrompt]]:
    """Boxes of a csv with the columns image, x0, y0, x1, y1, by what stands under image; a row an object."""
    found: dict[str, list[ObjectPrompt]] = {}
    for source, row in _rows(path, ("image", "x0", "y0", "x1", "y1")):
        box = tuple(_number(row, name, source) for name in ("x0", "y0", "x1", "y1"))
        found.setdefault(row["image"], []).append(ObjectPrompt(box, source=source))
    return found


def read_points(path: Path) -> dict[str, list[ObjectPrompt]]:
    """Clicks of a csv with the columns image, x, y, and if wanted label (1, or 0: not this) and object.

    Clicks of one image and object belong together; without the column object, all clicks of an image do.
    """
    found: dict[str, dict[str, ObjectPrompt]] = {}
    for source, row in _rows(path, ("image", "x", "y")):
        click = [_number(row, name, source) for name in ("x", "y")]
        label = _number(row, "label", source, LABEL) if row.get("label") else 1
        if label not in (0, 1):
            raise InputError(f"{source}: label is {row['label']}, expected {LABEL}")
        objects = found.setdefault(row["image"], {})
        number = row.get("object") or ""
        objects.setdefault(number, ObjectPrompt(source=source, name=number)).clicks.append((*click, label))
    return {image: list(objects.values()) for image, objects in found.items()}


def as_prompts(objects: Sequence[ObjectPrompt]) -> Prompts:
    """One image's prompts as tensors; objects of fewer clicks get padding clicks."""
    parts = []
    for one in objects:
        boxes = None if one.box is None else torch.tensor([one.box], dtype=torch.float32)
        part = Prompts(torch.zeros(1, dtype=torch.int64), boxes)
        if one.clicks:
            clicks = torch.tensor([one.clicks], dtype=torch.float32)
            part = part.with_points(clicks[..., :2], clicks[..., 2].long())
        parts.append(part)
    return Prompts.concatenate(parts)


def overlay(image: np.ndarray, masks: Iterable[np.ndarray], objects: Sequence[ObjectPrompt] = ()) -> np.ndarray:
    """uint8 `(H, W, 3)` with masks bool `(H, W)` tinted and outlined, and the prompts drawn: a box, round clicks.

    Small pictures are enlarged to at least 512 pixels a side, so that the lines do not hide them.
    """
    scale = max(1, -(-512 // max(image.shape[:2])))
    canvas = np.repeat(np.repeat(image, scale, 0), scale, 1).copy()
    width = max(2, round(max(canvas.shape[:2]) / 400))
    outlines = []
    for index, mask in enumerate(masks):
        mask = np.repeat(np.repeat(mask, scale, 0), scale, 1)
        colour = np.array(COLOURS[index % len(COLOURS)], np.float32)
        canvas[mask] = (0.6 * canvas[mask] + 0.4 * colour).round().astype(np.uint8)
        outlines.append(cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0])
    for index, outline in enumerate(outlines):
        cv2.drawContours(canvas, outline, -1, COLOURS[index % len(COLOURS)], width)
    for index, one in enumerate(objects):
        if one.box is not None:
            x0, y0, x1, y1 = (round((value + 0.5) * scale) for value in np.clip(one.box, -1, max(image.shape)))
            cv2.rectangle(canvas, (x0, y0), (x1, y1), (255, 255, 255), width + 2)
            cv2.rectangle(canvas, (x0, y0), (x1, y1), COLOURS[index % len(COLOURS)], width)
        for x, y, label in one.clicks:
            place = round((x + 0.5) * scale), round((y + 0.5) * scale)
            cv2.circle(canvas, place, 3 * width + 2, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(canvas, place, 3 * width, CLICK[int(label)], -1, cv2.LINE_AA)
    return canvas


def _prompts(
    pictures: Mapping[str, Path],
    images: Path,
    boxes: Path | None,
    points: Path | None,
    box: Sequence[Sequence[float]],
    point: Sequence[Sequence[float]],
) -> dict[str, list[ObjectPrompt]] | None:
    """Prompts by the picture's name, whichever way they were given; None when none were."""
    if sum((boxes is not None, points is not None, bool(box or point))) > 1:
        raise InputError("give --boxes, or --points, or --box and --point: not several of them")
    if boxes is None and points is None:
        clicks = [(*click[:2], click[2] if len(click) > 2 else 1) for click in point]
        if strange := [label for *_, label in clicks if label not in (0, 1)]:
            raise InputError(f"--point: label is {strange[0]:g}, expected {LABEL}")
        if clicks and len(box) > 1:
            raise InputError("--point belongs to the object of --box: give one --box with it, or a csv of boxes")
        objects = [ObjectPrompt(tuple(one), clicks, "--box") for one in box]
        objects = objects or ([ObjectPrompt(None, clicks, "--point")] if clicks else [])
        return {name: objects for name in pictures} if objects else None
    by_file = {readable(path.name): name for name, path in pictures.items()}
    by_stem = {readable(name): name for name in pictures}
    found: dict[str, list[ObjectPrompt]] = {}
    for said, objects in (read_boxes(boxes) if boxes is not None else read_points(points)).items():
        file = readable(Path(said).name)
        name = by_file.get(file) or by_stem.get(file)
        if name is None:
            near = difflib.get_close_matches(file, by_file, LISTED, cutoff=0.0)
            nearest = f"not in {images}; nearest: {', '.join(near)}"
            raise InputError(f"{objects[0].source}: picture {said!r} is {nearest}")
        found.setdefault(name, []).extend(objects)
    return found


def _pictures(images: Path) -> dict[str, Path]:
    """Pictures by name without suffix: the file `images`, or all of the folder `images`."""
    if images.is_file():
        return {images.stem: images}
    if not images.is_dir():
        raise InputError(f"no such file or folder: {images}")
    if not (found := by_name(picture_files(images))):
        raise InputError(f"no picture in {images} ({', '.join(IMAGE_SUFFIXES)})")
    return {path.stem: path for path in found.values()}


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Rows of a csv with their place ("FILE line 3"); `InputError` unless it has the columns and at least one row."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark at the start
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            if missing := [name for name in columns if name not in header]:
                raise InputError(
                    f"{path} has no column {missing[0]}: expected the header {','.join(columns)}, "
                    f"found {','.join(header) or 'nothing'}"
                )
            reader.fieldnames = header
            rows = []
            for row in reader:
                place = f"{path} line {reader.line_num}"
                if None in row:
                    found = len(header) + len(row[None])
                    raise InputError(f"{place}: {found} cells under {len(header)} columns; a decimal comma? write 20.5")
                rows.append((place, {name: (row[name] or "").strip() for name in header}))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} as a csv file: {error}") from error
    if not rows:
        raise InputError(f"{path} has a header but no row")
    return rows


def _number(row: Mapping[str, str], name: str, source: str, expected: str = "a number of pixels") -> float:
    try:
        if math.isfinite(value := float(row[name])):
            return value
    except ValueError:
        pass
    raise InputError(f"{source}: {name} is {row[name]!r}, expected {expected}")


def _check_inside(objects: Sequence[ObjectPrompt], size: tuple[int, int], path: Path) -> None:
    height, width = size
    for one in objects:
        if one.box is not None:
            x0, y0, x1, y1 = one.box
            if not (x0 <= x1 and y0 <= y1):
                raise InputError(f"{one.source}: box {one.box} is not x0,y0,x1,y1 with x0 <= x1 and y0 <= y1")
            if not (x1 >= 0 and y1 >= 0 and x0 < width and y0 < height):
                raise InputError(f"{one.source}: box {one.box} lies outside {path}, {width}x{height} pixels")
        for x, y, _ in one.clicks:
            if not (0 <= x < width and 0 <= y < height):
                raise InputError(f"{one.source}: point {x:g},{y:g} lies outside {path}, {width}x{height} pixels")


def _files(out: Path, name: str, objects: Sequence[ObjectPrompt]) -> list[Path]:
    """The masks' files of one picture."""
    folder = out / "predicted_masks"
    if len(objects) == 1:
        return [folder / f"{name}.png"]
    numbers = [one.name for one in objects]
    if len(set(numbers)) < len(objects) or not all(one.isascii() and one.isdecimal() for one in numbers):
        numbers = range(1, len(objects) + 1)
    return [folder / name / f"{number}.png" for number in numbers]


def _write(
    files: Sequence[Path],
    drawing: Path,
    image: np.ndarray,
    masks: Iterable[np.ndarray],
    objects: Sequence[ObjectPrompt],
    key: str,
    stale: Iterable[Path],
) -> None:
    """The masks of one picture in place of the `stale` ones, then the overlay with `key` in it; one mask at a time in
    memory.
    """
    drawing.unlink(missing_ok=True)  # else, after a break, it would vouch for masks of another run

    def written() -> Iterator[np.ndarray]:
        for file, mask in zip(files, masks, strict=True):
            write_atomically(file, _png(mask.astype(np.uint8) * 255))
            yield mask

    pixels = _png(overlay(image, written(), objects)[..., ::-1])
    for path in stale:
        path.unlink()
    text = b"tEXt" + f"{MADE_FROM}\0{key}".encode()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    write_atomically(drawing, pixels[:PNG_HEADER] + chunk + pixels[PNG_HEADER:])


def _made_from(drawing: Path) -> str | None:
    """The key that `_write` put into an overlay."""
    try:
        with Image.open(drawing) as file:
            return file.info.get(MADE_FROM)
    except (OSError, SyntaxError):  # not there, or damaged
        return None


def _earlier(out: Path, name: str) -> set[Path]:
    """The masks of one picture that are in `out`."""
    folder = out / "predicted_masks"
    numbered = {path for path in (folder / name).glob("*.png") if path.stem.isdecimal()}
    return numbered | {path for path in [folder / f"{name}.png"] if path.is_file()}


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (" ..." if len(names) > LISTED else "")
