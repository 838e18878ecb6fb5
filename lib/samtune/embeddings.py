"""A cache on disk for the image embeddings of frozen encoders: one file for each image, weights and preprocessing."""

import hashlib
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from samtune.common.atomic import write_atomically
from samtune.methods import Method
from samtune.sam.checkpoints import weights_hash

LEFT_FREE = 10e9  # bytes of the disk: SAM's own embeddings are 2 MB each, and augmented copies of large sets many


class EmbeddingCache:
    """Encodes as the method does, but each preprocessed image only once, while there is room on the disk.

    The key is a hash of the image's pixels after preprocessing (and augmentation), the encoder's weights, and
    autocast's precision. Embeddings are stored as float16, which the decoders do not notice.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Keyed by the module: Python may give the id() of a deleted encoder to another one.
        self._weights: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()

    @torch.no_grad()
    def encode(self, method: Method, images: Sequence[Tensor], device: torch.device | str) -> Tensor:
        """B embeddings float32 `(B, C, h, w)` on `device`.

        Args:
            method: with `frozen_encoder`; else raises `ValueError`.
            images: normalised, float32 `(3, S, S)` each.
            device: that encodes what is not in the cache.
        """
        if not method.frozen_encoder:
            raise ValueError(f"{method.name} trains its encoder: its embeddings must not be cached")
        encoder = method.sam.image_encoder
        if encoder not in self._weights:
            self._weights[encoder] = weights_hash(encoder)
        kind = torch.device(device).type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        paths = [self._path(image, f"{self._weights[encoder]} {precision}") for image in images]
        stored = [_read(path) for path in paths]
        missing = [index for index, embedding in enumerate(stored) if embedding is None]
        fresh: dict[int, Tensor] = {}
        if missing:
            encoded = method.encode(torch.stack([images[index] for index in missing]).to(device))
            fresh = dict(zip(missing, encoded.cpu().to(torch.float16), strict=True))
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free > LEFT_FREE:
                for index, embedding in fresh.items():
                    self._write(paths[index], embedding)
        every = [fresh.get(index, embedding) for index, embedding in enumerate(stored)]
        # To float32 before stacking: autocast on a CPU cannot stack float16.
        return torch.stack([embedding.float() for embedding in every]).to(device)

    def _path(self, image: Tensor, encoder: str) -> Path:
        digest = hashlib.sha256(encoder.encode())
        digest.update(image.contiguous().numpy().tobytes())
        name = digest.hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.npy"

    def _write(self, path: Path, embedding: Tensor) -> None:
        file = io.BytesIO()
        np.save(file, embedding.numpy())
        write_atomically(path, file.getvalue())


def _read(path: Path) -> Tensor | None:
    """A stored embedding; None where there is none, or a damaged one."""
    try:
        return torch.from_numpy(np.load(path))
    except (OSError, ValueError, EOFError):
        return None
