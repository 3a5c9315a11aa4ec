"""Put functions at sites for the length of one run, through torch's own hooks on the submodules.

`tapped(layout, at)` is a context manager: within it every forward pass of the model calls
`at[site](value)` at each site named in `at` and goes on with what the function returns. Nothing of
the model is replaced and everything is removed at the end, also after an error.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.models.adapter import Adapter
from gossamer.models.attention import KEYWORD, NAME, Visit
from gossamer.models.norms import visited_norm

Tap = Callable[[Tensor], Tensor]
"""Called with the value at a site; returns the value to go on with."""


def remember(seen: dict[str, Tensor], site: str) -> Tap:
    """A tap that leaves the value at `site` in `seen` and changes nothing."""

    return partial(_keep, seen, site)


def _keep(seen: dict[str, Tensor], site: str, value: Tensor) -> Tensor:
    seen[site] = value
    return value


@dataclass(frozen=True, slots=True)
class Layout:
    """A model and the table of its family."""

    language_model: Any
    """The Hugging Face causal language model (a transformers PreTrainedModel)."""

    adapter: Adapter
    """Where its sites are."""

    parallel: bool
    """Whether attention and MLP of a block read the same residual stream."""

    @property
    def blocks(self) -> Any:
        """The model's blocks, a torch ModuleList."""
        return self.language_model.get_submodule(self.adapter.blocks)

    def part(self, layer: int, path: str) -> Any:
        """A submodule of one block."""
        return self.blocks[layer].get_submodule(path)


@contextmanager
def weights_constant(layout: Layout) -> Iterator[None]:
    """Within the context no weight asks for a gradient: runs differentiate by activations."""
    parameters = [p for p in layout.language_model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def tapped(layout: Layout, at: Mapping[str, Tap]) -> Iterator[None]:
    """Within the context, the model's forward pass goes through the functions in `at`."""
    config = layout.language_model.config
    previous = config._attn_implementation
    with ExitStack() as stack:
        stack.callback(setattr, config, "_attn_implementation", previous)
        config._attn_implementation = NAME
        stack.enter_context(weights_constant(layout))
        for handle in _tap_ends(layout, at):
            stack.callback(handle.remove)
        for layer in range(len(layout.blocks)):
            prefix = f"blocks.{layer}."
            here = {
                site.removeprefix(prefix): f for site, f in at.items() if site.startswith(prefix)
            }
            for handle in _tap_block(layout, layer, here):
                stack.callback(handle.remove)
        yield


Handles = Iterator[torch.utils.hooks.RemovableHandle]


def _tap_ends(layout: Layout, at: Mapping[str, Tap]) -> Handles:
    """Taps outside the blocks: embeddings and the final norm."""
    adapter, model = layout.adapter, layout.language_model
    if "hook_embed" in at:
        if (
            adapter.position_embedding is None
        ):  # scaled embeddings included: what the first block receives
            yield _on_input(layout.blocks[0], at["hook_embed"])
        else:
            yield _on_output(model.get_submodule(adapter.token_embedding), at["hook_embed"])
    if "hook_pos_embed" in at and adapter.position_embedding is not None:
        yield _on_output(model.get_submodule(adapter.position_embedding), at["hook_pos_embed"])
    yield from _tap_norm(layout, model.get_submodule(adapter.ln_final), "ln_final", at)


def _tap_block(layout: Layout, layer: int, at: Mapping[str, Tap]) -> Handles:
    """Taps inside one block, `at` keyed by kind of site.

    Taps on one module run in the order they are put on here, which is the forward order.
    """
    adapter, block = layout.adapter, layout.blocks[layer]
    attention_writer = block.get_submodule(adapter.ln1_post or adapter.attention.module)
    if "hook_resid_pre" in at:
        yield _on_input(block, at["hook_resid_pre"])
    norms = {
        "ln1": adapter.ln1,
        "ln1_post": adapter.ln1_post,
        "ln2": adapter.ln2,
        "ln2_post": adapter.ln2_post,
    }
    for name, path in norms.items():
        if path is not None:
            yield from _tap_norm(layout, block.get_submodule(path), name, at)
    yield from _tap_attention(layout, block, at)
    if "hook_attn_out" in at:
        yield _on_output(attention_writer, at["hook_attn_out"])
    if "hook_resid_mid" in at:
        yield from _tap_resid_mid(block, attention_writer, at["hook_resid_mid"])
    sides = (
        (_on_input, adapter.mlp.module, "mlp.hook_in"),
        (_on_output, adapter.mlp.pre, "mlp.hook_pre"),
        (_on_output, adapter.mlp.pre_linear, "mlp.hook_pre_linear"),
        (_on_input, adapter.mlp.down, "mlp.hook_post"),
        (_on_output, adapter.ln2_post or adapter.mlp.module, "hook_mlp_out"),
    )
    for side, path, kind in sides:
        if path is not None and kind in at:
            yield side(block.get_submodule(path), at[kind])
    if "hook_resid_post" in at:
        yield _on_output(block, at["hook_resid_post"])


def _tap_resid_mid(block: nn.Module, attention_writer: nn.Module, tap: Tap) -> Handles:
    """The sum after attention. It has no module of its own: the change is added to what attention
    writes.

    `mid` and its view are distinct, so a gradient with respect to the view counts every path once,
    and an unchanged value leaves the sum exactly as it was.
    """
    received: list[Tensor] = []

    def remember(_module, args, kwargs) -> None:
        received[:] = [args[0] if args else kwargs["hidden_states"]]

    def change(_module, _args, output):
        written = output[0] if isinstance(output, tuple) else output
        mid = written + received.pop()
        changed = written + (tap(mid.view_as(mid)) - mid)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    yield block.register_forward_pre_hook(remember, with_kwargs=True)
    yield attention_writer.register_forward_hook(change)


def _tap_attention(layout: Layout, block: nn.Module, at: Mapping[str, Tap]) -> Handles:
    """Taps inside attention: projections by hooks, the rest through our attention function."""
    paths = layout.adapter.attention
    inside = {kind: tap for kind, tap in at.items() if kind.startswith("attn.hook_")}
    for name, path in (("attn.q_norm", paths.q_norm), ("attn.k_norm", paths.k_norm)):
        if path is not None:
            norm_at = _heads_first(at) if paths.norms_heads_first else at
            yield from _tap_norm(layout, block.get_submodule(path), name, norm_at)
    projected = {
        kind: inside.pop(kind) for kind in ("attn.hook_q", "attn.hook_k") if kind in inside
    }
    if not paths.rotary:  # what the projection gives is what meets the keys
        for kind, tap in projected.items():
            inside[kind.replace("hook_", "hook_rot_")] = tap
    else:
        yield from _tap_projections(layout, block, projected)
    if inside:

        def visit(kind: str, value: Tensor) -> Tensor:
            return inside[kind](value) if kind in inside else value

        def pass_on(_module, args, kwargs):
            return args, {**kwargs, KEYWORD: visit}

        yield block.get_submodule(paths.module).register_forward_pre_hook(pass_on, with_kwargs=True)


def _tap_projections(layout: Layout, block: Any, at: Mapping[str, Tap]) -> Handles:
    """Query and key as projected, before norm and rotation."""
    paths = layout.adapter.attention
    if paths.fused is not None:  # by head, in a rotary family
        if at:
            yield _on_fused(layout, block.get_submodule(paths.fused), at)
        return
    for kind, path in (("attn.hook_q", paths.query), ("attn.hook_k", paths.key)):
        if kind in at and path is not None:
            d_head = block.get_submodule(paths.module).head_dim
            yield _on_output(block.get_submodule(path), _by_head(at[kind], d_head))


def _on_fused(
    layout: Layout, projection: nn.Module, at: Mapping[str, Tap]
) -> torch.utils.hooks.RemovableHandle:
    """Query and key of a projection laid out head by head as (query, key, value)."""
    n_heads = layout.language_model.config.num_attention_heads

    def change(_module, _args, output: Tensor) -> Tensor:
        parts = list(output.unflatten(-1, (n_heads, 3, -1)).unbind(-2))
        for i, kind in enumerate(("attn.hook_q", "attn.hook_k")):
            parts[i] = at[kind](parts[i]) if kind in at else parts[i]
        return torch.stack(parts, -2).flatten(-3)

    return projection.register_forward_hook(change)


def _tap_norm(layout: Layout, module: nn.Module, name: str, at: Mapping[str, Tap]) -> Handles:
    """Scale and normalised value of a norm.

    A float64 model always takes this path: transformers' RMSNorms round through float32.
    """
    taps = {
        kind: at[f"{name}.{kind}"]
        for kind in ("hook_scale", "hook_normalized")
        if f"{name}.{kind}" in at
    }
    if not taps and module.weight.dtype != torch.float64:
        return

    visit = partial(_visit, taps)
    yield module.register_forward_hook(partial(_recompute, layout.adapter.gain_offset, visit))


def _visit(taps: Mapping[str, Tap], kind: str, value: Tensor) -> Tensor:
    return taps[kind](value) if kind in taps else value


def _recompute(offset: float, visit: Visit, module: nn.Module, args: Any, _output: Any) -> Tensor:
    return visited_norm(module, args[0], offset, visit)


def _heads_first(at: Mapping[str, Tap]) -> dict[str, Tap]:
    """The taps seen from where heads come before positions."""

    def turned(tap: Tap) -> Tap:
        return lambda value: tap(value.transpose(1, 2)).transpose(1, 2)

    return {kind: turned(tap) for kind, tap in at.items()}


def _by_head(tap: Tap, d_head: int) -> Tap:
    """The tap seen from a projection whose heads lie side by side."""
    return lambda value: tap(value.unflatten(-1, (-1, d_head))).flatten(-2)


def _on_input(module: nn.Module, tap: Tap) -> torch.utils.hooks.RemovableHandle:
    """Tap the hidden states a module receives."""

    return module.register_forward_pre_hook(partial(_changed_input, tap), with_kwargs=True)


def _changed_input(tap: Tap, _module: nn.Module, args: Any, kwargs: Any) -> Any:
    if args:
        return (tap(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": tap(kwargs["hidden_states"])}


def _on_output(module: nn.Module, tap: Tap) -> torch.utils.hooks.RemovableHandle:
    """Tap what a module gives, or the first item of it."""

    return module.register_forward_hook(partial(_changed_output, tap))


def _changed_output(tap: Tap, _module: nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (tap(output[0]), *output[1:])
    return tap(output)
