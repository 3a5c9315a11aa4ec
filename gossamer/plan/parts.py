"""What a step does, part by part: FLOP, bytes, and seconds as the larger says.

With b tokens, f latents and n = b · active / tp pairs on a process, d_in and d_out wide, and
1 + p passes over pre-activations (the one that writes them, p that choose among them):

    encode      2 d_in f b FLOP
    select      4 b f (1 + p) bytes; candidates in their lists besides
    sparse      4 n (d_in + 3 d_out) bytes: decode, dL/dv, dL/dW_dec, dL/dW_enc by rows
    batch       4 · 12 b (d_in + d_out) bytes: scales, error, loss, mean, their gradients
    gradients   of f (d_in + d_out) numbers: written, their norm, clipping; unit decoder rows
    adam        28 bytes a parameter: four numbers read, three written

Parts follow one another: nothing is taken to overlap. Launches of kernels are not counted.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from gossamer.plan.collectives import Collective, seconds_of
from gossamer.plan.hardware import Hardware
from gossamer.plan.work import STORE_BYTES, WORD, Share
from gossamer.training.dead import MAX_DENSITY
from gossamer.training.gated import GatedConfig
from gossamer.training.jumprelu import JumpReLUConfig

BATCH_PASSES = 12
"""Passes over (tokens, width) arrays, counted in the code of the step."""

DENSE_PASSES = 12
"""Passes over (tokens, latents) arrays when the step is dense."""

HALF = 2
"""Bytes of bfloat16."""


class Part(NamedTuple):
    """One part of a step, of one process."""

    name: str
    """What it is."""

    seconds: float
    """Of one step; of a harvest and of checkpoints their share in one."""

    flop: float = 0.0
    """Multiplications and additions."""

    bytes: float = 0.0
    """Moved to and from memory, between processes, or to and from a disk."""

    when: str = "step"
    """step; before: when activations are stored first; between: now and then."""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dict(self._asdict())


def parts(share: Share, hardware: Hardware, exchanges: tuple[Collective, ...]) -> tuple[Part, ...]:
    """All parts, those of no cost left out."""
    if share.work.numbers == "bfloat16":
        computed = [*_hypothetical(share, hardware)]
    else:
        computed = [*_real(share, hardware)]
    found = [_harvest(share, hardware), *computed, *_traffic(share, hardware, exchanges)]
    found = [part for part in found if part.seconds > 0]
    step = sum(part.seconds for part in found if part.when == "step")
    return (*found, _checkpoints(share, hardware, step))


def checkpoint_bytes(share: Share) -> float:
    """Of a whole checkpoint: weights, two moments, counters of silence."""
    work = share.work
    whole = Share(work, 1, 1)
    return whole.parameters * 3 * WORD + work.config.d_sae * 8


def store_bytes(share: Share) -> float:
    """Of all activations on disk, with the token of each row and whether a document starts."""
    each = STORE_BYTES[share.work.store]
    width = share.d_in + (0 if share.work.is_autoencoder else share.d_out)
    return float(share.work.config.n_tokens) * (width * each + 5) if each else 0.0


def _harvest(share: Share, hardware: Hardware) -> Part:
    """The model's forward pass to the site, the tokens spread over all processes."""
    work = share.work
    flop = 2 * work.model_parameters * work.layer_share
    flop = float(flop * work.config.batch_tokens / share.size)
    when = "step" if work.store == "none" else "before"
    return Part("harvest", flop / hardware.model_flops, flop, when=when)


def _checkpoints(share: Share, hardware: Hardware, step: float) -> Part:
    """Written in equal parts by all processes, while nothing else goes on."""
    here = checkpoint_bytes(share) / share.size
    steps = max(1.0, share.work.checkpoint_seconds / step)
    return Part("checkpoints", here / hardware.disk / steps, bytes=here / steps, when="between")


def _real(share: Share, hardware: Hardware) -> Iterator[Part]:
    """Gossamer's step, in float32."""
    work, b, f, d_in, d_out = share.work, share.b, share.f, share.d_in, share.d_out
    kinds = {"flops": hardware.flops, "bytes": hardware.bandwidth}

    def part(name: str, flop: float = 0.0, moved: float = 0.0) -> Part:
        return Part(name, flop / kinds["flops"] + moved / kinds["bytes"], flop, moved)

    each = STORE_BYTES[work.store]
    if each:  # those of a tp group read the same tokens
        width = d_in + (0 if work.is_autoencoder else d_out)
        read = float(b * width * each)
        yield Part("read", read / hardware.disk, bytes=read)
    passes = 1 + float(hardware.select_passes)
    yield part("encode", 2.0 * d_in * f * b)
    chosen = b * f * WORD * passes
    if work.config.sae.selects_by_rank:
        n_lists = share.tp if work.config.sae.name in ("topk", "abstopk") else 1
        chosen += b * share.candidates * n_lists * (WORD + 8) * passes
    yield part("select", moved=chosen)
    if work.is_dense:
        yield part("dense", 2.0 * b * f * (d_in + 3 * d_out), DENSE_PASSES * WORD * float(b) * f)
    else:
        yield part("sparse", moved=_sparse_bytes(share))
    many = BATCH_PASSES + 6 * len(work.prefixes)
    yield part("batch", moved=float(WORD * many * b * (d_in + d_out)))
    yield part("gradients", moved=_gradient_bytes(share))
    yield part("adam", moved=28.0 * share.parameters)
    if share.has_auxk:
        yield part("auxk", *_auxk(share, passes))
    sae = work.config.sae
    if isinstance(sae, JumpReLUConfig) and sae.dead_weight and share.n_dead:
        yield part("dead", 4.0 * b * share.n_dead * d_in, float(b * share.n_dead * WORD * 6))


def _sparse_bytes(share: Share) -> float:
    """Rows read by the four sums over pairs, and those of prefixes and a gate."""
    rows = share.d_in + 3 * share.d_out
    if share.work.prefixes:
        rows += 2 * share.d_out * share.work.prefixes[-1] / share.work.config.d_sae
    if isinstance(share.work.config.sae, GatedConfig):
        rows += 2 * share.d_out
    return WORD * share.n_pairs * rows


def _gradient_bytes(share: Share) -> float:
    """Written, summed for their norm, perhaps shrunk; decoder rows held at norm 1."""
    clipped = 0 if share.work.config.optimizer.clip is None else 2
    moved = share.rows * WORD * (2 + clipped)
    return moved + (share.f * share.d_out * WORD * 8 if share.work.unit_decoder else 0)


def _auxk(share: Share, passes: float) -> tuple[float, float]:
    """(FLOP, bytes) of AuxK over the dead latents here; dense where many of them take part."""
    b, n, d_in, d_out = share.b, share.n_dead, share.d_in, share.d_out
    moved = float(b * n * WORD * passes + n * (d_in + d_out) * WORD * 6 + b * d_out * WORD * 8)
    if share.k_aux > MAX_DENSITY * n * share.tp:
        return 2.0 * b * n * (2 * d_in + 3 * d_out), moved + b * n * WORD * 6
    pairs = b * share.k_aux / share.tp
    return 2.0 * b * n * d_in, moved + WORD * pairs * (d_in + 3 * d_out)


def _hypothetical(share: Share, hardware: Hardware) -> Iterator[Part]:
    """A step in bfloat16, as the table of docs/scale.md has it."""
    b, f, d = share.b, share.f, (share.d_in + share.d_out) / 2
    flop = 2 * d * f * b
    yield Part("encode", flop / hardware.half_flops, flop)
    moved = {
        "select": b * f * HALF * (1 + hardware.select_passes),
        "sparse": 4 * share.n_pairs * d * HALF,
        "adam": 2 * d * f * 28,
    }
    for name, n in moved.items():
        yield Part(name, n / hardware.bandwidth, bytes=float(n))


def _traffic(share: Share, hardware: Hardware, exchanges: tuple[Collective, ...]) -> Iterator[Part]:
    """What processes wait for each other, by group."""
    widths = {"tp": share.tp, "dp": share.dp, "all": share.size}
    for group, n in widths.items():
        some = [each for each in exchanges if each.group == group]
        seconds = sum(seconds_of(each, share, hardware) for each in some)
        sent = float(sum(each.sent(n) for each in some))
        yield Part(f"{group} traffic", float(seconds), bytes=sent)
