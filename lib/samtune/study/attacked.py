"""Training pictures whose pixels are attacked once each, before training: those of ASAM's rival PGD."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from samtune.common.atomic import write_atomically
from samtune.common.errors import explains_out_of_memory
from samtune.data.pixels import read_image
from samtune.data.sample import Dataset, Sample
from samtune.diffusion.conditions import MOST_MASKS
from samtune.methods.asam import PGD
from samtune.prompts import Prompts, tight_boxes
from samtune.sam.checkpoints import weights_hash
from samtune.sam.preprocess import Preprocess


class AttackedDataset:
    """`dataset` with every picture attacked; masks stay. A picture is attacked once, and kept in `folder`.

    The victim is `method`'s SAM as it stands, before training, given every object's box.
    """

    def __init__(self, dataset: Dataset, method: PGD, folder: Path, device: str) -> None:
        self.name, self.dropped, self.ids = dataset.name, dataset.dropped, dataset.ids
        self._dataset, self._folder, self._device = dataset, folder, device
        self._victim = copy.deepcopy(method).to(device).eval()  # training changes the method while pictures are read
        self._square = Preprocess(method.image_size, "stretch")
        self._strength = {"eps": method.eps / 255, "step_size": method.step_size / 255, "steps": method.steps}
        self._key = f"{method.name} {self._strength} {weights_hash(method.sam)}"

    def load(self, id: str) -> Sample:
        """The sample, its picture attacked. Without an object it stays as it is."""
        sample = self._dataset.load(id)
        masks = sample.masks[sample.masks.any((1, 2))][:MOST_MASKS]
        if not len(masks):
            return sample
        digest = hashlib.sha256(f"{self._key} {sample.image.shape}".encode())
        digest.update(sample.image.tobytes())
        digest.update(np.packbits(masks).tobytes())
        path = self._folder / f"{digest.hexdigest()[:32]}.png"
        if not path.is_file():
            self._attack(path, sample.image, masks)
        return replace(sample, image=read_image(path))

    def _attack(self, path: Path, image: np.ndarray, masks: np.ndarray) -> None:
        from samtune.diffusion.pixel_attack import pixel_attack  # not above: it brings diffusers, seconds

        boxes = Prompts(torch.zeros(len(masks), dtype=torch.int64), boxes=torch.from_numpy(tight_boxes(masks)))
        planes = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        work = f"an attack on the pixels of a picture with {len(masks)} objects, at {self._square.size} px"
        with explains_out_of_memory(work, "a smaller backbone"):
            made = pixel_attack(
                self._victim,
                planes.to(self._device),
                self._square.prompts(boxes, masks.shape[1:]).to(self._device),
                self._square.masks(masks, self._square.size).to(self._device),
                **self._strength,
            )
        pixels = (255 * made[0].permute(1, 2, 0).cpu()).round().byte().numpy()
        _, encoded = cv2.imencode(".png", pixels[..., ::-1])
        write_atomically(path, encoded.tobytes())
