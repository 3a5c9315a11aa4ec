"""Train the pico-python language model on the training part of the standard library.

    python recipes/pico_python/train_model.py --tokenizer DIRECTORY --out DIRECTORY --steps 3000

A GPT-2 of 4 blocks, d_model 128, tied embeddings. Matrices inside the blocks take Muon (Jordan et
al. 2024), the rest AdamW; the learning rate rises over 100 steps and falls linearly to 0. Each row
of a batch is `<|endoftext|>` and 511 consecutive tokens from a random place of the training text,
so the model has always seen `<|endoftext|>` at position 0. The last finished checkpoint is picked
up when the command is run again.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gossamer.corpus import SourceFile, split_stdlib

CONTEXT = 512


def build_model(vocabulary_size: int) -> GPT2LMHeadModel:
    """A randomly initialised GPT-2 of pico-python's shape (about 1.38 M parameters)."""
    config = GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def token_stream(files: list[SourceFile], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All files as one sequence of token ids, `<|endoftext|>` before each."""
    ids: list[int] = []
    for encoded in tokenizer([file.text for file in files])["input_ids"]:
        ids.append(0)
        ids.extend(encoded)
    return torch.tensor(ids, dtype=torch.int32)


def sample_rows(stream: torch.Tensor, n_rows: int, generator: torch.Generator) -> torch.Tensor:
    """(n_rows, CONTEXT + 1) token ids: `<|endoftext|>`, then consecutive tokens from a random
    place."""
    starts = torch.randint(len(stream) - CONTEXT, (n_rows,), generator=generator)
    rows = stream[starts[:, None] + torch.arange(CONTEXT)].long()
    return torch.cat([torch.zeros(n_rows, 1, dtype=torch.long), rows], dim=1)


@torch.inference_mode()
def bits_per_byte(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    files: list[SourceFile],
    stride: int = 128,
) -> float:
    """Held-out loss in bits per byte of text; windows overlap, each token is counted once with the
    most context."""
    nats, n_bytes = 0.0, 0
    model.eval()
    for file in files:
        ids = torch.tensor([0, *tokenizer(file.text)["input_ids"]])
        n_bytes += len(file.text.encode())
        counted = 1  # the leading <|endoftext|> is given
        windows = []
        while counted < len(ids):
            start = max(0, min(counted - 1, counted - (CONTEXT - stride)))
            window = torch.cat([ids[:1], ids[start + 1 : start + CONTEXT]])
            windows.append((window, counted - start))
            counted = start + len(window)
        for chunk in range(0, len(windows), 16):
            group = windows[chunk : chunk + 16]
            batch = torch.nn.utils.rnn.pad_sequence(
                [w for w, _ in group], batch_first=True, padding_value=0
            )
            log_probabilities = model(batch).logits.float().log_softmax(-1)
            for row, (window, first) in enumerate(group):
                picked = log_probabilities[row, first - 1 : len(window) - 1]
                nats -= picked.gather(-1, window[first:, None]).sum().item()
    return nats / math.log(2) / n_bytes


def next_token_loss(model: GPT2LMHeadModel, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats, computed in bfloat16 up to the logits."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def make_optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".h." in n)]
    return [
        torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=6e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate_factor(step: int, n_steps: int, n_warmup: int = 100) -> float:
    """Linear warm-up, then linear decay to 0."""
    return min((step + 1) / n_warmup, 1 - step / n_steps)


def save_checkpoint(
    file: Path, step: int, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Write the state after `step` steps, in one move."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(state, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)


def load_checkpoint(
    file: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer]
) -> int:
    """Restore the state in `file`, if it exists; returns how many steps were done."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


@click.command()
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=3000, show_default=True)
@click.option("--rows", default=16, show_default=True, help="Rows of 512 tokens per step.")
@click.option("--seed", default=0, show_default=True)
@click.option("--report-every", default=500, show_default=True)
def main(**options: Any) -> None:
    """Train, printing the loss, and write the model in transformers' format."""
    out, n_steps, n_rows, seed = (options[name] for name in ("out", "steps", "rows", "seed"))
    torch.manual_seed(seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options["tokenizer"])
    training, held_out = split_stdlib()
    stream = token_stream(training, tokenizer)
    model = build_model(len(tokenizer))
    optimizers = make_optimizers(model)
    base_rates = [group["lr"] for o in optimizers for group in o.param_groups]
    out.mkdir(parents=True, exist_ok=True)
    first = load_checkpoint(out / "checkpoint.pt", model, optimizers)
    n_parameters = sum(p.numel() for p in model.parameters())
    click.echo(f"{len(stream):,} tokens, {n_parameters:,} parameters, from step {first}")
    loss_function = torch.compile(next_token_loss)
    started, losses = time.perf_counter(), []
    for step in range(first, n_steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        batch = sample_rows(stream, n_rows, generator)
        groups = [group for o in optimizers for group in o.param_groups]
        for rate, group in zip(base_rates, groups, strict=True):
            group["lr"] = rate * learning_rate_factor(step, n_steps)
        loss = loss_function(model, batch)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        if (step + 1) % options["report_every"] == 0:
            rate = (step + 1 - first) * n_rows * CONTEXT / (time.perf_counter() - started)
            bits = bits_per_byte(model, tokenizer, held_out[::6])
            click.echo(
                f"step {step + 1}: loss {sum(losses) / len(losses):.4f} nats, "
                f"{bits:.4f} bits/byte (part of held out), {rate:,.0f} tokens/s"
            )
            losses.clear()
            model.train()
            save_checkpoint(out / "checkpoint.pt", step + 1, model, optimizers)
    bits = bits_per_byte(model, tokenizer, held_out)
    click.echo(f"held out: {bits:.4f} bits/byte over {len(held_out)} files")
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    manifest = {
        "training": sorted(file.digest for file in training),
        "bits_per_byte": bits,
        "steps": n_steps,
    }
    (out / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    main()
