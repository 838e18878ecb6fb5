"""Loading by diffusers, the autoencoder's scale, and ControlNets in the layout of their authors."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from samtune.common.errors import InputError
from samtune.diffusion import pipeline
from samtune.diffusion.attack import AttackConfig, attack
from samtune.diffusion.conditions import asam_colour_coded, colour_coded
from samtune.diffusion.inversion import denoise, invert
from samtune.diffusion.pipeline import LatentDiffusion, load_diffusion, read_controlnet
from samtune.methods import build_method
from samtune.nano import diffusion_models
from samtune.nano.diffusion_models import (
    new_autoencoder,
    new_controlnet,
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_unet,
)
from samtune.prompts import Prompts
from small_sam import small_sam


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """`module` with a ControlNet's zero convolutions filled too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return module


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LatentDiffusion:
    monkeypatch.setattr(diffusion_models, "UNET_WIDTHS", (16, 16, 16))
    torch.manual_seed(0)
    tokenizer = new_tokenizer(["a photograph of dress, hair and shoes"])
    unet, vae = new_unet(), new_autoencoder()
    vae.register_to_config(scaling_factor=0.5)
    controlnet = randomised(new_controlnet(unet), 1)
    return LatentDiffusion(vae, unet, new_text_encoder(tokenizer), tokenizer, new_scheduler(), controlnet)


def save(model: LatentDiffusion, folder: Path) -> None:
    for part in ("vae", "unet", "text_encoder"):
        getattr(model, part).save_pretrained(folder / part)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    type(model.scheduler).from_config(model.scheduler.config, steps_offset=1).save_pretrained(folder / "scheduler")
    model.controlnet.save_pretrained(folder / "controlnet")


def inputs(model: LatentDiffusion) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, condition = torch.randn(2, 4, 32, 32, generator=generator), torch.rand(2, 3, 128, 128, generator=generator)
    return latents, torch.tensor(500), model.embed(["a photograph of hair", ""]), condition


def test_a_folder_comes_back_as_it_was_with_asams_schedule(model: LatentDiffusion, tmp_path: Path) -> None:
    save(model, tmp_path)
    loaded = load_diffusion(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(loaded.noise(*inputs(loaded)), model.noise(*inputs(model)))
        assert not torch.equal(loaded.noise(*inputs(loaded)[:3]), model.noise(*inputs(model)))  # ControlNet off
    for scheduler in (loaded.scheduler, loaded.inverse_scheduler):
        config = scheduler.config
        assert (config.steps_offset, config.set_alpha_to_one, config.clip_sample) == (0, False, False)
    assert loaded.image_size == 128 and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_pictures_and_latents(model: LatentDiffusion) -> None:
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    latents = model.encode(images)
    with torch.no_grad():
        mean = model.vae.encode(images * 2 - 1).latent_dist.mean
        assert torch.equal(latents, mean * 0.5)
        assert torch.allclose(model.decode(latents) * 2 - 1, model.vae.decode(mean).sample, atol=1e-5)


def test_missing_files_say_what_to_fetch_and_where_to_put_it(
    model: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMTUNE_OFFLINE", "1")
    monkeypatch.setenv("SAMTUNE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    by_hand = re.escape(f"fetch someone/some-diffusion and put it at {tmp_path / 'checkpoints/some-diffusion'}")
    with pytest.raises(InputError, match=f"no unet of someone/some-diffusion.*{by_hand}"):
        load_diffusion("someone/some-diffusion")
    save(model, tmp_path / "checkpoints/some-diffusion")  # there it is found
    assert load_diffusion("someone/some-diffusion").controlnet is not None
    with pytest.raises(InputError, match="no model of someone/controlnet"):
        load_diffusion("someone/some-diffusion", "someone/controlnet")
    file = tmp_path / "checkpoints/mask.pth"
    with pytest.raises(InputError, match=re.escape(f"no mask ControlNet at {file}: fetch someone/nets/mask.pth and")):
        load_diffusion("someone/some-diffusion", "someone/nets/mask.pth")
    torch.save(authors_layout(ControlNetModel.from_unet(model.unet)), file)
    loaded = load_diffusion("someone/some-diffusion", "someone/nets/mask.pth")
    assert loaded.controlnet is not None and loaded.mask_image is asam_colour_coded
    assert load_diffusion("someone/some-diffusion").mask_image is colour_coded
    monkeypatch.setattr(pipeline, "NANO", "assets/none")
    with pytest.raises(InputError, match=r"no unet of nano .*assets/none \(there is no such folder\): write the nano"):
        load_diffusion("nano")


def test_a_controlnet_of_another_size_is_refused(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(model, tmp_path / "sd")
    monkeypatch.setattr(diffusion_models, "UNET_WIDTHS", (16, 16, 32))
    new_controlnet(new_unet()).save_pretrained(tmp_path / "wide")
    with pytest.raises(InputError, match=r"wide does not fit the diffusion model: its block_out_chan"):
        load_diffusion(str(tmp_path / "sd"), str(tmp_path / "wide"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "controlnet"])
def test_a_damaged_part_is_named_and_never_random(model: LatentDiffusion, tmp_path: Path, part: str) -> None:
    save(model, tmp_path)
    path = next((tmp_path / part).glob("*.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"no {part} of"):
        load_diffusion(str(tmp_path))
    path.write_bytes(whole)
    state = load_file(path)
    lost = sorted(state)[0]
    save_file({name: value for name, value in state.items() if name != lost}, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"no {part} of .*{re.escape(lost)} is missing"):
        load_diffusion(str(tmp_path))


RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}  # fmt: skip


def authors_layout(controlnet: ControlNetModel) -> dict[str, Tensor]:
    """The ControlNet authors' names, from how their classes nest: one input block a resnet or downsampler."""
    layers = controlnet.config.layers_per_block

    def renamed(name: str) -> str:
        stem, _, kind = name.rpartition(".")
        if stem in TOP:
            return f"{TOP[stem]}.{kind}"
        if found := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)", stem):
            return f"input_hint_block.{2 * (int(found[1]) + 1)}.{kind}"
        if found := re.fullmatch(r"controlnet_down_blocks\.(\d+)", stem):
            return f"zero_convs.{found[1]}.0.{kind}"
        if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", stem):
            return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{kind}"
        found = re.fullmatch(r"(down_blocks\.(\d+)|mid_block)\.(resnets|attentions)\.(\d+)\.(.+)", stem)
        rest = RESNET[found[5]] if found[3] == "resnets" else found[5]
        if found[2] is None:
            return f"middle_block.{2 * int(found[4]) if found[3] == 'resnets' else 1}.{rest}.{kind}"
        block = 1 + int(found[2]) * (layers + 1) + int(found[4])
        return f"input_blocks.{block}.{0 if found[3] == 'resnets' else 1}.{rest}.{kind}"

    return {renamed(name): value for name, value in controlnet.state_dict().items()}


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_a_single_file_in_the_authors_layout(model: LatentDiffusion, tmp_path: Path, prefix: str) -> None:
    # diffusers numbers the condition's layers for four levels, as Stable Diffusion's factor of 8 has them.
    original = randomised(ControlNetModel.from_unet(model.unet), 5)
    state = {prefix + name: value for name, value in authors_layout(original).items()}
    assert len(state) == len(original.state_dict()) and f"{prefix}input_blocks.1.0.in_layers.0.weight" in state
    torch.save(state, tmp_path / "mask.pth")
    converted = read_controlnet(tmp_path / "mask.pth", model.unet)
    expected = original.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in converted.state_dict().items())
    del state[f"{prefix}zero_convs.2.0.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(InputError, match="cut.pth does not fit.*missing controlnet_down_blocks.2.weight"):
        read_controlnet(tmp_path / "cut.pth", model.unet)


@pytest.mark.parametrize("recipe", ["null_text", "direct", "negative_prompt"])
def test_inversion_and_attack_through_the_real_modules(model: LatentDiffusion, recipe: str) -> None:
    """Two pictures, two steps, ControlNet and guidance on, the gradient through the last step."""
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    _, _, text, condition = inputs(model)
    empty = model.embed(["", ""])
    start = model.encode(images)
    latents, plan = invert(model, start, text, empty, condition, recipe, steps=2)
    rebuilt = denoise(model, latents, plan)
    if recipe == "direct":
        assert (rebuilt - start).abs().max() < 1e-4
    victim = build_method("zero_shot", small_sam()).eval()
    boxes = torch.tensor([[4.0, 4, 40, 40], [10, 10, 50, 60], [2, 2, 9, 9]])
    masks = torch.zeros(3, 1, 128, 128)
    masks[:, :, 20:90, 20:90] = 1
    prompts = Prompts(torch.tensor([0, 1, 1]), boxes=boxes)
    result = attack(model, victim, latents, plan, images, prompts, masks, AttackConfig(steps=2, last_steps=1))
    assert result.iou.shape == (3, 2) and torch.isfinite(result.latents).all()
    with torch.no_grad():
        assert (result.first - model.decode(rebuilt).clamp(0, 1)).abs().max() < 2e-3
