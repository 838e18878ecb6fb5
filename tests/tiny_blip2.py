"""A random BLIP-2 with a T5, of a few thousand parameters, in the files that transformers writes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
    T5Config,
)

WORDS = ("<pad>", "</s>", "a", "cat", "on", "grass", "red", "<image>")
SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def save_tiny_blip2(folder: Path) -> tuple[Blip2Processor, Blip2ForConditionalGeneration]:
    """Write it to `folder`, and give it."""
    vision = Blip2VisionConfig(**SIZES, image_size=14, patch_size=7)
    qformer = Blip2QFormerConfig(**SIZES, vocab_size=len(WORDS), encoder_hidden_size=8)
    tokens = {"bos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1}
    text = T5Config(
        vocab_size=len(WORDS), d_model=8, d_kv=8, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=1, **tokens
    )
    parts = {"vision_config": vision, "qformer_config": qformer, "text_config": text}
    config = Blip2Config(**{name: part.to_dict() for name, part in parts.items()}, num_query_tokens=2)
    config.image_token_index = WORDS.index("<image>")
    model = Blip2ForConditionalGeneration(config).eval()
    torch.manual_seed(2)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.7)  # as large as this, or every picture has the same words
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    processor = Blip2Processor(BlipImageProcessor(size={"height": 14, "width": 14}), tokenizer, num_query_tokens=2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor, model
