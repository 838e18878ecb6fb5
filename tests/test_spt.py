"""SPT: SAM itself at the start, what learns, the relation by its formula, and the authors' checkpoints."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

from samtune.commands import predict
from samtune.commands.tuned import load_tuned
from samtune.common.errors import InputError
from samtune.data.pixels import read_image
from samtune.methods import build_method
from samtune.methods.predictor import SPTPredictor
from samtune.methods.spt import SPT, RelationAwareTransformer, related, relation_matrix
from samtune.methods.spt_released import load_released
from samtune.prompts import Prompts
from samtune.sam.attention import merge_qkv
from samtune.sam.build import new_sam
from samtune.sam.decode import decode_masks
from small_sam import disc_sample, official_twin, small_sam, some_prompts

KINDS = ("box", "point", "mask", "none", "box+point")
INDEX = [0, 1, 1]


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def trained(seed: int = 0, **options: object) -> SPT:
    """SPT with random values everywhere: as if it had been trained."""
    method = SPT(small_sam(), **options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.normal_(0, 0.3, generator=generator)
    return method


# ---------------------------------------------------------------- at the start


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_the_draft_is_sam_and_the_refined_mask_sam_prompted_by_it(kind: str) -> None:
    sam = small_sam()
    prompts = some_prompts(kind, INDEX, sam)
    with torch.no_grad():
        embedding = sam.image_encoder(images())
        plain = decode_masks(sam, embedding, prompts)[0]
        again = decode_masks(sam, embedding, prompts.with_masks(plain))[0]
        found = SPT(copy.deepcopy(sam)).eval()(images(), prompts)
    assert torch.equal(found["draft"], plain) and torch.equal(found["final"], again)


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_the_draft_is_segment_anythings_mask(kind: str) -> None:
    sam = small_sam()
    twin, prompts = official_twin(sam), some_prompts(kind, INDEX, sam)
    with torch.no_grad():
        found = SPT(sam).eval()(images(), prompts)["draft"]
        embedding = twin.image_encoder(images())
        for place, image in enumerate(INDEX):
            own = prompts[place : place + 1]
            points = None if own.points is None else (own.points, own.labels)
            sparse, dense = twin.prompt_encoder(points=points, boxes=own.boxes, masks=own.masks)
            position = twin.prompt_encoder.get_dense_pe()
            expected = twin.mask_decoder(embedding[image : image + 1], position, sparse, dense, False)[0]
            assert (found[place] - expected[0]).abs().max() < 1e-4


@pytest.mark.parametrize(("backbone", "count"), [("vit_b", 390_144), ("vit_l", 881_664), ("vit_h", 1_405_952)])
def test_trainable_parameters_are_those_of_the_paper(backbone: str, count: int) -> None:
    with torch.device("meta"):
        assert SPT(new_sam(backbone)).count_trainable() == count


def test_without_draft_and_relation_it_is_lora() -> None:
    torch.manual_seed(0)
    plain = build_method("lora", small_sam()).trainable_state()
    torch.manual_seed(0)
    neither = SPT(small_sam(), draft=False, relation=False)
    assert {name: value.shape for name, value in neither.trainable_state().items()} == {
        name: value.shape for name, value in plain.items()
    }
    assert all(torch.equal(value, plain[name]) for name, value in neither.trainable_state().items())
    assert set(neither(images(), some_prompts("box", INDEX, neither.sam))) == {"final"}


# ---------------------------------------------------------------- what learns


def gradients(method: SPT, train_on: str | None = None) -> set[str]:
    """The parts that a loss reaches: encoder, draft, refine (LoRA), or draft scale, refine scale (gamma)."""
    masks = torch.zeros(3, 1, 64, 64)
    masks[:, :, 16:40, 20:50] = 1
    prediction = method(images(), some_prompts("box", INDEX, method.sam))
    if train_on is None:
        loss = method.loss(prediction, masks, torch.Generator().manual_seed(0))
    else:
        loss = prediction[train_on].square().mean()
    loss.backward()
    reached = set()
    for name, parameter in method.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            continue
        part = re.match(r"sam\.(image_encoder|draft_decoder|mask_decoder)\.", name)[1]
        part = {"image_encoder": "encoder", "draft_decoder": "draft", "mask_decoder": "refine"}[part]
        assert ".lora_" in name or "relation_scales" in name, name
        reached.add(f"{part} scale" if "relation_scales" in name else part)
    return reached


EVERYTHING = {"encoder", "draft", "refine", "draft scale", "refine scale"}


def test_gradient_reaches_lora_and_scales_and_nothing_else() -> None:
    assert gradients(SPT(small_sam())) == EVERYTHING
    assert gradients(trained()) == EVERYTHING
    method = trained()
    gradients(method)
    without = {name for name, p in method.trainable().items() if p.grad is None or not p.grad.any()}
    assert not without  # every single one learns


def test_detached_draft_learns_from_its_own_loss_only() -> None:
    refine = {"encoder", "refine", "refine scale"}
    assert gradients(trained(), "final") == refine
    assert gradients(trained(detach_draft=False), "final") == EVERYTHING


def test_detached_relation_stops_one_way_to_the_encoder() -> None:
    """The gradient at the embedding: of the draft another with the relation detached, of the refined mask the same."""
    found = {}
    for detach in (False, True):
        for output in ("draft", "final"):
            method = trained(**({"detach_relation": True} if detach else {}))  # off in the release
            embedding = method.encode(images()).detach().requires_grad_()
            method.decode(embedding, some_prompts("box", INDEX, method.sam))[output].square().mean().backward()
            found[output, detach] = embedding.grad
    assert not torch.allclose(found["draft", False], found["draft", True])
    assert torch.equal(found["final", False], found["final", True])


def test_loss_is_that_of_both_masks() -> None:
    method = trained()
    masks = (torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    prediction = method(images(), some_prompts("box", INDEX, method.sam))
    generator = torch.Generator().manual_seed(0)
    both = method.loss(prediction, masks, generator)
    generator = torch.Generator().manual_seed(0)
    lora = build_method("lora", small_sam())
    expected = lora.loss(prediction, masks, generator) + lora.loss({"final": prediction["draft"]}, masks, generator)
    assert torch.allclose(both, expected)


# ---------------------------------------------------------------- the relation


def plain_relation(embedding: Tensor, alpha: float = 0.0) -> Tensor:
    """The sheet's formula, one entry at a time."""
    _, channels, height, width = embedding.shape
    tokens = [embedding[0, :, row, column] for row in range(height) for column in range(width)]
    count = len(tokens)
    relation = torch.zeros(count, count)
    for i in range(count):
        cosine = [float(tokens[i] @ tokens[j] / (tokens[i].norm() * tokens[j].norm())) for j in range(count)]
        total = sum(math.exp(cosine[j]) for j in range(count) if j != i)
        for j in range(count):
            relation[i, j] = 0 if i == j else math.exp(cosine[j]) / total
        if alpha:
            relation[i][relation[i] <= alpha / count] = 0
            if relation[i].sum() > 0:
                relation[i] /= relation[i].sum()
    return relation


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.1, 5.0])
def test_relation_is_the_formula(threshold: float) -> None:
    embedding = torch.randn(1, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    found = relation_matrix(embedding, threshold)[0]
    assert torch.allclose(found, plain_relation(embedding, threshold), atol=1e-6)
    sums = found.sum(1)
    assert ((sums - 1).abs() < 1e-5).all() if threshold < 1 else not torch.isnan(found).any()


def test_temperature_from_sharp_to_uniform() -> None:
    embedding = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    uniform = relation_matrix(embedding, temperature=math.inf)
    assert torch.allclose(uniform, (1 - torch.eye(12)) / 11)
    spread = [relation_matrix(embedding, temperature=t).amax(-1).mean() for t in (0.03, 0.1, 1.0, math.inf)]
    assert spread == sorted(spread, reverse=True) and spread[0] > 0.8
    tokens = embedding.flatten(2).transpose(1, 2)
    cosine = nn.functional.cosine_similarity(tokens[:, :, None], tokens[:, None], dim=-1) - 2 * torch.eye(12)
    assert torch.equal(relation_matrix(embedding, temperature=0.01).argmax(-1), cosine.argmax(-1))
    for temperature in (0.1, 3.0):
        weights = (cosine / temperature).exp() * (1 - torch.eye(12))
        expected = weights / weights.sum(-1, keepdim=True)
        assert torch.allclose(relation_matrix(embedding, temperature=temperature), expected, atol=1e-6)


def test_entries_at_the_threshold_go_and_a_token_of_zeros_is_like_any_other() -> None:
    pair = torch.randn(1, 6, 1, 2)  # each is all that the other has: an entry of 1
    assert relation_matrix(pair, threshold=2.0).tolist() == [[[0, 0], [0, 0]]]
    assert relation_matrix(pair, threshold=1.99).tolist() == [[[0, 1], [1, 0]]]
    embedding = torch.randn(1, 6, 2, 2)
    embedding[..., 0, 0] = 0
    assert torch.allclose(relation_matrix(embedding)[0, 0], torch.tensor([0, 1, 1, 1]) / 3)


def test_relation_scales_start_at_zero_or_normal() -> None:
    transformer = TwoWayTransformer(2, 512, 2, 32)
    scales = torch.stack(list(RelationAwareTransformer(transformer, std=0.02).relation_scales.values())).detach()
    assert scales.shape == (2, 512) and scales.std(1).sub(0.02).abs().max() < 0.002
    assert scales.mean(1).abs().max() < 0.004 and not torch.equal(*scales)
    assert not any(scale.any() for scale in RelationAwareTransformer(transformer).relation_scales.values())


@pytest.mark.parametrize("block", [None, 0, 1])
def test_adapter_stands_at_the_end_of_its_blocks(block: int | None) -> None:
    torch.manual_seed(0)
    plain = TwoWayTransformer(2, 16, 2, 32).eval()
    adapted = RelationAwareTransformer(plain, block, std=0.5)
    assert set(adapted.relation_scales) == ({"0", "1"} if block is None else {str(block)})
    image, position, tokens = torch.randn(2, 16, 3, 3), torch.randn(2, 16, 3, 3), torch.randn(2, 5, 16)
    relation = relation_matrix(torch.randn(2, 16, 3, 3))
    image_index = torch.tensor([1, 0])
    keys, key_pe, queries = image.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2), tokens
    for index, layer in enumerate(plain.layers):
        queries, keys = layer(queries, keys, tokens, key_pe)
        if block in (None, index):
            keys = (
                keys + torch.einsum("bij,bjc->bic", relation[image_index], keys) * adapted.relation_scales[str(index)]
            )
    queries = queries + plain.final_attn_token_to_image(queries + tokens, keys + key_pe, keys)
    found = adapted(image, position, tokens, relation, image_index)
    assert torch.allclose(found[0], plain.norm_final_attn(queries), atol=1e-6)
    assert torch.allclose(found[1], keys, atol=1e-6)


@pytest.mark.parametrize("index", [[0, 1, 2], [2, 0, 1], [0, 2, 2, 0, 2], [1]])
def test_relation_of_each_prompts_picture(index: list[int]) -> None:
    relation, image_index = relation_matrix(torch.randn(3, 6, 3, 4)), torch.tensor(index)
    keys = torch.randn(len(index), 12, 5, requires_grad=True)
    found, expected = related(relation, keys, image_index), torch.einsum("pij,pjc->pic", relation[image_index], keys)
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), keys)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(gradient, torch.autograd.grad((expected * weights).sum(), keys)[0], atol=1e-6)


def test_relation_is_kept_once_a_picture_however_many_prompts_it_has() -> None:
    method, embedding = trained(), torch.randn(2, 32, 8, 8, requires_grad=True)
    relations: dict[int, int] = {}  # by place in memory, what is kept of (64, 64) or more for the way back

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-2:] == (64, 64):
            relations[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // (64 * 64 * 4)
        return tensor

    counts = []
    for each in (1, 4):
        relations.clear()
        prompts = some_prompts("box", [0] * each + [1] * each, method.sam)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            alive = method.decode(embedding, prompts)["final"]
        counts.append(sum(relations.values()))
        del alive
    assert counts[0] == counts[1] > 0


def test_prompts_of_several_images_do_not_mix() -> None:
    method = trained()
    prompts = some_prompts("box", INDEX, method.sam)
    with torch.no_grad():
        together = method(images(), prompts)
        for place, image in enumerate(INDEX):
            alone = method(images()[image : image + 1], prompts[place : place + 1].at_image(0))
            for name in ("final", "draft"):
                assert (alone[name][0] - together[name][place]).abs().max() < 1e-4


def test_handoffs() -> None:
    for name, shown in (
        ("logits", lambda x: x),
        ("sigmoid", lambda x: 1 / (1 + (-x).exp())),
        ("threshold", lambda x: x > 0),
    ):
        method = trained(handoff=name, relation=False)
        with torch.no_grad():
            found = method(images(), prompts())
            box = prompts().with_masks(torch.as_tensor(shown(found["draft"])).float())
            expected, _ = decode_masks(method.sam, method.encode(images()), box)  # the refine decoder is SAM's own
        assert torch.allclose(found["final"], expected, atol=1e-5), name
    with pytest.raises(InputError, match="unknown handoff 'mask'; known: "):
        SPT(small_sam(), handoff="mask")
    with pytest.raises(InputError, match="relation_block 2: the decoder's blocks are 0 to 1"):
        SPT(small_sam(), relation_block=2)


def prompts() -> Prompts:
    return some_prompts("box", INDEX, small_sam())


# ---------------------------------------------------------------- the authors' checkpoints


def released_state(seed: int = 0, rank: int = 8) -> dict[str, Tensor]:
    """What the authors' code would save of a small model: their names, their fused qkv, their crossed decoders."""
    sam = small_sam()
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    state = {}
    for name, value in merge_qkv(sam.state_dict()).items():
        state[name] = value
        if name.startswith("mask_decoder."):
            state[name.replace("mask_decoder.", "draft_decoder.")] = value
    for name in list(state):
        layer = name.removesuffix(".weight")
        if layer.endswith("attn.qkv"):
            width = state[name].shape[1]
            state[f"{layer}.lora_A"], state[f"{layer}.lora_B"] = draw(2 * rank, width), draw(2 * width, rank)
        elif "decoder.transformer" in name and layer.endswith(("q_proj", "v_proj")):
            out, into = state[name].shape
            state[f"{layer}.lora_A"], state[f"{layer}.lora_B"] = draw(rank, into), draw(out, rank)
    for decoder in ("mask_decoder", "draft_decoder"):
        for block in (0, 1):
            state[f"{decoder}.transformer.layers.{block}.lora_sim_scale"] = draw(32)
    return state


def by_the_reference_formula(state: dict[str, Tensor], image: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Draft and final logits `(1, 1, 32, 32)` of the authors' model, written out: factors folded into plain weights."""
    state = dict(state)
    for name in [name for name in state if name.endswith("lora_A")]:
        layer = name.removesuffix(".lora_A")
        a, b = state.pop(name), state.pop(f"{layer}.lora_B")
        rank = b.shape[1]
        if layer.endswith("qkv"):
            width = a.shape[1]
            q, v = b[:width] @ a[:rank], b[width:] @ a[rank:]
            update = torch.cat([q, torch.zeros(width, width), v])
        else:
            update = b @ a
        state[f"{layer}.weight"] = state[f"{layer}.weight"] + update / rank
    scales = {name: state.pop(name) for name in list(state) if name.endswith("lora_sim_scale")}
    decoders = {}
    for decoder in ("mask_decoder", "draft_decoder"):
        twin = official_twin(small_sam())
        other = "draft_decoder" if decoder == "mask_decoder" else "mask_decoder"
        own = {
            name.replace(f"{decoder}.", "mask_decoder."): value for name, value in state.items() if other not in name
        }
        twin.load_state_dict(own)
        decoders[decoder] = twin
    twin = decoders["mask_decoder"]
    embedding = twin.image_encoder(image)
    relation = plain_relation(embedding)[None]

    def decode(decoder: str, sparse: Tensor, dense: Tensor) -> Tensor:
        model = decoders[decoder].mask_decoder
        transformer = model.transformer
        tokens = torch.cat([model.iou_token.weight, model.mask_tokens.weight])[None]
        tokens = torch.cat([tokens, sparse], 1)
        position = twin.prompt_encoder.get_dense_pe().flatten(2).permute(0, 2, 1)
        queries, keys = tokens, (embedding + dense).flatten(2).permute(0, 2, 1)
        for block, layer in enumerate(transformer.layers):
            queries, keys = layer(queries, keys, tokens, position)
            keys = keys + (relation @ keys) * scales[f"{decoder}.transformer.layers.{block}.lora_sim_scale"]
        queries = queries + transformer.final_attn_token_to_image(queries + tokens, keys + position, keys)
        queries = transformer.norm_final_attn(queries)
        upscaled = model.output_upscaling(keys.transpose(1, 2).reshape(embedding.shape))
        weights = model.output_hypernetworks_mlps[0](queries[:, 1])
        return (weights[:, None] @ upscaled.flatten(2)).view(1, 1, *upscaled.shape[-2:])

    sparse, dense = twin.prompt_encoder(None, box, None)
    draft = decode("mask_decoder", sparse, dense)
    _, dense = twin.prompt_encoder(None, None, draft)
    return draft, decode("draft_decoder", sparse, dense)


@pytest.mark.parametrize("form", ["everything", "adapted values alone", "of a parallel model"])
def test_released_checkpoint_gives_the_reference_formulas_masks(tmp_path: Path, form: str) -> None:
    state = released_state()
    box = torch.tensor([[8.0, 12.0, 40.0, 50.0]])
    with torch.no_grad():
        draft, final = by_the_reference_formula(state, images(1), box)
    if form == "adapted values alone":
        state = {name: value for name, value in state.items() if "lora_" in name}
    elif form == "of a parallel model":
        state = {f"module.{name}": value for name, value in state.items()}
    torch.save(state, tmp_path / "spt.pth")
    method = load_released(tmp_path / "spt.pth", small_sam())
    with torch.no_grad():
        found = method(images(1), Prompts(torch.tensor([0]), boxes=box))
    assert (found["draft"] - draft).abs().max() < 1e-4 and (found["final"] - final).abs().max() < 1e-4
    assert (draft - final).abs().max() > 0.1


def test_samtune_predicts_with_a_released_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samtune.commands.tuned.load_sam", lambda backbone: small_sam())
    path = tmp_path / "spt_vit_b.pth"
    torch.save(released_state(), path)
    tuned = load_tuned(str(path), "small")
    assert isinstance(tuned.predictor(), SPTPredictor) and tuned.preprocess == "stretch"
    with pytest.raises(InputError, match="does not say which SAM it was tuned on: name it by --backbone"):
        load_tuned(path)
    Image.fromarray(disc_sample(0).image).save(tmp_path / "disc.png")
    box = [(10, 5, 50, 40)]
    options = {"backbone": "small", "device": "cpu", "precision": "fp32"}
    (mask,) = predict.predict(path, tmp_path / "disc.png", tmp_path, box=box, **options)
    predictor = SPTPredictor(load_released(path, small_sam()))
    predictor.set_image(disc_sample(0).image)
    expected, _, _ = predictor.predict(box=torch.tensor(box[0]).numpy())
    assert (torch.from_numpy(read_image(mask)[..., 0] > 0).numpy() == expected[0]).all()


def test_rounding_is_accepted_and_lora_in_the_weights_is_not(tmp_path: Path) -> None:
    state, path = released_state(), tmp_path / "spt.pth"
    layer = "mask_decoder.transformer.layers.0.self_attn.q_proj"
    added = state[f"{layer}.lora_B"] @ state[f"{layer}.lora_A"] / 8
    rounded = (state[f"{layer}.weight"] + added) - added  # loralib: model.eval(), then model.train()
    assert not torch.equal(rounded, state[f"{layer}.weight"])
    torch.save(state | {f"{layer}.weight": rounded}, path)
    expected = load_released(path, small_sam()).trainable_state()
    torch.save(state, path)
    found = load_released(path, small_sam()).trainable_state()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    torch.save(state | {f"{layer}.weight": state[f"{layer}.weight"] + added}, path)
    with pytest.raises(InputError, match=rf"has LoRA added to {re.escape(layer)}\.weight \(1 such\).*model\.train\(\)"):
        load_released(path, small_sam())
    fused = "image_encoder.blocks.0.attn.qkv.weight"
    changed = state[fused].clone()
    changed[0] += 1e-3
    torch.save(state | {fused: changed}, path)
    with pytest.raises(InputError, match="has LoRA added to image_encoder.blocks.0.attn.q_proj.weight"):
        load_released(path, small_sam())


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    state = released_state()
    path = tmp_path / "file.pth"
    torch.save(small_sam().state_dict(), path)
    with pytest.raises(InputError, match="no checkpoint of SPT's authors"):
        load_released(path, small_sam())
    torch.save(state, path)
    with pytest.raises(InputError, match="tuned on other weights than these of small"):
        load_released(path, small_sam(seed=1))
    del state["draft_decoder.transformer.layers.1.lora_sim_scale"]
    torch.save(state, path)
    with pytest.raises(InputError, match="relation_scales.1"):
        load_released(path, small_sam())
