"""Images that show the same: near-duplicates by perceptual hash, and neighbouring crops of one slide."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_BITS = 8  # of the hashes of near-duplicates that differ, of 63
MIN_CORRELATION = 0.85  # of the details of near-duplicates
MIN_CONTINUATION = 0.9  # of the edges of neighbouring crops


@dataclass(frozen=True)
class DuplicatePair:
    """Two samples that look alike.

    Fields:
        first: an id.
        first_split: its split.
        second: an id.
        second_split: its split.
        correlation: of their details; at most 1.
    """

    first: str
    first_split: str
    second: str
    second_split: str
    correlation: float


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image to find its near-duplicates.

    Fields:
        bits: perceptual hash, bool `(63,)`.
        details: float32 `(4096,)`.
    """

    bits: np.ndarray
    details: np.ndarray


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """63 bits (bool) of an image uint8 `(H, W, 3)` or `(H, W)`: its coarse structure.

    The usual pHash: grey, 32 x 32, discrete cosine transform; the 8 x 8 lowest frequencies except the mean, each above
    or below their median. Brightness, contrast, size and mild compression hardly change it.
    """
    spectrum = cv2.dct(_thumbnail(image, 32))[:8, :8].ravel()[1:]
    return spectrum > np.median(spectrum)


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Hash and details of an image uint8 `(H, W, 3)` or `(H, W)`.

    Details are the 64 x 64 grey thumbnail minus its blur, at equal local contrast. Images of one kind (retinas, bare
    metal, dark slides) have the same coarse structure, and so the same hash; their details differ.
    """
    thumbnail = _thumbnail(image, 64)
    fine = thumbnail - cv2.GaussianBlur(thumbnail, (0, 0), 2)
    fine /= np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 4)) + 1  # + 1: one grey level, so that noise stays small
    centred = fine.ravel() - fine.mean()
    return Fingerprint(perceptual_hash(image), centred / max(float(np.linalg.norm(centred)), 1e-6))


def near_duplicates(prints: Mapping[str, Fingerprint]) -> list[tuple[str, str, float]]:
    """Pairs of ids whose images look alike: (id, id, correlation), most alike first.

    The hash finds candidates, the correlation of the details decides.
    """
    ids = sorted(prints)
    if not ids:
        return []
    hashes = np.stack([prints[id].bits for id in ids]).astype(np.float32)
    details = np.stack([prints[id].details for id in ids])
    found = []
    for row in range(len(ids) - 1):  # row by row: all pairs of thousands of samples at once would need gigabytes
        bits = np.abs(hashes[row + 1 :] - hashes[row]).sum(axis=1)
        close = row + 1 + np.flatnonzero(bits <= MAX_BITS)
        for other, correlation in zip(close, details[close] @ details[row], strict=True):
            if correlation >= MIN_CORRELATION:
                found.append((ids[row], ids[other], float(correlation)))
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def duplicates_across_splits(prints: Mapping[str, Fingerprint], split_of: Mapping[str, str]) -> list[DuplicatePair]:
    """The near-duplicates that are in different splits, most alike first."""
    return [
        DuplicatePair(first, split_of[first], second, split_of[second], correlation)
        for first, second, correlation in near_duplicates(prints)
        if split_of[first] != split_of[second]
    ]


def neighbouring_crops(images: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Groups of ids whose images were cut from one larger image side by side; every id is in exactly one group.

    Two images of one size are neighbours when the last column (row) of one continues in the first of the other: 1 -
    |difference|^2 / (variance of the flatter edge) is above `MIN_CONTINUATION`. Neighbours of neighbours are in the
    same group.
    """
    ids = sorted(images)
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    greys = [_grey(images[id]) for id in ids]
    for index, grey in enumerate(greys):
        by_shape[grey.shape].append(index)
    first, second = [], []
    for members in by_shape.values():
        edges = {
            "left": np.stack([greys[k][:, 0] for k in members]),
            "right": np.stack([greys[k][:, -1] for k in members]),
            "top": np.stack([greys[k][0] for k in members]),
            "bottom": np.stack([greys[k][-1] for k in members]),
        }
        for one, other in (("right", "left"), ("bottom", "top")):
            fit = _continuation(edges[one], edges[other])
            np.fill_diagonal(fit, -np.inf)
            rows, columns = np.nonzero(fit > MIN_CONTINUATION)
            first += [members[k] for k in rows]
            second += [members[k] for k in columns]
    return linked_groups(ids, [(ids[a], ids[b]) for a, b in zip(first, second, strict=True)])


def linked_groups(ids: list[str], pairs: list[tuple[str, str]]) -> list[list[str]]:
    """Groups of ids that `pairs` link, directly or through others; each sorted, in the order of their first ids."""
    position = {id: index for index, id in enumerate(ids)}
    rows, columns = [position[a] for a, _ in pairs], [position[b] for _, b in pairs]
    links = coo_array((np.ones(len(pairs), dtype=np.int8), (rows, columns)), shape=(len(ids), len(ids)))
    _, component = connected_components(links, directed=False)
    groups: dict[int, list[str]] = defaultdict(list)
    for id in sorted(ids):
        groups[component[position[id]]].append(id)
    return list(groups.values())


def _grey(image: np.ndarray) -> np.ndarray:
    return (image.mean(axis=2) if image.ndim == 3 else image).astype(np.float32)


def _thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(_grey(image), (side, side), interpolation=cv2.INTER_AREA)


def _continuation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How well each edge of `one` `(N, L)` continues in each of `other`: `(N, N)`, at most 1; flat
    edges never match.
    """
    difference = ((one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T).clip(min=0)
    variance = np.minimum(one.var(axis=1)[:, None], other.var(axis=1)[None]) * one.shape[1]
    return np.where(variance > one.shape[1], 1 - difference / np.maximum(variance, 1e-6), -np.inf)
