"""How many prompts one pass takes within the memory allowed.

    graph    b · rows · n · n_blocks · (16 d + 6 m + 6 H n)      values that a backward pass needs
    tables   b · rows · n · n_blocks · (4 d + 2 m) · 2           values and gradients that stay
    latents  b · rows · n · max(d_sae) · 3                  one SAE's dense encoding at a time;
             b · rows · n · Σ d_sae · 8                     of every SAE that is spliced in

b bytes a number, n positions of the longest prompt, d residual width, m hidden units, H heads.
Upper bounds, counted from the operations of a block; rows with edits count twice.
"""

from collections.abc import Collection, Sequence

from gossamer.analysis.passes import How, Job, splices
from gossamer.errors import GossamerError
from gossamer.machine import readable
from gossamer.models.model import Model
from gossamer.saes.sae import SAE


def rows_at_once(model: Model, jobs: Sequence[Job], how: How, memory: int) -> int:
    """How many of the jobs, from the first on, go into one pass. GossamerError when not even the
    first fits."""
    longest, rows, spliced, need = 0, 0, set(), 0
    for taken, job in enumerate(jobs):
        longest = max(longest, len(job.ids))
        rows += 2 if job.edits else 1
        spliced |= splices(how, job.edits)
        need = rows * bytes_of_row(model, longest, how, spliced)
        if need > memory and taken:
            return taken
        if need > memory:
            break
    else:
        return len(jobs)
    raise GossamerError(
        f"A prompt of {longest} tokens needs up to {readable(need)} here, and "
        f"{readable(memory)} are allowed; shorten it, pass fewer SAEs, or allow more with "
        "memory=."
    )


def bytes_of_row(model: Model, n: int, how: How, spliced: Collection[str] = ()) -> int:
    """What a prompt of n tokens can take; `spliced`: SAEs that the pass must run through, by the
    site each one writes."""
    config = model.language_model.config
    d, m, heads = model.d_model, model.width("blocks.0.mlp.hook_post"), config.num_attention_heads
    number = model.dtype.itemsize
    block = (16 * d + 6 * m + 6 * heads * n) + 2 * (4 * d + 2 * m)
    widths = {site: sae.d_sae for site, sae in how.saes.items() if isinstance(sae, SAE)}
    latents = 3 * max(widths.values(), default=0)
    latents += 8 * sum(widths[site] for site in spliced if site in widths)
    logits = 3 * model.d_vocab
    return number * (n * (model.n_layers * block + latents) + logits)
