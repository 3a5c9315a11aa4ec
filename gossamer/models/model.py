"""`Model`: an unmodified Hugging Face causal language model with named sites.

`forward` is the one primitive: run the model with a function at each of some sites, and stop right
after the last site that is needed. Recording, editing and splicing are functions put there by other
modules.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gossamer.errors import GossamerError, SiteError
from gossamer.models.adapter import Adapter
from gossamer.models.attention import register_attention
from gossamer.models.families import adapter_for
from gossamer.models.prompts import (
    Prompt,
    TokenBatch,
    as_prompts,
    bos_token,
    check_prompt,
    pad,
    single_token,
    tokenize,
)
from gossamer.models.taps import Layout, Tap, tapped
from gossamer.sites import BLOCK_KINDS, parse_site, unknown_site

_PER_HEAD = (
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_z",
)
HOLDABLE = ("attention", "norms")
"""What `Model.held_sites` knows to hold constant."""


class _Stop(Exception):
    """Raised inside a forward pass when every site asked for has been seen."""


class Model:
    """A causal language model of a supported family, its tokenizer if there is one, and its sites.

    A run puts hooks on the model's modules, so one thread at a time uses a model."""

    def __init__(self, language_model: Any, tokenizer: Any = None, name: str | None = None) -> None:
        config = language_model.config
        adapter = adapter_for(config.model_type)
        parallel = adapter.parallel_flag is not None and bool(
            getattr(config, adapter.parallel_flag)
        )
        register_attention()
        language_model.eval()
        self.language_model = language_model
        self.tokenizer = tokenizer
        self.name = name or config.name_or_path or config.model_type
        self.layout = Layout(language_model, adapter, parallel)
        self.sites = tuple(_sites(adapter, len(self.layout.blocks), parallel))

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.n_layers} blocks, d_model {self.d_model}, {self.dtype})"

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layout.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.language_model.config.hidden_size

    @property
    def d_vocab(self) -> int:
        """Number of tokens the model scores."""
        return self.language_model.get_output_embeddings().weight.shape[0]

    @property
    def context_length(self) -> int:
        """The longest prompt, in tokens."""
        return self.language_model.config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language_model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.language_model.get_input_embeddings().weight.dtype

    def check_site(self, site: str) -> None:
        """SiteError, with near names, unless this model has the site."""
        if site in self.sites:
            return
        layer = _layer_of(site)
        if layer is not None and layer >= self.n_layers:
            raise SiteError(
                f'No site "{site}": {self.name} has blocks 0..{self.n_layers - 1}. '
                "Choose one of these."
            )
        raise unknown_site(site, list(self.sites))

    def width(self, site: str) -> int:
        """Width of what an SAE at `site` reads or writes: the trailing axes flattened."""
        self.check_site(site)
        kind = parse_site(site).kind
        config = self.language_model.config
        if kind in _PER_HEAD:
            d_head = getattr(config, "head_dim", None) or self.d_model // config.num_attention_heads
            queries = kind in ("attn.hook_q", "attn.hook_rot_q", "attn.hook_z")
            n_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
            return d_head * (config.num_attention_heads if queries else n_kv_heads)
        if kind in ("mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post"):
            down = self.layout.part(0, self.layout.adapter.mlp.down)
            return down.in_features if isinstance(down, nn.Linear) else down.weight.shape[0]
        if kind in ("attn.hook_attn_scores", "attn.hook_pattern") or kind.endswith("hook_scale"):
            raise SiteError(f'"{site}" has no fixed width, so no SAE can stand there.')
        return self.d_vocab if kind == "logits" else self.d_model

    def held_sites(
        self, hold: Sequence[str], holdable: Sequence[str] = HOLDABLE
    ) -> tuple[str, ...]:
        """The sites to detach so that "attention" (patterns) or "norms" (every scale) stay
        constant. GossamerError, naming what is `holdable` for the caller, for anything else."""
        unknown = [name for name in hold if name not in HOLDABLE]
        if unknown:
            raise GossamerError(
                f"Cannot hold {unknown[0]!r}. hold takes any of: {', '.join(holdable)}."
            )
        endings = {"attention": "attn.hook_pattern", "norms": "hook_scale"}
        return tuple(s for s in self.sites if any(s.endswith(endings[name]) for name in hold))

    def tokenize(self, prompt: Prompt, prepend_bos: bool | None = None) -> list[int]:
        """Token ids of one text or one chat; ids are returned as they are.

        `prepend_bos` None means the family's rule: `<|endoftext|>` for GPT-2 and GPT-NeoX, what the
        tokenizer adds for Llama, Mistral and Gemma, nothing for Qwen.
        """
        bos = None
        if isinstance(prompt, str):
            bos = bos_token(self.tokenizer, self.layout.adapter.bos, prepend_bos)
        return tokenize(self.tokenizer, prompt, bos)

    def token_strings(self, text_or_ids: Prompt) -> list[str]:
        """Each token of a prompt as text. Without a tokenizer, the ids as text."""
        ids = self.tokenize(text_or_ids)
        if self.tokenizer is None:
            return [f"<{token}>" for token in ids]
        return [self.tokenizer.decode([token]) for token in ids]

    def token_id(self, token: str | int) -> int:
        """The id of a string that is exactly one token. PromptError shows its pieces otherwise."""
        return single_token(self.tokenizer, token, self.d_vocab)

    def batch(
        self, prompts: Any, *, prepend_bos: bool | None = None, side: str = "right"
    ) -> TokenBatch:
        """One or many prompts, checked, padded on one `side` and moved to the model's device."""
        sequences = [self.tokenize(prompt, prepend_bos) for prompt in as_prompts(prompts)]
        for ids in sequences:
            check_prompt(ids, self.context_length, self.d_vocab)
        tokens, mask = pad(sequences, side=side)
        return TokenBatch(tokens.to(self.device), mask.to(self.device))

    def forward(
        self, batch: TokenBatch, at: Mapping[str, Tap], *, to_the_end: bool = True
    ) -> Float[Tensor, "batch pos d_vocab"] | None:
        """Run the model; `at[site]` is called with the value at each site and returns the one to go
        on with.

        Returns the logits, or None when `to_the_end` is False and the run stopped after the last
        site of `at`. Gradients flow through everything; wrap the call in torch.no_grad() or
        inference_mode() to save memory.
        """
        for site in at:
            self.check_site(site)
        pending = set(at)
        stops = not to_the_end and "logits" not in at
        if stops and not pending:
            raise GossamerError("A run needs a site to stop at, or to_the_end=True.")

        # Partial functions: a function made here anew for each site would cost each run more.
        inside: dict[str, Tap] = {
            site: partial(_visited, site, tap, pending, stops)
            for site, tap in at.items()
            if site != "logits"
        }
        with tapped(self.layout, inside):
            try:
                output = self.language_model(
                    input_ids=batch.tokens,
                    attention_mask=batch.mask.long(),
                    position_ids=batch.positions,
                    use_cache=False,
                )
            except _Stop:
                return None
        tap: Callable[[Tensor], Tensor] | None = at.get("logits")
        return output.logits if tap is None else tap(output.logits)


def _visited(  # noqa: PLR0917  all but the value are fixed when the run begins
    site: str, tap: Tap, pending: set[str], stops: bool, value: Tensor
) -> Tensor:
    """Call a tap, and end the run after the last one."""
    value = tap(value)
    pending.discard(site)
    if stops and not pending:
        raise _Stop
    return value


def _layer_of(site: str) -> int | None:
    try:
        return parse_site(site).layer
    except SiteError:
        return None


def _sites(adapter: Adapter, n_layers: int, parallel: bool) -> list[str]:
    """Every site this family offers exactly, in forward order."""
    attention, mlp = adapter.attention, adapter.mlp
    absent = {
        "hook_resid_mid": parallel,
        "attn.hook_rot_q": not attention.rotary,
        "attn.hook_rot_k": not attention.rotary,
        "attn.q_norm.hook_scale": attention.q_norm is None,
        "attn.k_norm.hook_scale": attention.k_norm is None,
        "ln1_post.hook_scale": adapter.ln1_post is None,
        "ln2_post.hook_scale": adapter.ln2_post is None,
        "mlp.hook_pre_linear": mlp.pre_linear is None,
    }
    kinds = [kind for kind in BLOCK_KINDS if not absent.get(kind, False)]
    before = (
        ["hook_embed"] if adapter.position_embedding is None else ["hook_embed", "hook_pos_embed"]
    )
    blocks = [f"blocks.{layer}.{kind}" for layer in range(n_layers) for kind in kinds]
    return [*before, *blocks, "ln_final.hook_scale", "ln_final.hook_normalized", "logits"]
