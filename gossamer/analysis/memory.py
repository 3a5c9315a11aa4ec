"""How many prompts one pass takes within the memory allowed.

    graph    b · rows · n · n_blocks · (16 d + 6 m + 6 H n)      values that a backward pass needs
    tables   b · rows · n · n_blocks · (4 d + 2 m) · 2           values and gradients that stay
    latents  b · rows · n · max(d_sae) · 3                  one SAE's dense encoding at a time;
             b · rows · n · Σ d_sae · 8                     of every SAE where they are spliced

b bytes a number, n positions of the longest prompt, d residual width, m hidden units, H heads.
Upper bounds, counted from the operations of a block; rows with edits count twice.
"""

from collections.abc import Sequence

from gossamer.analysis.passes import How, Job
from gossamer.errors import GossamerError
from gossamer.models.model import Model
from gossamer.saes.sae import SAE


def rows_at_once(model: Model, jobs: Sequence[Job], how: How, memory: int) -> int:
    """How many of the jobs, from the first on, go into one pass. GossamerError when not even the
    first fits."""
    taken, longest, rows = 0, 0, 0
    for job in jobs:
        longest = max(longest, len(job.ids))
        rows += 2 if job.edits else 1
        need = rows * bytes_of_row(model, longest, how, spliced=_splices(job, how))
        if need > memory:
            break
        taken += 1
    if taken:
        return taken
    job = jobs[0]
    each = bytes_of_row(model, len(job.ids), how, spliced=_splices(job, how))
    need = each * (2 if job.edits else 1)
    raise GossamerError(
        f"A prompt of {len(job.ids)} tokens needs up to {need / 1e9:.2f} GB here, and "
        f"{memory / 1e9:.2f} GB are allowed; shorten it, pass fewer SAEs, or allow more with "
        "memory=."
    )


def bytes_of_row(model: Model, n: int, how: How, *, spliced: bool) -> int:
    """What a prompt of n tokens can take."""
    config = model.language_model.config
    d, m, heads = model.d_model, model.width("blocks.0.mlp.hook_post"), config.num_attention_heads
    number = model.dtype.itemsize
    block = (16 * d + 6 * m + 6 * heads * n) + 2 * (4 * d + 2 * m)
    widths = [sae.d_sae for sae in how.saes.values() if isinstance(sae, SAE)]
    latents = 8 * sum(widths) if spliced else 3 * max(widths, default=0)
    logits = 3 * model.d_vocab
    return number * (n * (model.n_layers * block + latents) + logits)


def _splices(job: Job, how: How) -> bool:
    return how.error != "attached" or any(edit.at in how.saes for edit in job.edits)
