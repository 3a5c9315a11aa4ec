"""What the processes of a mesh exchange in a step: one table, read off the code of the step.

    topk, abstopk    1 all-gather over tp: everyone's candidates
    batchtopk and    4 all-reduces over all: three histograms and ties; 1 for the running threshold
      matryoshka
    decoding         1 all-reduce over tp of (tokens, d_out), and one for each inner prefix, a gate
    penalties        1 number over tp for each; a number a token for jumprelu's target
    auxk             1 all-gather and 1 all-reduce over tp, 1 all-reduce over dp
    gradients        over tp that of b_dec's encoder path, and their norm; over dp each parameter's
    counting         over dp which latents fired, the sum of the targets, the loss; over tp how many
                     are dead
    the loop         1 all-reduce over all of two numbers: who stops, who writes a checkpoint

A group of one process exchanges nothing. `bytes` are those of the tensor that a process has in the
end: the sum, or everyone's parts together. Training's log, and what is done again when a
certificate fails, are left out.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gossamer.plan.hardware import Hardware
from gossamer.plan.work import WORD, Share
from gossamer.training.gated import GatedConfig
from gossamer.training.jumprelu import JumpReLUConfig
from gossamer.training.panneal import PAnnealConfig
from gossamer.training.sharded import DIGIT_BITS

LONG = 8
"""Bytes of int64 and float64."""

Group = Literal["tp", "dp", "all"]
"""Those with the same tokens, those with the same latents, or everyone."""

Kind = Literal["all_reduce", "all_gather"]
"""A sum (or maximum) of all, or everyone's parts."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One exchange of a step."""

    name: str
    """What is exchanged."""

    group: Group
    """Among whom."""

    kind: Kind
    """How."""

    count: int
    """Times in a step."""

    bytes: int
    """Of the result, each time."""

    def sent(self, n: int, *, exact: bool = True) -> float:
        """Bytes that each of n processes sends on a ring, all times; not exact: as if n were
        large."""
        share = (n - 1) / n if exact else 1.0
        return self.count * self.bytes * share * (2 if self.kind == "all_reduce" else 1)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def collectives(share: Share) -> tuple[Collective, ...]:
    """All exchanges of a step, in the order of the table."""
    found = _hypothetical(share) if share.work.numbers == "bfloat16" else _real(share)
    widths = {"tp": share.tp, "dp": share.dp, "all": share.size}
    return tuple(each for each in found if widths[each.group] > 1)


def _real(share: Share) -> Iterator[Collective]:
    """Gossamer's step."""
    work, b, d_out = share.work, share.b, share.d_out
    yield from _selection(share)
    n_decodings = 1 + len(work.prefixes) + isinstance(work.config.sae, GatedConfig)
    yield Collective("reconstruction", "tp", "all_reduce", n_decodings, b * d_out * WORD)
    yield from _penalties(share)
    if work.subtract_b_dec:
        yield Collective("gradient of b_dec", "tp", "all_reduce", 1, share.d_in * WORD)
    yield Collective("gradient norm", "tp", "all_reduce", 1, WORD)
    yield Collective("dead latents", "tp", "all_gather", 1, share.tp * LONG)
    if share.has_auxk:
        width = min(share.k_aux, share.n_dead)
        size = share.tp * b * width * WORD
        if share.k_aux < share.n_dead * share.tp:
            yield Collective("candidates of auxk", "tp", "all_gather", 1, size)
        yield Collective("what auxk writes", "tp", "all_reduce", 1, b * d_out * WORD)
        yield Collective("variation of the error", "dp", "all_reduce", 1, (d_out + 2) * LONG)
    for name, n in _parameters(share):
        yield Collective(f"gradient of {name}", "dp", "all_reduce", 1, n * WORD)
    yield Collective("fired, mean, loss", "dp", "all_reduce", 1, (share.f + d_out + 1) * WORD)
    if work.store == "none":
        rows = work.config.batch_tokens * _width_read(share) * WORD
        yield Collective("rows of the model", "all", "all_gather", 1, rows)
    yield Collective("stop and checkpoint", "all", "all_reduce", 1, 2 * LONG)


def _selection(share: Share) -> Iterator[Collective]:
    name = share.work.config.sae.name
    if name in ("topk", "abstopk"):
        size = share.tp * share.b * share.candidates * WORD
        yield Collective("candidates", "tp", "all_gather", 1, size)
    if name in ("batchtopk", "matryoshka"):
        for n_bits in (DIGIT_BITS, DIGIT_BITS, 32 - 2 * DIGIT_BITS):  # of float32
            yield Collective("histogram", "all", "all_reduce", 1, (2**n_bits + 1) * LONG)
        yield Collective("ties", "all", "all_reduce", 1, (share.size + 1) * LONG)
        yield Collective("threshold", "all", "all_reduce", 1, LONG)


def _penalties(share: Share) -> Iterator[Collective]:
    sae = share.work.config.sae
    if isinstance(sae, JumpReLUConfig):
        n = share.b if sae.target_l0 is not None else 1
        yield Collective("penalty", "tp", "all_reduce", 1, n * WORD)
        if sae.dead_weight and share.n_dead:
            yield Collective("penalty of the dead", "tp", "all_reduce", 1, WORD)
    elif not sae.selects_by_rank:
        yield Collective("penalty", "tp", "all_reduce", 1, WORD)
    if isinstance(sae, PAnnealConfig):
        yield Collective("running penalties", "all", "all_reduce", 2, LONG)


def _parameters(share: Share) -> Iterator[tuple[str, int]]:
    """Every parameter here, and how many numbers it has."""
    f, d_in, d_out = share.f, share.d_in, share.d_out
    yield from (("W_enc", f * d_in), ("b_enc", f), ("W_dec", f * d_out), ("b_dec", d_out))
    yield from ((f"extra {place}", f) for place in range(share.work.n_extra))
    if share.work.config.skip:
        yield "W_skip", d_in * d_out


def _width_read(share: Share) -> int:
    return share.d_in + (0 if share.work.is_autoencoder else share.d_out)


def _hypothetical(share: Share) -> Iterator[Collective]:
    """A bfloat16 step: at most 4k/tp candidates of a process, and its own tokens handed round."""
    b, tp = share.b, share.tp
    yield Collective("tokens", "tp", "all_gather", 1, b * share.d_in * 2)
    width = min(share.k, 4 * share.k / tp) * tp
    yield Collective("candidates", "tp", "all_gather", 1, int(b * width * WORD))
    yield Collective("reconstruction", "tp", "all_reduce", 1, b * share.d_out * 2)
    for name, n in (("W_enc", share.f * share.d_in), ("W_dec", share.f * share.d_out)):
        yield Collective(f"gradient of {name}", "dp", "all_reduce", 1, n * 2)


def seconds_of(each: Collective, share: Share, hardware: Hardware) -> float:
    """Of all its times in a step: bytes sent over the slowest way, and latency."""
    # Neighbours in rank differ in tp first, so a tp group lies in one node where it fits.
    n, reach = {
        "tp": (share.tp, share.tp),
        "dp": (share.dp, share.size),
        "all": (share.size, share.size),
    }[each.group]
    rate = hardware.link if reach <= hardware.per_node else hardware.network
    exact = share.work.numbers == "float32" or each.group == "dp"
    return each.sent(n, exact=exact) / rate + each.count * hardware.latency
