"""The next token's logits while a text grows, with SAEs and edits: two ways, the same numbers.

`rerun` runs all the text so far at every step: the meaning of everything here. `continued` keeps
the keys and values of earlier tokens and runs the new one alone. It equals `rerun` where what a
token is given does not change as the text grows: `can_continue` says where.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gossamer.edits import (
    PATTERNS,
    Ablate,
    AbstractEdit,
    Detach,
    Patch,
    Scale,
    Set,
    Steer,
    chosen_indices,
    edited_writers,
    indices_of,
    resolved,
)
from gossamer.errors import PromptError, ShapeError, SiteError
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.saes.sae import SparseCoder
from gossamer.sites import parse_site
from gossamer.splice import Plan, run_batch

Step = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch d_vocab"]]
"""Given all tokens so far, the logits of the next one."""

_SEE_KEYS = ("attn.hook_k", "attn.hook_rot_k", "attn.hook_v", *PATTERNS)
"""Sites whose values may run over every token so far, not the new one alone: between the cache of
keys and values and the sum over them."""


def rerun(model: Model, saes: Mapping[str, SparseCoder], plan: Plan) -> Step:
    """Each step runs the whole text."""

    def step(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
        edits = tuple(_so_far(edit, tokens.shape[1]) for edit in plan.edits)
        return _last_logits(model, tokens, saes, replace(plan, edits=edits))

    return step


def continued(model: Model, saes: Mapping[str, SparseCoder], plan: Plan) -> Step:
    """The first step runs the prompt, each later one the new token alone."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.language_model.config)
    n_seen = 0

    def step(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
        nonlocal n_seen
        length = tokens.shape[1]
        if n_seen == 0:
            edits = tuple(_so_far(edit, length) for edit in plan.edits)
        else:
            edits = tuple(
                replace(edit, positions=None)
                for edit in plan.edits
                if edit.positions is None or length - 1 in indices_of(edit.positions)
            )
        with _after(model, cache, n_seen):
            logits = _last_logits(model, tokens[:, n_seen:], saes, replace(plan, edits=edits))
        n_seen = length
        return logits

    return step


def can_continue(model: Model, saes: Mapping[str, SparseCoder], plan: Plan) -> bool:
    """Whether what earlier tokens were given stays right as the text grows."""
    sites = {edit.at for edit in plan.edits}
    sites |= {site for sae in saes.values() for site in (sae.site_in, sae.site_out)}
    known = Ablate | Set | Scale | Steer | Patch | Detach
    return (
        plan.error != "frozen"  # which takes the clean run of the whole text
        and not any(parse_site(site).kind in _SEE_KEYS for site in sites)
        and all(isinstance(edit, known) for edit in plan.edits)
        and not any(p < 0 for edit in plan.edits for p in indices_of(edit.positions))
        and not _rotates_by_length(model)
    )


def needed(
    saes: Mapping[str, SparseCoder], edits: Sequence[AbstractEdit], error: str
) -> dict[str, SparseCoder]:
    """The SAEs that can change a number: with its error recomputed, one whose latents and error
    nobody edits writes exactly what it finds."""
    edited = edited_writers(edits, saes)
    if error not in ("attached", "detached") or not edited <= saes.keys():
        return dict(saes)  # where an edit finds no SAE, the run says which there are
    return {site: sae for site, sae in saes.items() if site in edited}


def for_rows(edit: AbstractEdit, rows: Sequence[int]) -> AbstractEdit:
    """The edit as seen by a batch of some of the prompts."""
    if edit.prompts is None:
        return edit
    chosen = [edit.prompts] if isinstance(edit.prompts, int) else list(edit.prompts)
    return replace(edit, prompts=[i for i, row in enumerate(rows) if row in chosen])


def check_edits(edits: Sequence[AbstractEdit], lengths: Sequence[int], n_tokens: int) -> None:
    """Refuse what has no meaning while a text grows: positions that never come, values that belong
    to the positions of another run."""
    for edit in edits:
        rows = range(len(lengths))
        if edit.prompts is not None:
            rows = chosen_indices(edit.prompts, len(lengths), "prompt of this batch")
        for name in ("positions", "keys"):
            named = getattr(edit, name)
            if not isinstance(named, int | Sequence | None):
                raise PromptError(
                    f"{name} of an edit are a number, several, or None for all, got "
                    f"{named!r}. A range is written range(3, 9)."
                )
            for row in rows:
                _check_comes(indices_of(named), row, lengths[row], n_tokens)
        if edit.keys is not None and edit.positions is not None:
            for row in rows:
                _check_seen(edit, row, lengths[row], n_tokens)
        _check_value(edit)


def _check_comes(positions: Sequence[int], row: int, length: int, n_tokens: int) -> None:
    last = length + n_tokens - 2  # the last new token is not run
    for position in positions:
        if not -length <= position <= last:
            raise PromptError(
                f"Position {position} never comes: prompt {row} has {length} tokens, "
                f"and with {n_tokens} new ones positions 0..{last} are run "
                f"(negative from the current end, down to -{length})."
            )


def _check_seen(edit: AbstractEdit, row: int, length: int, n_tokens: int) -> None:
    """Refuse a key after its query now, not at the step at which both are there."""
    for now in range(length, length + n_tokens):
        queries, keys = (
            [p % now if p < 0 else p for p in indices_of(named) if p < now]
            for named in (edit.positions, edit.keys)
        )
        if queries and keys and max(keys) > min(queries):
            raise PromptError(
                f"Key {max(keys)} lies after query {min(queries)} when prompt {row} has grown to "
                f"{now} tokens; name keys up to each query, or leave positions out for every query "
                "that sees the key."
            )


def _check_value(edit: AbstractEdit) -> None:
    """A value is one for every token the edit acts on."""
    is_paired = isinstance(edit, Patch) and edit.from_positions is not None
    shape = _given_shape(edit)
    of_tokens = shape[: max(len(shape) - _n_axes(edit), 0)]
    is_trace = isinstance(edit, Patch) and not isinstance(edit.source, Tensor) and len(of_tokens)
    if is_paired or is_trace or any(size != 1 for size in of_tokens):
        where = "errors" if edit.part else "activations" if edit.latents is None else "latents"
        raise ShapeError(
            f"{type(edit).__name__} at {edit.at} has values of shape {shape}, one for each prompt "
            "or position, but a text grows. Give one value for all tokens the edit acts on, such "
            f'as Set("{edit.at}", trace.{where}["{edit.at}"][0, 3], positions=3).'
        )


def _n_axes(edit: AbstractEdit) -> int:
    """Axes of one token's value: what comes after batch and position."""
    kind = parse_site(edit.at).kind
    is_coordinate = edit.along is not None and not isinstance(edit, Patch)
    if edit.part is not None or is_coordinate or not kind.startswith("attn.hook_"):
        return 1
    if edit.latents is not None and edit.units is None:
        return 1
    return 0 if kind in PATTERNS else 2


def _given_shape(edit: AbstractEdit) -> tuple[int, ...]:
    """Shape of what an edit puts in; of a trace to patch from, its value at the site."""
    match edit:
        case Set():
            given: Any = edit.value
        case Steer():
            given = edit.direction
        case Patch(source=Tensor() as source):
            given = source
        case Patch():
            given = 0.0  # that it lacks the site is said when the edit is made
            for written in ((), (edit.at,)):  # an id's number is a latent only where SAEs write
                one = resolved([edit], written)[0]
                with suppress(SiteError):
                    given = one.recorded() if isinstance(one, Patch) else given
        case _:
            given = 0.0
    return tuple(torch.as_tensor(given).shape)


def _so_far(edit: AbstractEdit, length: int) -> AbstractEdit:
    """The edit at those of its positions and keys that have come."""
    come = {
        name: [p for p in indices_of(named) if p < length]
        for name in ("positions", "keys")
        if (named := getattr(edit, name)) is not None
    }
    return replace(edit, **come)


def _last_logits(
    model: Model, tokens: Int[Tensor, "batch pos"], saes: Mapping[str, SparseCoder], plan: Plan
) -> Float[Tensor, "batch d_vocab"]:
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    with torch.no_grad():
        logits = run_batch(model, batch, saes, plan).logits
    assert logits is not None  # the plan runs to the end
    return logits[:, -1]


@contextmanager
def _after(model: Model, cache: Any, n_seen: int) -> Iterator[None]:
    """Within the context the model runs after the tokens in `cache`, and adds to it."""

    parameters = inspect.signature(model.language_model.forward).parameters
    # transformers renamed it on the way from 5.0 to 5.24
    name = "cache" if "cache" in parameters else "past_key_values"

    def extend(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        tokens = kwargs["input_ids"]
        n_batch, n_new = tokens.shape
        positions = torch.arange(n_seen, n_seen + n_new, device=tokens.device)
        after = {
            "attention_mask": tokens.new_ones(n_batch, n_seen + n_new),
            "position_ids": positions.expand(n_batch, n_new),
            name: cache,
            "use_cache": True,
        }
        return args, kwargs | after

    handle = model.language_model.register_forward_pre_hook(extend, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _rotates_by_length(model: Model) -> bool:
    """Whether rotary frequencies depend on how long the text is, so that earlier keys change."""
    kinds = [str(getattr(m, "rope_type", "")) for m in model.language_model.modules()]
    return any("dynamic" in kind or "longrope" in kind for kind in kinds)
