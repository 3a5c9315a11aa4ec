"""Directories as users have them: a tiny model with its tokenizer, and SAEs for it."""

from pathlib import Path

import torch

from tests.test_prompts import tiny_tokenizer
from tests.tiny_models import tiny_language_model
from tests.tiny_saes import tiny_sae

FIRST, LAST = "blocks.0.hook_resid_pre", "blocks.2.hook_resid_post"


def save_model(directory: Path, family: str = "gpt2") -> Path:
    """config.json, model.safetensors and a tokenizer of a handful of words."""
    tiny_language_model(family, torch.float32).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def save_saes(directory: Path) -> Path:
    """One folder for each of two SAEs of 16 wide."""
    for seed, site in enumerate((FIRST, LAST)):
        tiny_sae("topk", site, 16, seed=seed, dtype=torch.float32).save(directory / site)
    return directory
