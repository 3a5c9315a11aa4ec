"""What `gossamer train` makes of its options: configs, and which option belongs to what."""

from itertools import product
from typing import TYPE_CHECKING, Any

from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from gossamer.training.architecture import AbstractArchitecture
    from gossamer.training.config import TrainConfig
    from gossamer.training.joint import JacobianConfig

KINDS = (
    *("topk", "batchtopk", "matryoshka", "abstopk"),
    *("relu", "panneal", "gated", "jumprelu", "jacobian"),
)
"""Words for the architectures; jacobian is a pair of topk SAEs around an MLP."""

PENALIZED = ("relu", "panneal", "gated", "jumprelu")
"""Those whose sparsity a penalty brings about."""

PENALTIES = ("l1", "root", "log", "tanh", "capped", "normalized")
"""Words for what is made of the entries of a Jacobian."""

OWNERS = {
    "ks": ("--k", ("topk", "batchtopk", "matryoshka", "abstopk", "jacobian")),
    "prefixes": ("--prefix", ("matryoshka",)),
    "prefix_weights": ("--prefix-weight", ("matryoshka",)),
    "p_end": ("--p-end", ("panneal",)),
    "crosscoder": ("--crosscoder", tuple(kind for kind in KINDS if kind != "jacobian")),
    "weights": ("--sparsity", PENALIZED),
    "sparsity_warmup": ("--sparsity-warmup", PENALIZED),
    "penalty": ("--penalty", ("jumprelu",)),
    "bandwidth": ("--bandwidth", ("jumprelu",)),
    "target_l0": ("--target-l0", ("jumprelu",)),
    "norm": ("--norm", ("relu",)),
    "bfloat16": ("--bfloat16", ("topk", "jacobian")),
    "layer": ("--layer", ("jacobian",)),
    "jacobian_weight": ("--jacobian-weight", ("jacobian",)),
    "jacobian_warmup": ("--jacobian-warmup", ("jacobian",)),
    "jacobian_penalty": ("--jacobian-penalty", ("jacobian",)),
    "jacobian_share": ("--jacobian-share", ("jacobian",)),
    "jacobian_size": ("--jacobian-size", ("jacobian",)),
    "jacobian_bfloat16": ("--jacobian-bfloat16", ("jacobian",)),
}
"""Options by the architectures that have them."""


def jacobian_config_of(options: dict[str, Any], model: Any) -> "JacobianConfig":
    """The pair that --layer names."""
    from gossamer.training.joint import JacobianConfig

    if model is None or options["layer"] is None:
        raise GossamerError(
            "A Jacobian pair needs --model, whose MLP stands between, and its --layer."
        )
    if len(options["ks"]) > 1 or len(options["sites"]) > 1 or options["sites_out"]:
        raise GossamerError(
            "A Jacobian pair has one --k, at most one --site (of its first SAE) and no --site-out."
        )
    if not options["ks"]:
        raise GossamerError("A jacobian pair needs --k, the active latents of both its SAEs.")
    (each,) = configs_of({**options, "kind": "topk", "sites": ()})
    fields = ("weight", "warmup", "penalty", "size", "share")
    names = {field: f"jacobian_{field}" for field in fields}
    given = options_given(options, **names)
    if options["jacobian_bfloat16"]:
        given["multiply_in"] = "bfloat16"
    return JacobianConfig(
        each=each,
        layer=options["layer"],
        site=options["sites"][0] if options["sites"] else None,
        **{"weight": options["ks"][0] ** 2 / (2 * model.d_model)} | given,
    )


def configs_of(options: dict[str, Any]) -> "list[TrainConfig]":
    """One config for each site and each k or weight of the penalty."""
    from gossamer.training.config import DeadConfig, OptimizerConfig, StartConfig, TrainConfig

    if options["kind"] in OWNERS["ks"][1] and not options["ks"]:
        raise GossamerError(
            f"--sae {options['kind']} needs --k, its number of active latents a token."
        )
    optimizer = options_given(options, "rate", "warmup_steps", "decay", "clip")
    if optimizer.get("clip") == 0:
        optimizer["clip"] = None
    dead = options_given(options, "remedy", "aux_weight", "k_aux", after_tokens="dead_after")
    configs = [
        TrainConfig(
            sae=architecture,
            d_sae=options["d_sae"],
            n_tokens=_whole(options["n_tokens"]),
            site=site,
            site_out=site_out,
            skip=options["skip"],
            batch_tokens=options["batch_tokens"],
            optimizer=OptimizerConfig(**optimizer),
            dead=DeadConfig(**dead),
            start=StartConfig(**options_given(options, b_dec="start_b_dec")),
            seed=options["seed"],
        )
        for (site, site_out), architecture in product(_pairs(options), _architectures(options))
    ]
    if configs[0].remedy != "auxk" and options_given(options, "aux_weight", "k_aux"):
        raise GossamerError(
            f"--aux-weight and --k-aux are for --remedy auxk, not for {configs[0].remedy}."
        )
    if options["start_b_dec"] and options["sites_out"]:
        raise GossamerError("--start-b-dec is for autoencoders; leave it out with --site-out.")
    return configs


def _pairs(options: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(site that is read, site that is written or None for the same)."""
    sites, sites_out = options["sites"] or (None,), options["sites_out"]
    if options["crosscoder"]:
        if max(len(sites), len(sites_out)) < 2 or (len(sites) > 1 and sites_out):
            raise GossamerError("--crosscoder takes several --site, or one and several --site-out.")
        return [(sites[0], sites_out) if sites_out else (sites, None)]
    if not sites_out:
        return [(site, None) for site in sites]
    if len(sites_out) != len(sites):
        raise GossamerError(
            f"Transcoders need a --site-out for each --site, got {len(sites_out)} for "
            f"{len(sites)}; repeat both, in the same order."
        )
    return list(zip(sites, sites_out, strict=True))


def _architectures(options: dict[str, Any]) -> "list[AbstractArchitecture]":
    """The architectures that --sae and its own options name."""
    from gossamer.training.abstopk import AbsTopKConfig
    from gossamer.training.batchtopk import BatchTopKConfig
    from gossamer.training.gated import GatedConfig
    from gossamer.training.jumprelu import JumpReLUConfig
    from gossamer.training.matryoshka import MatryoshkaConfig
    from gossamer.training.panneal import PAnnealConfig
    from gossamer.training.relu import ReLUConfig
    from gossamer.training.topk import TopKConfig

    # What was not given is left to the config's default.
    shared = options_given(
        options, "penalty", "target_l0", "bandwidth", "norm", warmup="sparsity_warmup"
    )
    shared |= options_given(options, "p_end")
    weights = options["weights"]
    match options["kind"]:
        case "topk":
            encode_in = "bfloat16" if options["bfloat16"] else "float32"
            return [TopKConfig(k=k, encode_in=encode_in) for k in options["ks"]]
        case "batchtopk":
            return [BatchTopKConfig(k=k) for k in options["ks"]]
        case "matryoshka":
            sizes = {"prefixes": options["prefixes"], "weights": options["prefix_weights"]}
            given = {name: values for name, values in sizes.items() if values}
            return [MatryoshkaConfig(k=k, **given) for k in options["ks"]]
        case "abstopk":
            return [AbsTopKConfig(k=k) for k in options["ks"]]
        case "relu":
            return [ReLUConfig(l1=l1, **shared) for l1 in weights] or [ReLUConfig(**shared)]
        case "panneal":
            return [PAnnealConfig(l1=l1, **shared) for l1 in weights] or [PAnnealConfig(**shared)]
        case "gated":
            return [GatedConfig(l1=l1, **shared) for l1 in weights] or [GatedConfig(**shared)]
        case _:
            return [JumpReLUConfig(coefficient=each, **shared) for each in weights or [None]]


def check_own(options: dict[str, Any]) -> None:
    """GossamerError for an option that the architecture does not have."""
    kind = options["kind"]
    for name, (flag, kinds) in OWNERS.items():
        if is_given(options[name]) and kind not in kinds:
            raise GossamerError(f"{flag} is for {', '.join(sorted(kinds))}, not for {kind}.")


def options_given(options: dict[str, Any], *same: str, **renamed: str) -> dict[str, Any]:
    """Options that were given, by the names of a config's fields."""
    names = {name: name for name in same} | renamed
    found = {field: options[name] for field, name in names.items() if options[name] is not None}
    return {field: _whole(v) if field == "after_tokens" else v for field, v in found.items()}


def is_given(value: Any) -> bool:
    """Whether an option was named on the command line."""
    return value is not None and value is not False and value != ()


def _whole(value: float) -> int | float:
    """2e6 as the integer it is; what is none is left for the config to refuse."""
    return int(value) if value.is_integer() else value
