"""How well does it train? FVU of TopK SAEs after equal steps: Gossamer, and SAELens 6.54.

    python benchmarks/train_fvu.py --peer DIRECTORY/bin/python     (benchmarks/peers.sh makes it)

Both get the same batches, in the same order, of pico-python's activations at
blocks.2.hook_resid_pre on its training text: 2048 latents, k = 32, 4096 tokens a step, Adam at
the same rate, held constant after the same warm-up. FVU is taken by one function over the same rows
of held-out text. Each other setting is the library's own default.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SITE = "blocks.2.hook_resid_pre"
D_SAE, K, BATCH, STEPS, WARMUP = 2048, 32, 4096, 200, 20
RATES = (3e-4, 1e-3, 3e-3)


def activations(n_tokens: int, held_out: bool) -> np.ndarray:
    """(n_tokens, 128) in blocks of 256 tokens."""
    import torch

    import gossamer
    from gossamer.corpus import split_stdlib

    manifest = Path(gossamer.__file__).parent / "assets" / "pico-python" / "manifest.json"
    model = gossamer.load_model("pico-python")
    ids: list[int] = []
    for file in split_stdlib(manifest)[int(held_out)]:
        ids += model.tokenize(file.text)
        if len(ids) >= n_tokens:
            break
    blocks = torch.tensor(ids[: n_tokens // 256 * 256]).view(-1, 256)
    found = []
    for some in blocks.split(16):
        trace = gossamer.run(model, some.tolist(), record=[SITE])
        found.append(trace.activations[SITE].detach().reshape(-1, 128).float().numpy())
    return np.concatenate(found)


def order(n_rows: int, step: int) -> np.ndarray:
    """The rows of a batch."""
    return np.random.default_rng(step).integers(0, n_rows, BATCH)


def gossamer_weights(rows: np.ndarray, rate: float) -> dict[str, np.ndarray]:
    """Train with the loop's own steps."""
    import torch

    from gossamer.training.config import OptimizerConfig, TrainConfig
    from gossamer.training.start import first_look, new_trainee
    from gossamer.training.step import descend_, new_optimizer, outcome
    from gossamer.training.topk import TopKConfig

    optimizer = OptimizerConfig(rate=rate, warmup_steps=WARMUP, decay=0.0)
    config = TrainConfig(
        sae=TopKConfig(k=K), d_sae=D_SAE, n_tokens=STEPS * BATCH, optimizer=optimizer, site=SITE
    )
    x = torch.from_numpy(rows)
    looks = first_look(iter([{SITE: x[order(len(x), s)]} for s in range(25)]), [SITE], 100_000)
    trainee = new_trainee(config, looks)
    adam = new_optimizer(config, trainee)
    for step in range(STEPS):
        batch = x[order(len(x), step)]
        found = outcome(config, trainee, batch, batch, step=step)
        descend_(config, trainee, adam, found, step=step)
    return {n: t.numpy() for n, t in trainee.folded().items() if t is not None}


def sae_lens_weights(rows: np.ndarray, rate: float) -> dict[str, np.ndarray]:
    """Train with SAETrainer."""
    import torch
    from sae_lens.config import LoggingConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.topk_sae import (  # pyright: ignore[reportMissingImports]
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.training.sae_trainer import (  # pyright: ignore[reportMissingImports]
        SAETrainer,
        SAETrainerConfig,
    )

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=D_SAE, k=K))
    config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=rate,
        lr_end=rate,
        lr_warm_up_steps=WARMUP,
        logger=LoggingConfig(log_to_wandb=False),
    )
    x = torch.from_numpy(rows)
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter([x]))
    for step in range(STEPS):
        trainer.step(x[order(len(x), step)])
    sae.fold_W_dec_norm()
    shift = sae.b_dec if sae.cfg.apply_b_dec_to_input else torch.zeros_like(sae.b_dec)
    parts = {
        "W_enc": sae.W_enc.T,
        "b_enc": sae.b_enc + (sae.b_dec - shift) @ sae.W_enc,  # read by the same formula below
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    return {name: tensor.detach().contiguous().numpy() for name, tensor in parts.items()}


def fvu(weights: dict[str, np.ndarray], rows: np.ndarray) -> float:
    """Over all rows, of a TopK SAE that subtracts b_dec."""
    import torch

    from gossamer.metrics import fvu as measured
    from gossamer.saes import SAE, TopK

    parts: dict[str, Any] = {name: torch.from_numpy(array) for name, array in weights.items()}
    sae = SAE(**parts, selection=TopK(K), site_in=SITE, subtract_b_dec=True)
    x = torch.from_numpy(rows)
    return measured(x, sae(x))


def work(folder: Path) -> None:
    """The peer's part: read the rows, leave the weights."""
    import torch

    torch.set_num_threads(2)
    rows = np.load(folder / "train.npy")
    for rate in RATES:
        torch.manual_seed(0)
        weights: dict[str, Any] = {**sae_lens_weights(rows, rate)}
        np.savez(folder / f"peer-{rate}.npz", **weights)


def main() -> None:
    """Train both and write a table."""
    import torch

    if sys.argv[1:2] == ["--work"]:
        return work(Path(sys.argv[2]))
    if sys.argv[1:2] != ["--peer"] or len(sys.argv) != 3:
        raise SystemExit("Give --peer and the Python of an environment with SAELens.")
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = activations(300_000, held_out=False)
        held_out = activations(100_000, held_out=True)
        np.save(folder / "train.npy", rows)
        command = [sys.argv[2], "-W", "ignore", __file__, "--work", name]
        subprocess.run(command, check=True, capture_output=True)
        sys.stdout.write(f"{STEPS} steps, {len(held_out)} held-out tokens\n")
        sys.stdout.write(f"{'rate':>8}{'gossamer':>10}{'sae-lens':>10}\n")
        for rate in RATES:
            own = fvu(gossamer_weights(rows, rate), held_out)
            peer = fvu(dict(np.load(folder / f"peer-{rate}.npz")), held_out)
            sys.stdout.write(f"{rate:8.0e}{own:10.4f}{peer:10.4f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
