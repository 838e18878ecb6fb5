"""SAM ViT-B, ViT-L, ViT-H, MobileSAM and nano, built from segment_anything's own classes."""

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, TwoWayTransformer
from segment_anything.modeling import Sam as OfficialSam
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from samtune.common.errors import InputError, unknown
from samtune.sam.attention import split_attention
from samtune.sam.decode import BatchedMaskDecoder, FullPrecisionPromptEncoder
from samtune.sam.mobile import MobileEncoder, TinyVitEncoder

PIXEL_MEAN = [123.675, 116.28, 103.53]
PIXEL_STD = [58.395, 57.12, 57.375]


class Sam(OfficialSam):
    """segment_anything's `Sam` with separate q, k, v in the encoder and a decoder that takes prompts of several images.

    segment_anything's own `SamPredictor` and `SamAutomaticMaskGenerator` work with it.
    """

    backbone: str = ""

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.image_encoder.img_size

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding's grid, in tokens."""
        return self.prompt_encoder.image_embedding_size[0]

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution logits, in pixels: four times the embedding's."""
        return 4 * self.embedding_size


def _build(
    image_size: int,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    global_blocks: tuple[int, ...],
    window_size: int,
    prompt_width: int,
    decoder_mlp_width: int,
    decoder_heads: int,
    iou_head_width: int,
    relative_positions: bool = True,
) -> Sam:
    grid = image_size // patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=depth,
            embed_dim=width,
            img_size=image_size,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=heads,
            patch_size=patch_size,
            qkv_bias=True,
            use_rel_pos=relative_positions,
            global_attn_indexes=global_blocks,
            window_size=window_size,
            out_chans=prompt_width,
        ),
        prompt_encoder=FullPrecisionPromptEncoder(
            embed_dim=prompt_width,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=BatchedMaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=prompt_width, mlp_dim=decoder_mlp_width, num_heads=decoder_heads
            ),
            transformer_dim=prompt_width,
            iou_head_depth=3,
            iou_head_hidden_dim=iou_head_width,
        ),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )


def _nano_mobile() -> Sam:
    """The nano SAM with a small convolutional encoder, as MobileSAM is SAM's."""
    sam = BACKBONES["nano"]()
    sam.image_encoder = MobileEncoder(sam.image_size, sam.mask_decoder.transformer_dim)
    return sam


def _mobile_sam() -> Sam:
    """MobileSAM: SAM's own prompt encoder and mask decoder on a small image encoder."""
    sam = _official(width=16, depth=0, heads=1, global_blocks=())
    sam.image_encoder = TinyVitEncoder(sam.image_size, sam.mask_decoder.transformer_dim)
    return sam


_official = partial(
    _build,
    image_size=1024,
    patch_size=16,
    window_size=14,
    prompt_width=256,
    decoder_mlp_width=2048,
    decoder_heads=8,
    iou_head_width=256,
)

BACKBONES = {
    "vit_b": partial(_official, width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": partial(_official, width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": partial(_official, width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    "nano": partial(
        _build,
        image_size=256,
        patch_size=8,
        width=160,
        depth=6,
        heads=5,
        global_blocks=(2, 5),
        window_size=8,
        prompt_width=128,
        decoder_mlp_width=512,
        decoder_heads=4,
        iou_head_width=128,
        relative_positions=False,  # on a CPU the query-dependent bias doubles the cost of a global block
    ),
    "nano_mobile": _nano_mobile,
    "mobile_sam": _mobile_sam,
}


def new_sam(backbone: str) -> Sam:
    """A SAM of that backbone with random weights, in eval mode. Raises `InputError` for an unknown name."""
    if backbone not in BACKBONES:
        raise unknown("backbone", backbone, BACKBONES)
    sam = BACKBONES[backbone]()
    sam.backbone = backbone
    if isinstance(sam.image_encoder, ImageEncoderViT):
        split_attention(sam.image_encoder)
    return sam.eval()


def set_image_size(sam: Sam, image_size: int) -> Sam:
    """Make `sam` take square images of `image_size` pixels, in place: absolute positions are resampled (bicubic).

    Relative positions need no change: segment_anything resamples them itself. Raises `InputError` when the size is no
    multiple of the patch size.
    """
    encoder, prompts = sam.image_encoder, sam.prompt_encoder
    patch = encoder.patch_embed.proj.stride[0]
    if image_size % patch:
        raise InputError(
            f"image size {image_size} is no multiple of the patch size {patch}; take {image_size // patch * patch}"
        )
    grid = image_size // patch
    position = encoder.pos_embed.detach().permute(0, 3, 1, 2)
    if position.shape[-1] != grid:
        position = F.interpolate(position, (grid, grid), mode="bicubic", align_corners=False)
        encoder.pos_embed = nn.Parameter(position.permute(0, 2, 3, 1).contiguous())
    encoder.img_size = image_size
    prompts.input_image_size = (image_size, image_size)
    prompts.image_embedding_size = (grid, grid)
    prompts.mask_input_size = (4 * grid, 4 * grid)
    return sam


def initialise_nano(sam: Sam, generator: torch.Generator) -> Sam:
    """Set starting values with which a small SAM learns from scratch in hours, in place.

    The positional encoding's frequencies are log-spaced (0.05 to 4 periods a unit) in random directions, not Gaussian:
    with low ones the decoder soon learns the inside of a box, high ones place its edges. Linear layers of the encoder
    start from truncated normals (std 0.02), and the encoder's absolute positions from the prompt encoder's encoding of
    the grid.
    """
    matrix: Tensor = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    count = matrix.shape[1]
    frequency = torch.logspace(-1.3, 0.6, count, base=10.0)
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    matrix.copy_(torch.stack([frequency * angle.cos(), frequency * angle.sin()]))
    for module in sam.image_encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            nn.init.zeros_(module.bias)
    position = sam.prompt_encoder.get_dense_pe().permute(0, 2, 3, 1).detach()
    with torch.no_grad():
        sam.image_encoder.pos_embed.zero_()
        sam.image_encoder.pos_embed[..., : position.shape[-1]] = 0.1 * position
    return sam


def recompute_blocks(encoder: nn.Module) -> None:
    """From now on the blocks of an `ImageEncoderViT` keep no activations in training, and compute them again in the
    backward pass: the same gradients, bit for bit. Other encoders stay as they are.

    LoRA on ViT-B with one picture, on a CPU: 1.1 in place of 3.6 GB beside the weights, and a quarter more time.
    """
    for block in getattr(encoder, "blocks", ()):
        if "forward" not in vars(block):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
