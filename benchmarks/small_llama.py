"""The shape and the tokenizer of the shipped language model `sums_llama`: `python benchmarks/small_llama.py FOLDER`.

A Llama of 1.3 million parameters whose tokens are bytes, in the form of transformers. `superlora train
recipes/pretrain_sums_llama.yaml` gives it its weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

END, PAD = "<|end|>", "<|pad|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token n is the byte n; 256 ends a text, 257 fills a sequence."""
    whole = Tokenizer(BPE(vocab={letter: byte for byte, letter in bytes_to_unicode().items()}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False, model_max_length=512
    )


def configuration() -> LlamaConfig:
    """Six layers of width 128, four heads."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=258,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=257,
        tie_word_embeddings=False,
        dtype="float32",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    byte_tokenizer().save_pretrained(folder)
    configuration().save_pretrained(folder)
