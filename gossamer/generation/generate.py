"""`generate`: let a model go on with a text, with SAEs spliced in and edits at every new token.

At every step the text so far is run as `run` runs it, with the same edits:

    positions=None     every token, of the prompt and new
    positions=7        that token of the growing text, from the step at which it is there
    positions=-1       counted from the current end: at every step the newest token, and it alone
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gossamer.edits import AbstractEdit
from gossamer.errors import GossamerError, PromptError
from gossamer.generation.result import N_TOP, Generation, NewToken, new_text
from gossamer.generation.sampling import Sampling, Stop, as_stop, seeds_of
from gossamer.generation.steps import (
    Step,
    can_continue,
    check_edits,
    continued,
    for_rows,
    needed,
    rerun,
)
from gossamer.models.model import Model
from gossamer.models.prompts import are_many, as_prompts, check_prompt
from gossamer.saes.sae import SparseCoder
from gossamer.splice import ErrorMode, Plan, as_saes, check_saes, chosen_bos


def generate(  # noqa: PLR0913, PLR0917  the public face, fixed by the design
    model: Model,
    prompt: Any,
    saes: Any = None,
    edits: AbstractEdit | Sequence[AbstractEdit] = (),
    n_tokens: int = 40,
    *,
    error: ErrorMode = "attached",
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    stop: str | int | Sequence[str | int] | None = None,
    prepend_bos: bool | None = None,
    compare: bool = True,
    on_token: Callable[[NewToken], object] | None = None,
) -> Generation | list[Generation]:
    """Go on with `prompt` for `n_tokens` tokens, and once more without SAEs and edits beside it.

    Args:
        model: what to run.
        prompt: a text, token ids or chat messages → a Generation; a list of these → a list, each
            as if it were alone.
        saes: None, an SAE, several, or a mapping.
        edits: changes, one or several, made at every step; see the top of this module. A value
            they put in is one for all tokens they act on.
        n_tokens: how many, less where `stop` ends the text.
        error: what the splice adds to the reconstruction, as in `run`.
        temperature: 0 takes the likeliest token; see `sampling.py` for this and the next two.
        top_k: how many tokens may be drawn; None: all.
        top_p: how much probability they have together; None: all.
        seed: of the draws, the same in the unedited run; one for each prompt to draw several texts
            of one prompt.
        stop: texts or token ids that end the text and belong to it; None: the model's own
            end-of-sequence tokens; (): nothing.
        prepend_bos: overrides the family's rule for texts.
        compare: whether to run without SAEs and edits as well, where there are any.
        on_token: called with each token as it comes, prompts of one length taking turns.

    Earlier tokens' keys and values are kept where that changes nothing. Where it would (negative
    positions, frozen errors, edits that see all keys) every step runs the whole text.
    """
    coders = as_saes(saes)
    check_saes(model, coders)
    members = as_prompts(prompt)
    bos = chosen_bos(prepend_bos, coders.values(), members)
    prompts = [model.tokenize(member, bos) for member in members]
    _check_lengths(model, prompts, n_tokens)
    changes = (edits,) if isinstance(edits, AbstractEdit) else tuple(edits)
    plan = Plan(edits=changes, error=error)
    check_edits(changes, [len(ids) for ids in prompts], n_tokens)
    request = _Request(
        prompts,
        n_tokens,
        Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        seeds_of(seed, len(prompts)),
        as_stop(model, stop),
        on_token,
    )
    found = _generate(model, coders, plan, request)
    if compare and (coders or changes):
        unedited = replace(request, edited=False)
        others = _generate(model, {}, Plan(), unedited)
        found = [replace(one, unedited=other) for one, other in zip(found, others, strict=True)]
    return found if are_many(prompt) else found[0]


@dataclass(frozen=True, slots=True)
class _Request:
    """What goes on, and how."""

    prompts: list[list[int]]
    n_tokens: int
    sampling: Sampling
    seeds: list[int]
    stop: Stop
    on_token: Callable[[NewToken], object] | None
    edited: bool = True


class _Chosen(NamedTuple):
    """One step of a batch: the tokens taken, their probabilities, and the likeliest ones."""

    ids: Int[Tensor, " batch"]
    probabilities: Float[Tensor, " batch"]
    top_ids: Int[Tensor, "batch n_top"]
    top_probabilities: Float[Tensor, "batch n_top"]


def _check_lengths(model: Model, prompts: Sequence[list[int]], n_tokens: int) -> None:
    """Refuse what the model's context does not hold."""
    if not isinstance(n_tokens, int) or n_tokens < 1:
        raise GossamerError(f"n_tokens is a whole number from 1 on, got {n_tokens}.")
    for ids in prompts:
        check_prompt(ids, model.context_length, model.d_vocab)
        if len(ids) + n_tokens > model.context_length:
            raise PromptError(
                f"The prompt has {len(ids)} tokens, and with {n_tokens} new ones that is more than "
                f"the model's context of {model.context_length}. Shorten the prompt, or ask for at "
                f"most {model.context_length - len(ids)}."
            )


def _generate(
    model: Model,
    saes: Mapping[str, SparseCoder],
    plan: Plan,
    request: _Request,
) -> list[Generation]:
    """Prompts of one length go on side by side: nothing is padded."""
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, ids in enumerate(request.prompts):
        rows_of[len(ids)].append(row)
    saes = needed(saes, plan.edits, plan.error)
    found: dict[int, Generation] = {}
    for rows in rows_of.values():
        here = replace(plan, edits=tuple(for_rows(edit, rows) for edit in plan.edits))
        way = continued if can_continue(model, saes, here) else rerun
        batch = {row: request.prompts[row] for row in rows}
        found |= _grow(model, batch, way(model, saes, here), request)
    return [found[row] for row in range(len(request.prompts))]


def _grow(
    model: Model, prompts: Mapping[int, list[int]], step: Step, request: _Request
) -> dict[int, Generation]:
    """Tokens one after the other for a batch of prompts of one length, by row."""
    generators = [torch.Generator().manual_seed(request.seeds[row]) for row in prompts]
    tokens = torch.tensor(list(prompts.values()), device=model.device)
    new: dict[int, list[int]] = {row: [] for row in prompts}
    going = set(prompts)
    steps: list[_Chosen] = []
    while going and len(steps) < request.n_tokens:
        chosen = _choose(step(tokens), request.sampling, generators)
        steps.append(chosen)
        tokens = torch.cat([tokens, chosen.ids[:, None].to(tokens.device)], -1)
        for i, row in enumerate(prompts):
            if row not in going:
                continue
            token, probability = int(chosen.ids[i]), chosen.probabilities[i].item()
            _check_number(probability, len(new[row]))
            new[row].append(token)
            if request.on_token is not None:
                text = model.token_strings([token])[0]
                request.on_token(NewToken(row, token, text, probability, request.edited))
            if request.stop.ends(model, new[row]):
                going.remove(row)
    return {
        row: _result(model, ids, new[row], [_Chosen(*(x[i] for x in chosen)) for chosen in steps])
        for i, (row, ids) in enumerate(prompts.items())
    }


def _choose(
    logits: Float[Tensor, "batch d_vocab"],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> _Chosen:
    """The next tokens, on the CPU and in float64, so that a seed means the same everywhere."""
    logits = logits.cpu().double()
    ids = sampling.choose(logits, generators)
    probabilities = logits.softmax(-1)
    top = probabilities.topk(min(N_TOP, probabilities.shape[-1]))
    return _Chosen(ids, probabilities.gather(-1, ids[:, None])[:, 0], top.indices, top.values)


def _check_number(probability: float, n_before: int) -> None:
    if not math.isfinite(probability):
        raise GossamerError(
            f"The model gave no finite probabilities after {n_before} new tokens. "
            "Make the edits smaller, or run the model in float32."
        )


def _result(
    model: Model, prompt_ids: list[int], new_ids: list[int], steps: Sequence[_Chosen]
) -> Generation:
    """The steps of one prompt, up to its own end, as a value."""
    steps = steps[: len(new_ids)]
    top_ids = torch.stack([chosen.top_ids for chosen in steps])
    return Generation(
        prompt_ids=tuple(prompt_ids),
        text=new_text(model, prompt_ids, new_ids),
        tokens=tuple(model.token_strings(new_ids)),
        token_ids=tuple(new_ids),
        probabilities=torch.stack([chosen.probabilities for chosen in steps]),
        top_ids=top_ids,
        top_tokens=tuple(tuple(model.token_strings(ids)) for ids in top_ids.tolist()),
        top_probabilities=torch.stack([chosen.top_probabilities for chosen in steps]),
    )
