"""One training step of a TopK SAE: dense autograd, Gossamer, and SAELens 6.54, side by side.

    python benchmarks/train.py [--peer DIRECTORY/bin/python]     (benchmarks/peers.sh makes it)

d = 768, 24576 latents, k = 32, 4096 tokens, two threads, float32. Each contender is a process of
its own, so that its peak memory is its own, and holds its weights while the others take their turn:
in every round each makes one step, in turns forwards and backwards, and the fastest step of each
counts. A step is forward, backward, gradient clipping and Adam with what the library itself adds:

    dense            top-k, scatter, dense products, autograd; Adam fused, nothing else
    gossamer         the loop's own step: unit decoder rows, dead latents counted, FVU and L0
    gossamer bf16    the same with candidates found in bfloat16
    sae-lens         SAETrainer.step with its defaults
    sae-lens sparse  the same with use_sparse_activations (and without rescaling, which raises)
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

WIDTH, D_SAE, K, BATCH = 768, 24576, 32, 4096
THREADS = 2
OWN = ("dense", "gossamer", "gossamer bf16")
PEERS = ("sae-lens", "sae-lens sparse")


def activations() -> Any:
    """Sparse sums of directions and noise, so that the same latents do not always win."""
    import torch

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4096, WIDTH, generator=generator)
    codes = (torch.rand(2 * BATCH, 4096, generator=generator) < 0.01).float()
    return codes @ directions + torch.randn(2 * BATCH, WIDTH, generator=generator)


def dense(x: Any) -> Callable[[int], object]:
    """Plain torch."""
    import torch

    W_enc, W_dec = (torch.nn.Parameter(torch.randn(D_SAE, WIDTH) / WIDTH**0.5) for _ in range(2))
    b_enc, b_dec = torch.nn.Parameter(torch.zeros(D_SAE)), torch.nn.Parameter(torch.zeros(WIDTH))
    optimizer = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=1e-4, fused=True)

    def step(number: int) -> None:
        batch = x[number % 2 * BATCH :][:BATCH]
        pre = (batch - b_dec) @ W_enc.T + b_enc
        values, indices = pre.topk(K, sorted=False)
        latents = torch.zeros_like(pre).scatter(1, indices, values.relu())
        loss = (batch - latents @ W_dec - b_dec).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def gossamer(x: Any, encode_in: Any) -> Callable[[int], object]:
    """The loop's step."""
    from gossamer.training.config import TrainConfig
    from gossamer.training.start import first_look, new_trainee
    from gossamer.training.step import descend_, new_optimizer, outcome
    from gossamer.training.topk import TopKConfig

    site = "blocks.0.hook_resid_pre"
    config = TrainConfig(
        sae=TopKConfig(k=K, encode_in=encode_in),
        d_sae=D_SAE,
        n_tokens=1_000_000,
        batch_tokens=BATCH,
        site=site,
    )
    trainee = new_trainee(config, first_look(iter([{site: x}]), [site], len(x)))
    optimizer = new_optimizer(config, trainee)

    def step(number: int) -> None:
        batch = x[number % 2 * BATCH :][:BATCH]
        found = outcome(config, trainee, batch, batch, step=number)
        descend_(config, trainee, optimizer, found, step=number)

    return step


def sae_lens(x: Any, sparse: bool) -> Callable[[int], object]:
    """SAELens' trainer."""
    from sae_lens.config import LoggingConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import SAETrainer, SAETrainerConfig  # pyright: ignore[reportMissingImports]

    options = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=WIDTH, d_sae=D_SAE, k=K, **(options if sparse else {}))
    )
    config = SAETrainerConfig(
        total_training_samples=1_000_000,
        train_batch_size_samples=BATCH,
        lr_end=3e-4,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter([x]))
    return lambda number: trainer.step(x[number % 2 * BATCH :][:BATCH])


def work(contender: str) -> None:
    """Answer each line on standard input with the seconds of a step and the peak megabytes."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    x = activations()
    match contender:
        case "dense":
            step = dense(x)
        case "gossamer":
            step = gossamer(x, "float32")
        case "gossamer bf16":
            step = gossamer(x, "bfloat16")
        case _:
            step = sae_lens(x, sparse=contender.endswith("sparse"))
    for number, _ in enumerate(sys.stdin):
        before = time.perf_counter()
        step(number)
        seconds = time.perf_counter() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(f"result {seconds} {peak}\n")
        sys.stdout.flush()


def ask(process: Any) -> tuple[float, float]:
    """One step of a contender: (seconds, peak megabytes)."""
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("result "):
            seconds, peak = line.split()[1:]
            return float(seconds), float(peak)
    raise SystemExit("A contender has ended; what it wrote stands above.")


def main() -> None:
    """Time the contenders in rounds and write a table."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--work"]:
        return work(arguments[1])
    peer = arguments[arguments.index("--peer") + 1] if "--peer" in arguments else None
    rounds = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 6
    pythons = dict.fromkeys(OWN, sys.executable) | (dict.fromkeys(PEERS, peer) if peer else {})
    processes = {
        name: subprocess.Popen(
            [python, "-W", "ignore", __file__, "--work", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, python in pythons.items()
    }
    best = dict.fromkeys(processes, float("inf"))
    peaks = dict.fromkeys(processes, 0.0)
    for number in range(rounds + 1):
        for name in sorted(processes, reverse=number % 2 == 1):
            seconds, peaks[name] = ask(processes[name])
            if number:  # the first step makes Adam's moments
                best[name] = min(best[name], seconds)
    for process in processes.values():
        process.kill()
    sys.stdout.write(f"{'':18}{'s/step':>8}{'speed-up':>10}{'peak MB':>10}\n")
    for name, seconds in best.items():
        ratio = best["dense"] / seconds
        sys.stdout.write(f"{name:18}{seconds:8.2f}{ratio:9.2f}x{peaks[name]:10.0f}\n")
    if peer:
        for name in PEERS:
            ratio = best[name] / best["gossamer"]
            sys.stdout.write(f"gossamer is {ratio:.2f}x as fast as {name}\n")


if __name__ == "__main__":
    main()
