"""The batched mask decoder against segment_anything's own, image by image."""

import pytest
import torch

from samtune.prompts import Prompts
from samtune.sam.decode import decode_in_parts, decode_masks, encode_prompts
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


def test_gradient_reaches_the_embeddings_of_the_asked_images_alone() -> None:
    sam = small_sam()
    embedding = torch.randn(3, 32, 8, 8, requires_grad=True)
    decode_masks(sam, embedding, some_prompts("box", [2, 0, 2], sam))[0].square().sum().backward()
    assert [bool(gradient.any()) for gradient in embedding.grad] == [True, False, True]
