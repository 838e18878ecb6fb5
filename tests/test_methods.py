"""Methods: what trains and how much, SAM itself at the start, merging, and checkpoints that must fit."""

import copy
from pathlib import Path

import matplotlib.colors
import pytest
import torch
from peft.tuners.lora import LoraLayer
from segment_anything.modeling import Sam as OfficialSam
from torch import Tensor

from samtune.common.errors import InputError
from samtune.methods import METHODS, Method, build_method
from samtune.prompts import Prompts
from samtune.sam.attention import set_attention_form
from samtune.sam.build import new_sam
from samtune.sam.checkpoints import read_state, save_official
from small_sam import official_twin, small_sam, some_prompts

PROMPTS = ("box", "point", "mask", "none", "box+point")
# Rank 8 on q and v of the two-way transformer: in each of its two layers a self-attention (256 to 256) and two
# cross-attentions (256 to 128), and one more cross-attention at the end.
DECODER_LORA = 2 * 8 * (2 * (256 + 256) + 5 * (256 + 128))


def images(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def predict(method: Method, kind: str) -> Tensor:
    with torch.no_grad():
        return method(images(), some_prompts(kind, [0, 1, 1], method.sam))["final"]


def predict_officially(sam: OfficialSam, kind: str) -> Tensor:
    """Logits by segment_anything's own modules, one prompt a call."""
    prompts = some_prompts(kind, [0, 1, 1], small_sam())
    answers = []
    with torch.no_grad():
        embedding = sam.image_encoder(images())
        for place, image in enumerate(prompts.image_index.tolist()):
            own = prompts[place : place + 1]
            points = None if own.points is None else (own.points, own.labels)
            sparse, dense = sam.prompt_encoder(points=points, boxes=own.boxes, masks=own.masks)
            position = sam.prompt_encoder.get_dense_pe()
            answers.append(sam.mask_decoder(embedding[image : image + 1], position, sparse, dense, False)[0])
    return torch.cat(answers)


def tuned_lora(seed: int = 0, **options: object) -> Method:
    """LoRA with random factors on both sides: as if it had been trained."""
    method = build_method("lora", small_sam(), **options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.normal_(0, 0.3, generator=generator)
    return method


@pytest.mark.parametrize("kind", PROMPTS)
def test_zero_shot_is_sam(kind: str) -> None:
    method = build_method("zero_shot", small_sam())
    expected = predict_officially(official_twin(small_sam()), kind)
    assert predict(method, kind).shape == (3, 1, 32, 32)
    assert (predict(method, kind) - expected).abs().max() < 1e-5
    assert method.count_trainable() == 0 and method.frozen_encoder and method.merged() is method.sam


@pytest.mark.parametrize("name", ["lora", "decoder_tuning"])
@pytest.mark.parametrize("form", ["auto", "explicit"])
def test_untrained_method_is_sam_bit_for_bit(name: str, form: str) -> None:
    plain, method = build_method("zero_shot", small_sam()), build_method(name, small_sam()).eval()
    for one in (plain, method):
        set_attention_form(one.sam.image_encoder, form)
    for kind in PROMPTS:
        assert torch.equal(predict(method, kind), predict(plain, kind))


@pytest.mark.parametrize(
    ("backbone", "blocks", "width", "expected"),
    [("vit_b", 12, 768, 342_016), ("vit_l", 24, 1024, 833_536), ("vit_h", 32, 1280, 1_357_824)],
)
def test_trainable_parameters_of_the_official_backbones(backbone: str, blocks: int, width: int, expected: int) -> None:
    assert blocks * 2 * 8 * (width + width) + DECODER_LORA == expected
    with torch.device("meta"):
        assert build_method("lora", new_sam(backbone)).count_trainable() == expected
        tuned = build_method("decoder_tuning", new_sam(backbone))
    assert tuned.count_trainable() == 4_058_340
    assert all(name.startswith("sam.mask_decoder.") for name in tuned.trainable())


def test_lora_sits_on_q_and_v_of_every_attention_with_scale_an_eighth() -> None:
    method = build_method("lora", small_sam())
    places = {name for name, module in method.sam.named_modules() if isinstance(module, LoraLayer)}
    attentions = [f"image_encoder.blocks.{block}.attn" for block in (0, 1)]
    attentions += ["mask_decoder.transformer.final_attn_token_to_image"]
    for layer in (0, 1):
        for kind in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            attentions.append(f"mask_decoder.transformer.layers.{layer}.{kind}")
    assert places == {f"{attention}.{part}" for attention in attentions for part in ("q_proj", "v_proj")}
    module = method.sam.get_submodule("image_encoder.blocks.0.attn.q_proj")
    assert module.scaling["default"] == 1 / 8 and module.r["default"] == 8
    assert build_method("lora", small_sam(), rank=4, alpha=4).sam.get_submodule(
        "image_encoder.blocks.0.attn.q_proj"
    ).scaling["default"] == 1.0  # fmt: skip


@pytest.mark.parametrize("name", ["lora_samed", "sam_sp"])
@pytest.mark.parametrize(("options", "scale"), [({}, 1.0), ({"rank": 8}, 1.0), ({"rank": 8, "alpha": 2.0}, 0.25)])
def test_lora_as_sameds_has_scale_one_unless_alpha_is_given(name: str, options: dict, scale: float) -> None:
    modules = [one for one in build_method(name, small_sam(), **options).sam.modules() if isinstance(one, LoraLayer)]
    assert len(modules) == 4 and {module.scaling["default"] for module in modules} == {scale}  # q and v of two blocks


def test_loss_of_lora_as_sameds_is_a_fifth_cross_entropy_and_the_rest_dice() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 16, 16, generator=generator)
    truth = torch.rand(3, 1, 16, 16, generator=generator).round()
    masks = truth.repeat_interleave(4, 2).repeat_interleave(4, 3)
    p = logits.sigmoid()
    overlap, sizes = (p * truth).sum((1, 2, 3)), (p + truth).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (sizes + 1)
    expected = 0.2 * torch.nn.functional.binary_cross_entropy_with_logits(logits, truth) + 0.8 * dice.mean()
    assert torch.allclose(build_method("lora_samed", small_sam()).loss({"final": logits}, masks), expected)


def test_lora_drops_nothing_out_in_training() -> None:
    method = tuned_lora()
    assert torch.equal(predict(method.train(), "box"), predict(method.eval(), "box"))


def test_epochs_rates_and_prompts_are_those_of_the_sheets() -> None:
    spt, asam = METHODS["spt"], METHODS["asam"]
    assert (spt.epochs, spt.learning_rate, spt.prompts) == (16, 1e-3, ("box", "point10"))
    assert (asam.epochs, asam.learning_rate, asam.prompts) == (20, 2e-3, ("box", "point10", "mask"))
    assert METHODS["lora"].epochs == spt.epochs and METHODS["lora"].learning_rate == spt.learning_rate  # equal training
    assert METHODS["sam_sp"].epochs == METHODS["lora_samed"].epochs == 160


def test_lora_adds_the_low_rank_product() -> None:
    method, plain = tuned_lora(), small_sam()
    name = "mask_decoder.transformer.layers.1.cross_attn_token_to_image.v_proj"
    a, b = (method.trainable()[f"sam.{name}.lora_{part}.default.weight"].detach() for part in "AB")
    x, base = torch.randn(5, 32), plain.get_submodule(name)
    expected = x @ (base.weight + b @ a / 8).T + base.bias
    assert (method.sam.get_submodule(name)(x) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["lora", "decoder_tuning"])
def test_gradient_reaches_what_trains_and_nothing_else(name: str) -> None:
    method = (tuned_lora() if name == "lora" else build_method(name, small_sam())).train()
    prediction = method(images(), some_prompts("point", [0, 1], method.sam))
    masks = (torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    loss = method.loss(prediction, masks, torch.Generator().manual_seed(0))
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    reached = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert reached <= set(method.trainable())
    # Mask tokens 1 to 3 and the IoU head take no part in the loss of token 0.
    idle = [n for n in method.trainable() if n not in reached or not method.trainable()[n].grad.any()]
    if name == "lora":
        assert idle == [] and all("lora_" in name for name in reached)
    else:
        unused = ("iou_prediction_head", "mlps.1.", "mlps.2.", "mlps.3.", ".k_proj.bias")
        assert all(any(part in name for part in unused) for name in idle), idle


def test_at_the_start_only_the_zero_factor_learns() -> None:
    method = build_method("lora", small_sam())
    method(images(), some_prompts("box", [0, 1], method.sam))["final"].square().mean().backward()
    for name, parameter in method.trainable().items():
        assert bool(parameter.grad.any()) == ("lora_B" in name), name
        assert bool(parameter.any()) == ("lora_A" in name), name
        if "lora_A" in name:  # Kaiming-uniform with a = sqrt(5): uniform up to 1 / sqrt(inputs)
            limit = parameter.shape[1] ** -0.5
            assert 0.9 * limit < parameter.abs().max() <= limit


def test_encode_and_decode_make_forward() -> None:
    method = tuned_lora()
    prompts = some_prompts("box", [1, 0], method.sam)
    with torch.no_grad():
        whole = method(images(), prompts)["final"]
        assert torch.equal(whole, method.decode(method.encode(images()), prompts)["final"])


@pytest.mark.parametrize("kind", PROMPTS)
def test_merged_lora_is_an_ordinary_sam_with_the_same_logits(kind: str, tmp_path: Path) -> None:
    method = tuned_lora()
    before = predict(method, kind)
    merged = method.merged()
    assert not any(isinstance(module, LoraLayer) for module in merged.modules())
    assert merged.state_dict().keys() == small_sam().state_dict().keys()
    assert (predict(build_method("zero_shot", merged), kind) - before).abs().max() < 1e-5
    assert torch.equal(predict(method, kind), before)  # merging leaves the method as it was
    assert (before - predict(build_method("zero_shot", small_sam()), kind)).abs().max() > 1e-2
    # In segment_anything's own classes, through a file in its own format.
    save_official(merged, tmp_path / "merged.pth")
    official = official_twin(small_sam(9))
    official.load_state_dict(read_state(tmp_path / "merged.pth"))
    assert (predict_officially(official, kind) - before).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["lora", "decoder_tuning"])
def test_trainable_state_is_all_that_a_checkpoint_needs(name: str) -> None:
    first = tuned_lora() if name == "lora" else build_method(name, small_sam())
    with torch.no_grad():
        next(iter(first.trainable().values())).add_(1.0)
    state = first.trainable_state()
    assert sum(value.numel() for value in state.values()) == first.count_trainable()
    second = build_method(name, small_sam()).eval()
    assert not torch.equal(predict(second, "box"), predict(first.eval(), "box"))
    second.load_trainable_state(state)
    assert torch.equal(predict(second, "box"), predict(first, "box"))
    kept = {key: value.clone() for key, value in state.items()}
    with torch.no_grad():
        next(iter(second.trainable().values())).zero_()
    assert all(torch.equal(state[key], kept[key]) for key in kept)  # a copy: later steps leave it alone


def test_trainable_state_that_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    method = tuned_lora()
    state = method.trainable_state()
    name = "sam.image_encoder.blocks.0.attn.q_proj.lora_A.default.weight"
    other = tuned_lora(1, rank=4).trainable_state()
    cases = [
        ({key: value for key, value in state.items() if key != name}, f"missing {name} "),
        (state | {"sam.more": torch.zeros(1)}, "unexpected sam.more "),
        (other, rf"\({4}, 32\), expected \({8}, 32\)"),
    ]
    for changed, message in cases:
        with pytest.raises(InputError, match=f"checkpoint tuned.safetensors .*{message}"):
            method.load_trainable_state(changed, "tuned.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in method.trainable_state().items())


def test_sam_is_frozen_and_left_on_its_weights() -> None:
    sam = small_sam()
    before = copy.deepcopy(sam.state_dict())
    for name in (name for name, method in METHODS.items() if method.needs_sam):
        method = build_method(name, copy.deepcopy(sam))
        parts = ("lora_", "mask_decoder", "relation_scales", "prompt_encoder")
        assert all(any(part in n for part in parts) for n in method.trainable())
        values = {n.replace(".base_layer", ""): v for n, v in method.sam.state_dict().items() if "lora_" not in n}
        assert all(torch.equal(values.pop(n), before[n]) for n in before)
        twins = {n: v for n, v in values.items() if "relation_scales" not in n}  # SPT's second decoder
        assert all(torch.equal(v, before[n.replace("draft_decoder", "mask_decoder")]) for n, v in twins.items())


def test_one_prompt_kind_does_not_disturb_another() -> None:
    """Points and boxes of one call are read as if they had come alone."""
    method = build_method("zero_shot", small_sam())
    prompts = some_prompts("point", [0, 1, 1], method.sam)
    with torch.no_grad():
        together = method(images(), prompts)["final"]
        alone = [method(images(), Prompts.concatenate([prompts[i : i + 1]]))["final"] for i in range(3)]
    assert (together - torch.cat(alone)).abs().max() < 1e-5


def test_what_is_known_of_a_method_stands_on_its_class() -> None:
    for name, method in METHODS.items():
        assert method.name == name and method.epochs > 0
        assert matplotlib.colors.is_color_like(method.colour) and method.title
        assert method.takes_prompts or method.prompts == ("none",)
    for attribute in ("title", "colour"):
        assert len({getattr(method, attribute) for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_sizes_are_those_of_the_pictures_and_the_logits_and_takes_prompts_says_whether_one_matters(name: str) -> None:
    sizes = {} if METHODS[name].needs_sam else {"image_size": 64}
    method = build_method(name, small_sam() if METHODS[name].needs_sam else None, **sizes).eval()
    assert hasattr(method, "sam") == method.needs_sam
    pictures = torch.randn(1, 3, method.image_size, method.image_size)
    with torch.no_grad():
        one, other = (method(pictures, some_prompts("box", [0], small_sam(), seed))["final"] for seed in (0, 1))
    assert one.shape == (1, 1, method.mask_size, method.mask_size)
    assert torch.equal(one, other) != method.takes_prompts


def test_unknown_method_lists_the_nearest_first() -> None:
    with pytest.raises(InputError, match="unknown method 'loras'; known: lora, "):
        build_method("loras", small_sam())


def test_a_number_given_as_text_is_refused() -> None:
    with pytest.raises(InputError, match="rank is '8': it has to be a number"):
        build_method("lora", small_sam(), rank="8")
