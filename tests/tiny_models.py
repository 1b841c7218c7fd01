"""Small models and tokenizers for tests: random weights, real vocabularies.

Libraries are loaded late: conftest.py imports this file for tests that need none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import (
        LlamaForCausalLM,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
        T5ForConditionalGeneration,
    )

    from policy.language_model import LanguageModel

QUICKSTART = Path(__file__).parent.parent / "assets" / "quickstart_base"
CHAT_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def quickstart_tokenizer() -> PreTrainedTokenizerBase:
    """Word-level, with its template."""
    from policy.encoding import set_template
    from policy.language_model import load_tokenizer

    tokenizer = load_tokenizer(QUICKSTART)
    set_template(tokenizer, "quickstart")
    return tokenizer


def byte_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges across spaces and newlines, so that a text and its pieces tokenize differently."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["Human: why\n\nAssistant: because", "User: why\n\nAssistant: yes", "why\n\nbecause\n\n### Response:yes"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=CHAT_MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "padding_side": "left"} | settings
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def tiny_llama(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> LlamaForCausalLM:
    """Two layers of width 32; weights large enough that its distributions are far from uniform and from each other."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**shape | settings)).eval()


def tiny_t5(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> T5ForConditionalGeneration:
    """Two layers of width 32 on either side, without dropout."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "initializer_factor": 1.0,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return T5ForConditionalGeneration(T5Config(**shape | settings)).eval()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's directory; do not write there."""
    from policy.language_model import save_checkpoint

    directory = tmp_path_factory.mktemp("models") / "tiny_base"
    tokenizer = quickstart_tokenizer()
    save_checkpoint(tiny_llama(tokenizer), tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_base: Path) -> LanguageModel:
    """The same, loaded; load your own to change it."""
    import torch

    from policy.language_model import load_language_model

    return load_language_model(tiny_base, torch.device("cpu"))
