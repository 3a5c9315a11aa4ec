"""From a trainee to the SAE that is kept: scales folded, thresholds set, files written."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from gossamer.errors import DiskError
from gossamer.kernels.encode import encode_topk
from gossamer.saes.crosscoder import BETWEEN, Crosscoder
from gossamer.saes.gated import Gated
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.native import read_header
from gossamer.saes.sae import SAE
from gossamer.saes.selection import AbstractSelection
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.checkpoints import as_json, why_not
from gossamer.training.config import TrainConfig
from gossamer.training.matryoshka import MatryoshkaConfig
from gossamer.training.sharded import cut_of, kept_of
from gossamer.training.start import side_by_side
from gossamer.training.trainee import Form, Trainee

FRESH_TOKENS = 65536
"""Tokens, after the last that were trained on, from which BatchTopK's threshold is set."""

FAR = 8
"""How many times k pre-activations of a token can count for that."""


def member_names(configs: Sequence[TrainConfig]) -> list[str]:
    """Folders of the SAEs in a run's directory: none for one, else the site each writes.

    With a number before it where two write the same site.
    """
    if len(configs) == 1:
        return [""]
    sites = [config.written for config in configs]
    if len(set(sites)) == len(sites):
        return sites
    return [f"{place:02d}-{site}" for place, site in enumerate(sites)]


def threshold_of(
    config: TrainConfig, trainee: Trainee, fresh: Iterator[Mapping[str, Tensor]]
) -> Float[Tensor, ""] | None:
    """What a BatchTopK SAE compares with, from batches that follow the last; None for others."""
    if not isinstance(config.sae, BatchTopKConfig | MatryoshkaConfig):
        return None
    return batch_threshold(config, trainee, config.sae.k, fresh)


@torch.no_grad()
def whole(config: TrainConfig, trainee: Trainee) -> Trainee | None:
    """All latents of a trainee in the first process of its mesh, on the CPU; None in the others."""
    mesh = trainee.mesh
    if mesh.size == 1:
        return trainee
    if mesh.dp_rank > 0:
        return None
    rows, state = trainee.by_latent(), {}
    for name, tensor in trainee.state_dict().items():
        found = mesh.gathered(tensor, "tp").flatten(0, 1) if name in rows else tensor
        if mesh.is_first:
            state[name] = found.cpu()
    if not mesh.is_first:
        return None
    weights = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")
    form = Form(
        trainee.is_autoencoder, trainee.subtract_b_dec, trainee.unit_decoder, trainee.widths
    )
    made = Trainee(
        {name: state[name] for name in weights if name in state},
        extra={name: state[f"extra.{name}"] for name in trainee.extra},
        estimates={name: state[name] for name in config.sae.estimates()},
        scales=(state["scale_in"], state["scale_out"]),
        form=form,
    )
    made.silent_tokens.copy_(state["silent_tokens"])
    return made


def finished_sae(
    config: TrainConfig,
    trainee: Trainee,
    threshold: Float[Tensor, ""] | None,
    about: Mapping[str, Any],
) -> SAE | Crosscoder:
    """The SAE or crosscoder in the model's units, of all latents."""
    metadata: dict[str, Any] = {"training": as_json(config), "source": dict(about)}
    selection: AbstractSelection = config.sae.selection(trainee)
    if isinstance(config.sae, BatchTopKConfig | MatryoshkaConfig):
        assert threshold is not None
        running = trainee.get_buffer("running_threshold")
        metadata["running_threshold"] = _scalar(running / trainee.unit)
        metadata["threshold"] = _scalar(threshold / trainee.unit)
        metadata["k"] = config.sae.k
        if isinstance(config.sae, MatryoshkaConfig):
            metadata["prefixes"] = [*config.sae.inner(trainee.d_sae), trainee.d_sae]
        selection = JumpReLU(threshold.to(trainee.b_enc).expand(trainee.d_sae))
    sae = SAE(
        **trainee.folded(),
        selection=in_target_units(selection, trainee.unit),
        site_in=BETWEEN.join(config.sites_in),
        site_out=BETWEEN.join(config.sites_out),
        subtract_b_dec=trainee.subtract_b_dec,
        prepend_bos=about.get("prepend_bos"),
        model_name=about.get("model"),
        metadata=metadata,
    )
    return _of_several(config, trainee, sae) if config.is_several else sae


def _of_several(config: TrainConfig, trainee: Trainee, joint: SAE) -> Crosscoder:
    """The SAE over sites side by side as what it is, with what brings the sites to one size."""
    sites, widths = config.sites_out, trainee.widths
    scales = [part[0].item() for part in trainee.scale_out.split(list(widths))]
    joint.metadata["scales"] = dict(zip(sites, scales, strict=True))
    writes = dict(zip(sites, widths, strict=True))
    is_wide = len(config.sites_in) > 1
    reads = writes if is_wide else {config.sites_in[0]: joint.d_in}
    return Crosscoder.of_joint(joint, reads, writes)


def in_target_units(selection: AbstractSelection, scale: Float[Tensor, ""]) -> AbstractSelection:
    """The rule for latents that have shrunk with the target."""
    match selection:
        case JumpReLU():
            return JumpReLU((selection.threshold.double() / scale).to(selection.threshold))
        case Gated():
            b_gate = (selection.b_gate.double() / scale).to(selection.b_gate)
            return Gated(b_gate=b_gate, r_mag=selection.r_mag)
        case _:
            return selection


@torch.no_grad()
def batch_threshold(
    config: TrainConfig, trainee: Trainee, k: int, fresh: Iterator[Mapping[str, Tensor]]
) -> Float[Tensor, ""]:
    """The threshold above which each token has k positive pre-activations on average.

    Over FRESH_TOKENS tokens, or as many as the run had; 0 when they have fewer however low it is.
    """
    n_each = min(FAR * k, len(trainee.b_enc))
    pooled: list[Tensor] = []
    n_tokens = 0
    while n_tokens < min(FRESH_TOKENS, config.n_tokens):
        x = side_by_side(config.sites_in, next(fresh)).to(trainee.b_enc.device)
        _, u, _ = trainee.inputs(x, x)
        values, _ = encode_topk(u, trainee.W_enc, trainee.b_enc, n_each)
        counts = values > 0
        kept = kept_of(values, FAR * k, trainee.mesh)
        counts = counts if kept is None else counts & kept
        pooled.append(values[counts])
        n_tokens += config.batch_tokens  # here and elsewhere
    # So many are strictly above it.
    n_wanted = k * n_tokens + 1 if trainee.mesh.is_first else 0
    return cut_of(torch.cat(pooled), n_wanted, trainee.mesh).value


def save_all(saes: Sequence[SAE | Crosscoder], names: Sequence[str], directory: Path) -> None:
    """Write each SAE into its folder."""
    for sae, name in zip(saes, names, strict=True):
        try:
            sae.save(directory / name)
        except (DiskError, SafetensorError) as problem:
            raise DiskError(
                f"{directory / name} could not be written: {why_not(problem)}. Make room and run "
                "the same command again: the training itself is done and kept."
            ) from problem


def is_made_by(config: TrainConfig, about: Mapping[str, Any], folder: Path) -> bool:
    """Whether the SAE in a folder is what this config made of these activations."""
    metadata = read_header(folder).get("metadata") or {}
    return metadata.get("training") == as_json(config) and metadata.get("source") == dict(about)


def _scalar(tensor: Tensor) -> float:
    return float(tensor.item())
