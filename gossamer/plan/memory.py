"""What one process holds at the fullest moment of a step, in bytes, by what it is."""

from gossamer.kernels.encode import CHUNK_ROWS
from gossamer.plan.work import WORD, Share

TILE_ROWS = 8192
"""Tokens of a tile of pre-activations in the hypothetical step."""

BATCH_COPIES = 8
"""Arrays of (tokens, width) that live at once: batch, scaled, less b_dec, written, error, …"""


def memory(share: Share) -> dict[str, float]:
    """Bytes of the device by part; nothing of a language model unless it runs beside."""
    work, b, f, p = share.work, share.b, share.f, share.parameters
    found = {"weights": WORD * p, "gradients": WORD * p, "moments": 2 * WORD * p}
    if work.numbers == "bfloat16":
        found["bfloat16 copy"] = 2 * p
        found["tile"] = 2.0 * min(b, TILE_ROWS) * f
    else:
        found["tile"] = float(_tile(share))
        found["pairs"] = _pairs(share)
        found["batch"] = float(BATCH_COPIES * WORD * b * (share.d_in + share.d_out) / 2)
    found["counters"] = 8.0 * f
    if work.is_dense:
        found["dense latents"] = 5.0 * WORD * b * f
    if share.has_auxk:
        rows = share.n_dead * (share.d_in + share.d_out)
        found["auxk"] = float(2 * WORD * rows + WORD * b * share.n_dead + 36 * b * share.k_aux)
    if work.store == "none" and work.model_parameters:
        found["language model"] = 2.0 * work.model_parameters
    return found


def host_bytes(share: Share) -> float:
    """Bytes of the tokens of a batch that a process reads."""
    width = share.d_in + (0 if share.work.is_autoencoder else share.d_out)
    return float(WORD * share.b * width)


def _tile(share: Share) -> int:
    """Pre-activations of some tokens at a time; their sizes besides where latents are signed."""
    size = WORD * min(share.b, CHUNK_ROWS) * share.f
    return 2 * size if share.work.config.sae.is_signed else size


def _pairs(share: Share) -> float:
    """Values and latents of the candidates, what is exchanged of them and sorted, and the pairs
    in both orders with their gradients."""
    candidates = share.b * share.candidates * (WORD + 8)
    if share.tp > 1 and share.work.config.sae.name in ("topk", "abstopk"):
        candidates += share.tp * share.b * share.candidates * (2 * WORD + 8 + 1)
    return float(candidates + share.n_pairs * (4 * 8 + 4 * WORD))
