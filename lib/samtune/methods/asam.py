"""ASAM's tuning: the output tokens of SAM's mask decoder alone (CVPR 2024, arXiv 2405.00256); and its rivals.

What makes it ASAM is what it is tuned on: natural adversarial pictures, with the masks of the originals. The rivals
train the same parameters by the same loss in as many steps, on other pictures.
"""

from types import MappingProxyType

from samtune.common.errors import check_range, unknown
from samtune.methods.method import Method
from samtune.sam.build import Sam

PARTS = {  # by the option's name: what trains, parts of the mask decoder ("": all of it)
    "tokens": ("mask_tokens", "iou_token"),
    "mask_tokens": ("mask_tokens",),
    "iou_token": ("iou_token",),
    "decoder": ("",),
}


class ASAM(Method):
    """The 4 mask tokens and the IoU token train: 1,280 parameters in ViT-B, L and H, about 0.001% of ViT-B.

    Trained with a box, ten points or a noisy mask as the prompt, drawn for each image; the loss is that of SPT and
    HQ-SAM. It reaches the IoU token only through the tokens' self-attention. The tuned tokens are SAM's own, so that
    `merged` is an ordinary SAM.

    Args:
        sam: changed in place.
        tuned: one of `PARTS`: "tokens" is ASAM; "decoder" is for the claim that 1,280 parameters suffice.

    Raises `InputError` on an unknown `tuned`.
    """

    name = "asam"
    title = "ASAM"
    colour = "#CC79A7"
    frozen_encoder = True
    prompts = ("box", "point10", "mask")
    epochs = 20
    learning_rate = 2e-3
    recipe = MappingProxyType({"schedule": "slow_start", "prompt_for_each": "image"})

    def __init__(self, sam: Sam, tuned: str = "tokens") -> None:
        super().__init__(sam)
        if tuned not in PARTS:
            raise unknown("part to tune", tuned, PARTS)
        for part in PARTS[tuned]:
            self.sam.mask_decoder.get_submodule(part).requires_grad_(True)


class CleanTuning(ASAM):
    """The same on clean pictures: what tuning alone brings."""

    name = "clean_tuning"
    title = "clean tuning"
    colour = "#8c564b"


class ClassicalAugmentation(ASAM):
    """The same on clean pictures under strong augmentation: colour, blur, noise and JPEG, see `data.augmentation`."""

    name = "classical_augmentation"
    title = "classical augmentation"
    colour = "#7b9e00"
    recipe = MappingProxyType({**ASAM.recipe, "augmentation": "strong"})


class PGD(ASAM):
    """The same on pictures whose pixels were attacked (Madry et al. 2018), once each before training.

    As many steps as ASAM's attack has, and the same loss of SAM's masks.

    Args:
        sam: changed in place.
        eps: how far a pixel may go, in 1/255.
        step_size: of an update, in 1/255.
        steps: of the attack.

    Raises `InputError` on a value out of its range.
    """

    name = "pgd"
    title = "PGD tuning"
    makes_pictures = True
    colour = "#9467bd"

    def __init__(self, sam: Sam, eps: float = 8.0, step_size: float = 2.0, steps: int = 10) -> None:
        super().__init__(sam)
        check_range("eps", eps, 0, 255, above=True)
        check_range("step_size", step_size, 0, 255, above=True)
        check_range("steps", steps, 1, 1000)
        self.eps, self.step_size, self.steps = eps, step_size, steps


class DAT(ASAM):
    """The same on pictures attacked in the latent of the diffusion model's autoencoder, without diffusion.

    In the place of discrete adversarial training (DAT, Mao et al. 2022), whose autoencoder is a VQGAN: here the latents
    are continuous, and the attack is ASAM's.
    """

    name = "dat"
    title = "DAT tuning"
    colour = "#17a2b8"
    makes_pictures = True


class Generated(ASAM):
    """The same on plain generated pictures: ControlNet samples from noise, by the masks of the originals.

    In the place of DatasetDM (Wu et al. 2023) in the paper's tables.
    """

    name = "generated"
    title = "generated pictures"
    makes_pictures = True
    colour = "#c1272d"


class Reconstructed(ASAM):
    """The same on the pictures that ASAM's attack starts from: what inversion and denoising alone do to them."""

    name = "reconstructed"
    title = "reconstruction tuning"
    makes_pictures = True
    colour = "#9a9a9a"
