"""The batched mask decoder against segment_anything's own, image by image."""

import pytest
import torch

from samtune.prompts import Prompts
from samtune.sam.decode import FullPrecisionPromptEncoder, decode_in_parts, decode_masks, encode_prompts
from small_sam import official_twin, small_sam, some_prompts

IMAGES = [2, 0, 1, 0, 2, 2]  # which image each prompt is for: mixed up, and not equally many


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", ["box", "point", "mask", "none", "box+point", "box+mask", "box+point+mask"])
def test_one_pass_over_images_and_prompts_equals_image_by_image(kind: str, multimask: bool) -> None:
    sam = small_sam()
    official = official_twin(sam)
    embedding = torch.randn(3, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = some_prompts(kind, IMAGES, sam)
    with torch.no_grad():
        logits, quality = decode_masks(sam, embedding, prompts, multimask)
        assert logits.shape == (6, 3 if multimask else 1, 32, 32) and quality.shape == logits.shape[:2]
        for image in range(3):
            chosen = prompts.image_index == image
            own = prompts[chosen]
            points = None if own.points is None else (own.points, own.labels)
            sparse, dense = official.prompt_encoder(points=points, boxes=own.boxes, masks=own.masks)
            expected = official.mask_decoder(
                image_embeddings=embedding[image : image + 1],
                image_pe=official.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
            # Without anything to encode segment_anything gives one answer, which is every such prompt's.
            assert (logits[chosen] - expected[0]).abs().max() < 1e-5
            assert (quality[chosen] - expected[1]).abs().max() < 1e-5
    assert logits.std() > 0.01


def test_one_image_as_segment_anything_calls_it_is_bit_equal() -> None:
    sam = small_sam()
    official = official_twin(sam)
    arguments = {"image_embeddings": torch.randn(1, 32, 8, 8), "image_pe": sam.prompt_encoder.get_dense_pe()}
    with torch.no_grad():
        sparse, dense = encode_prompts(sam, some_prompts("box+point", [0, 0, 0], sam))
        arguments |= {"sparse_prompt_embeddings": sparse, "dense_prompt_embeddings": dense, "multimask_output": True}
        found, expected = sam.mask_decoder(**arguments), official.mask_decoder(**arguments)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_nothing_asked_is_one_answer_an_image() -> None:
    sam = small_sam()
    embedding = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        sparse, dense = encode_prompts(sam, some_prompts("none", [1, 0, 1], sam))
        logits, _ = decode_masks(sam, embedding, some_prompts("none", [1, 0, 1], sam))
    assert sparse.shape == (3, 0, 32) and dense.shape == (3, 32, 8, 8)
    assert torch.allclose(logits[0], logits[2], atol=1e-6) and not torch.allclose(logits[0], logits[1], atol=1e-3)


def test_parts_come_back_in_the_prompts_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samtune.sam.decode.PROMPTS_A_PASS", 2)
    sam, seen = small_sam(), []
    embedding = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = some_prompts("box", [0] * 5, sam)

    def decode(few: Prompts) -> dict[str, torch.Tensor]:
        seen.append(len(few))
        logits, quality = decode_masks(sam, embedding, few)
        return {"final": logits, "quality": quality}

    with torch.no_grad():
        found, (logits, quality) = decode_in_parts(decode, prompts), decode_masks(sam, embedding, prompts)
    assert seen == [2, 2, 1]
    assert torch.allclose(found["final"], logits, atol=1e-5) and torch.allclose(found["quality"], quality, atol=1e-5)


def test_clicks_are_decoded_as_if_each_object_were_alone() -> None:
    sam, embedding = small_sam(), torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    alone = [
        Prompts(torch.zeros(1, dtype=torch.int64)).with_points(
            64 * torch.rand(1, count, 2, generator=generator), torch.ones(1, count, dtype=torch.int64)
        )
        for count in (1, 5, 2, 1, 10)
    ]

    def decode(few: Prompts) -> dict[str, torch.Tensor]:
        return {"final": decode_masks(sam, embedding, few)[0]}

    with torch.no_grad():
        together = decode_in_parts(decode, Prompts.concatenate(alone))["final"]
        expected = torch.cat([decode(one)["final"] for one in alone])
        padded = decode(Prompts.concatenate(alone))["final"]
    assert (together - expected).abs().max() < 1e-5
    assert (padded - expected)[0].abs().max() > 1e-2  # what padding clicks would do


def test_prompts_are_encoded_in_full_precision_whatever_the_decoder_runs_in() -> None:
    encoder = FullPrecisionPromptEncoder(32, (64, 64), (1024, 1024), mask_in_chans=16)
    points = torch.stack([torch.arange(900.0, 916), torch.full((16,), 500.0)], 1)[:, None]
    labels, boxes, masks = torch.ones(16, 1), torch.rand(16, 4) * 1000, torch.randn(16, 1, 256, 256)
    with torch.no_grad():
        expected = *encoder((points, labels), boxes, masks), encoder.get_dense_pe()
        with torch.autocast("cpu", torch.bfloat16):
            found = *encoder((points, labels), boxes, masks), encoder.get_dense_pe()
            rounded = super(FullPrecisionPromptEncoder, encoder).forward((points, labels), boxes, None)[0]
            encoder((points, labels), boxes, masks.bfloat16())  # a draft's logits
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(found[0][:, 0].unique(dim=0)) == 16 > len(rounded[:, 0].unique(dim=0))


def test_gradient_reaches_the_embeddings_of_the_asked_images_alone() -> None:
    sam = small_sam()
    embedding = torch.randn(3, 32, 8, 8, requires_grad=True)
    decode_masks(sam, embedding, some_prompts("box", [2, 0, 2], sam))[0].square().sum().backward()
    assert [bool(gradient.any()) for gradient in embedding.grad] == [True, False, True]
