"""Training of the nano diffusion pipeline on tiny settings: one file of pictures, stages that resume, a pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionControlNetPipeline
from torch import Tensor

from samtune.common.errors import InputError
from samtune.diffusion.conditions import PALETTE
from samtune.nano import diffusion_models, diffusion_pictures
from samtune.nano.diffusion import main, train_stage
from samtune.nano.diffusion_models import new_controlnet, new_scheduler, new_tokenizer, new_unet
from samtune.nano.diffusion_pictures import Pictures, random_views, read_pictures, whole_views, write_pictures
from small_sam import ListedSamples, disc_sample


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures of one set, two scenes, and small networks."""
    real = diffusion_pictures.open_dataset
    small = ListedSamples([disc_sample(number) for number in range(3)])
    monkeypatch.setattr(diffusion_pictures, "SETS", ("bsds500",))
    monkeypatch.setattr(
        diffusion_pictures, "open_dataset", lambda name, **options: real(name, **options) if options else small
    )
    monkeypatch.setattr(diffusion_models, "UNET_WIDTHS", (16, 16, 16))
    path = tmp_path / "pictures.npz"
    write_pictures(path, limit=2, scenes=2)
    return path


def test_pictures_come_back_from_the_file(file: Path) -> None:
    parts = read_pictures(file)
    train, val = parts["train"], parts["val"]
    assert len(train) == 2 * (1 + diffusion_pictures.CROPS["bsds500"]) + 2 and train.images.shape[1:] == (3, 160, 160)
    assert val.images.shape[1:] == (3, 128, 128) and val.images.dtype == torch.uint8
    sample = disc_sample(0)
    mask = (val.objects[0] == 1).float().mean().item()
    assert mask == pytest.approx(sample.masks[0].mean(), abs=0.02)
    colour = val.images[0].float()[:, val.objects[0] == 1].mean(1)  # RGB, not BGR
    assert np.allclose(colour, sample.image[sample.masks[0]].mean(0), atol=6)
    assert train.captions[-1].startswith("a scene of ")


def test_unreadable_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"no npz")
    with pytest.raises(InputError, match="cannot read pictures from .*broken.*remove it"):
        read_pictures(tmp_path / "broken")


def ramp_pictures() -> Pictures:
    """One picture whose red is its column and green its row, with an object on its right half."""
    images = torch.zeros(1, 3, 160, 160, dtype=torch.uint8)
    images[:, 0], images[:, 1] = torch.arange(160), torch.arange(160)[:, None]
    objects = torch.zeros(1, 160, 160, dtype=torch.uint8)
    objects[:, :, 80:] = 7
    return Pictures(images, objects, ["a"], ["set"])


def test_views_show_picture_and_masks_through_the_same_window() -> None:
    widths, mirrored, colours = set(), set(), set()
    for seed in range(20):
        images, conditions = random_views(ramp_pictures(), torch.tensor([0]), torch.Generator().manual_seed(seed))
        assert images.shape == conditions.shape == (1, 3, 128, 128)
        column, row = ((images[0, channel] + 1) * 127.5 for channel in (0, 1))
        assert column.min() >= 0 and column.max() <= 159 and (column[0] - column[-1]).abs().max() < 1e-3
        steps = column[0].diff()
        mirrored.add(bool(steps.mean() < 0))
        assert row[:, 0].diff().mean() > 0.99
        widths.add(round(abs(steps.mean().item()), 2))
        covered = conditions[0].any(0)
        assert (covered == (column > 79.5)).float().mean() > 0.98
        colours.add(tuple((conditions[0][:, covered][:, 0] * 255).round().int().tolist()))
    assert mirrored == {False, True} and len(widths) > 5 and len(colours) > 10
    assert colours <= {tuple(colour) for colour in PALETTE.tolist()}


def test_whole_views_use_the_objects_own_colours() -> None:
    images, conditions = whole_views(ramp_pictures())
    assert images.min() == -1 and images.max() == pytest.approx(159 / 127.5 - 1)
    assert (conditions[0, :, 0, 100] * 255).round().tolist() == PALETTE[7].tolist()


def weights(folder: Path) -> dict[str, Tensor]:
    return AutoencoderKL.from_pretrained(folder / "pipeline", subfolder="vae").state_dict()


def test_a_stage_that_is_stopped_goes_on_as_if_it_had_not(file: Path, tmp_path: Path) -> None:
    pictures = read_pictures(file)
    options = {"batch_size": 2, "checkpoint_every": 2, "progress": False}
    whole = train_stage("autoencoder", pictures, tmp_path / "whole", 4, **options)
    assert whole["step"] == len(whole["losses"]) == 4 and [row["step"] for row in whole["validation"]] == [2, 4]

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:  # killed on the way to the second checkpoint
        calls = iter([torch.isfinite, torch.isfinite, torch.isfinite, stop])
        patch.setattr("samtune.nano.diffusion.torch.isfinite", lambda value: next(calls)(value))
        with pytest.raises(Stopped):
            train_stage("autoencoder", pictures, tmp_path / "parts", 4, **options)
    resumed = train_stage("autoencoder", pictures, tmp_path / "parts", 4, **options)
    assert resumed["losses"] == whole["losses"]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "parts/autoencoder.json").read_text())["step"] == 4


def test_the_autoencoder_learns_and_scales_its_latents(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samtune.nano.diffusion.WARM_UP_STEPS", 1)
    pictures = read_pictures(file)
    state = train_stage("autoencoder", pictures, tmp_path, 20, 2, 3e-3, progress=False)
    assert np.mean(state["losses"][-3:]) < 0.7 * np.mean(state["losses"][:3])
    vae = AutoencoderKL.from_pretrained(tmp_path / "pipeline", subfolder="vae").float()
    with torch.no_grad():
        images = whole_views(pictures["val"])[0]
        latents = vae.encode(images).latent_dist.mean
        error = (vae.decode(latents).sample.clamp(-1, 1) - images).square().mean((1, 2, 3))
    assert (latents * vae.config.scaling_factor).std() == pytest.approx(1, abs=0.01)
    psnr = (10 * (4 / error).log10()).mean().item()
    assert state["validation"][-1]["psnr listed"] == pytest.approx(psnr, abs=0.05)


def test_the_stages_make_a_pipeline_that_diffusers_opens(file: Path, tmp_path: Path) -> None:
    pictures = read_pictures(file)
    for stage, needed in (("unet", "autoencoder"), ("controlnet", "autoencoder")):
        with pytest.raises(InputError, match=f"train stage {needed} first"):
            train_stage(stage, pictures, tmp_path, 1, 2, progress=False)
    for stage in ("autoencoder", "unet", "controlnet"):
        state = train_stage(stage, pictures, tmp_path, 2, 2, progress=False)
        assert np.isfinite(state["losses"]).all()
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "pipeline")
    condition = whole_views(pictures["val"])[1][:1]
    pipeline.to(torch.float32)
    image = pipeline("a photograph", condition, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 128, 128, 3) and np.isfinite(image).all()
    saved = torch.load(tmp_path / "controlnet.pt", weights_only=False)
    zero = saved["trained"]["controlnet.controlnet_mid_block.weight"]
    assert zero.any()  # it starts as zeros: the ControlNet has learned, through the frozen U-Net
    before = weights(tmp_path)
    train_stage("decoder", pictures, tmp_path, 2, 2, progress=False)
    after = weights(tmp_path)
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert "decoder" in changed and not changed & {"encoder", "quant_conv"}  # latents stay what they were


def test_a_mask_counts_in_the_controlnet_from_the_start() -> None:
    torch.manual_seed(0)
    controlnet = new_controlnet(new_unet())
    nothing = torch.zeros(1, 3, 128, 128)
    half = nothing.clone()
    half[..., 64:] = 1
    with torch.no_grad():
        first, second = (controlnet.controlnet_cond_embedding(condition) for condition in (nothing, half))
        latents = controlnet.conv_in(torch.randn(1, 4, 32, 32))
    difference = (first - second)[..., 16:].std() / latents.std()
    assert 0.1 < difference < 3  # by diffusers' own start, whose last convolution is zero: 0


def test_command_line_goes_on_and_says_what_is_wrong(file: Path, tmp_path: Path) -> None:
    main("autoencoder", 1, tmp_path, file, batch_size=2)
    main("autoencoder", 2, tmp_path, file, batch_size=2)
    log = json.loads((tmp_path / "autoencoder.json").read_text())
    assert (log["step"], log["steps"], log["batch_size"]) == (2, 2, 2)
    with pytest.raises(SystemExit, match="error: no unet in .*train stage unet first"):
        main("controlnet", 1, tmp_path, file)


def test_unknown_stage() -> None:
    with pytest.raises(InputError, match="unknown stage 'unets'; known: unet, "):
        train_stage("unets", {}, Path("."), 1)


def test_scheduler_is_asams() -> None:
    scheduler = new_scheduler()
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(980, -1, -20))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
    assert torch.allclose(scheduler.alphas_cumprod, (1 - betas).cumprod(0))
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]


def test_tokenizer_reads_its_captions_in_few_tokens() -> None:
    captions = ["a photograph of dress, hair and shoes", "a scene of 6 objects"] * 3
    tokenizer = new_tokenizer(captions)
    tokens = tokenizer(captions[0], padding="max_length", truncation=True).input_ids
    assert len(tokens) == tokenizer.model_max_length == 32
    assert tokens[0] == tokenizer.bos_token_id and tokens.index(tokenizer.eos_token_id) == 9
    assert tokenizer.decode(tokens, skip_special_tokens=True).replace(" ,", ",") == captions[0]
