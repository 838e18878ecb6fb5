"""Embeddings of frozen encoders, kept on disk: one file a picture, weights and preprocessing."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from samtune.common.atomic import write_atomically
from samtune.methods import Method
from samtune.sam.checkpoints import weights_hash


class EmbeddingCache:
    """`encode` as the method does, but each preprocessed picture only once.

    The key is the content: the picture's pixels after preprocessing (and augmentation), the encoder's weights, and
    the precision that autocast is set to.
    Values are kept as float16, which decoders do not notice. Only for methods whose `frozen_encoder` is true.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # By the module itself: a number such as id() may come back for another encoder.
        self._weights: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()

    @torch.no_grad()
    def encode(self, method: Method, images: Sequence[Tensor], device: torch.device | str) -> Tensor:
        """Normalised images, each float32 `(3, S, S)` -> embeddings float32 `(B, C, h, w)` on `device`."""
        if not method.frozen_encoder:
            raise ValueError(f"{method.name} trains its encoder: its embeddings must not be cached")
        encoder = method.sam.image_encoder
        if encoder not in self._weights:
            self._weights[encoder] = weights_hash(encoder)
        kind = torch.device(device).type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        paths = [self._path(image, f"{self._weights[encoder]} {precision}") for image in images]
        missing = [index for index, path in enumerate(paths) if not path.is_file()]
        if missing:
            fresh = method.encode(torch.stack([images[index] for index in missing]).to(device))
            for index, embedding in zip(missing, fresh, strict=True):
                self._write(paths[index], embedding)
        # Made float32 one by one: a CPU's autocast cannot stack float16.
        return torch.stack([torch.from_numpy(np.load(path)).float() for path in paths]).to(device)

    def _path(self, image: Tensor, encoder: str) -> Path:
        digest = hashlib.sha256(encoder.encode())
        digest.update(image.contiguous().numpy().tobytes())
        name = digest.hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.npy"

    def _write(self, path: Path, embedding: Tensor) -> None:
        file = io.BytesIO()
        np.save(file, embedding.detach().cpu().to(torch.float16).numpy())
        write_atomically(path, file.getvalue())
