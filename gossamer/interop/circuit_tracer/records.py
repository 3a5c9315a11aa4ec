"""What a circuit-tracer graph is made of, and stand-ins for the classes that its files name.

input_tokens         n_tokens           adjacency_matrix   (N, N): rows are targets
active_features      (A, 3): layer, position, latent       activation_values  A
selected_features    F: those of the A that are nodes      logit_targets      K of (text, token)
logit_probabilities  K                  cfg, vocab_size, input_string, scan

N = F latents, n_layers · n_tokens errors, n_tokens tokens, K logits, in this order
"""

from typing import NamedTuple

CONFIG_FIELDS = {
    "n_layers": 0,
    "d_model": 0,
    "d_head": 0,
    "n_heads": 0,
    "d_mlp": 0,
    "d_vocab": 0,
    "tokenizer_name": "",
    "model_name": "",
    "original_architecture": "",
    "n_key_value_heads": None,
    "dtype": None,
}
"""What circuit-tracer keeps of a model's settings, and what stands there when it is not known."""

KEYS = (
    "input_tokens",
    "adjacency_matrix",
    "active_features",
    "activation_values",
    "selected_features",
    "logit_probabilities",
    "logit_targets",
    "input_string",
    "cfg",
)
"""What a graph must have, tensors first; `vocab_size` and `scan` may be missing."""


class Target(NamedTuple):
    """Stands in for circuit-tracer's LogitTarget."""

    token_str: str
    """The token's text."""

    vocab_idx: int
    """The token, or the size of the vocabulary and more for a direction that is none."""


class Settings:
    """Stands in for the settings of a model: whatever attributes the file gives it."""


STAND_INS = (
    (Target, "circuit_tracer.attribution.targets", "LogitTarget"),
    (Settings, "circuit_tracer.utils.tl_nnsight_mapping", "UnifiedConfig"),
    (Settings, "transformer_lens.HookedTransformerConfig", "HookedTransformerConfig"),
)
"""Class here, module and class there: all that such files name besides tensors and plain values.
Files are written with the first name of a class."""
