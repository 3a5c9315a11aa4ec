"""The memory plan: what fits is used, what does not is refused in words, and the plan is kept."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gossamer
from gossamer.attribution.budget import Sizes, at_once
from gossamer.errors import GossamerError
from gossamer.machine import free_memory
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

CPU = torch.device("cpu")
SIZES = Sizes(
    n_targets=1000, n_sources=500, n_positions=64, n_blocks=3, d_model=768, d_mlp=3072, n_heads=12,
    number=4,
)  # fmt: skip


def test_as_many_products_as_fit_and_no_more_than_the_caches_hold() -> None:
    plenty = at_once(SIZES, 10**11, CPU)
    assert plenty == 16 and at_once(SIZES, 10**11, torch.device("cuda")) == 1024
    three = SIZES.fixed() + 3 * SIZES.product()
    assert at_once(SIZES, three, CPU) == 3 and at_once(SIZES, three - 1, CPU) == 2
    assert at_once(SIZES._replace(n_positions=5000), 10**12, CPU) == 1


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    short = SIZES.fixed() + SIZES.product() - 1
    with pytest.raises(GossamerError, match=r"1,000 × 500 effects over 64 positions need") as info:
        at_once(SIZES, short, CPU)
    fits = re.search(r"Within it ([\d,]+) targets fit", str(info.value))
    assert fits is not None
    n = int(fits[1].replace(",", ""))
    assert at_once(SIZES._replace(n_targets=n), short, CPU) == 1
    with pytest.raises(GossamerError):
        at_once(SIZES._replace(n_targets=n + 1), short, CPU)
    with pytest.raises(GossamerError, match="Not one target fits.*more with memory="):
        at_once(SIZES, 1000, CPU)


def test_a_smaller_budget_changes_no_number() -> None:
    model = tiny_model("gpt2")
    first, last = "blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre"
    coders = [tiny_sae("relu", s, 16, seed=n) for n, s in enumerate((first, last))]
    ends = {"source": gossamer.Latents(first), "target": gossamer.Latents(last)}
    free = gossamer.edges(model, coders, [3, 1, 4, 1, 5], **ends)
    assert isinstance(free, gossamer.Edges)
    sizes = Sizes(len(free.targets), len(free.sources), 5, 2, 16, 64, 4, 8)
    tight = gossamer.edges(
        model, coders, [3, 1, 4, 1, 5], **ends, memory=sizes.fixed() + sizes.product()
    )
    assert isinstance(tight, gossamer.Edges)
    torch.testing.assert_close(tight.gradients, free.gradients, rtol=1e-12, atol=1e-12)
    with pytest.raises(GossamerError, match="are allowed"):
        gossamer.edges(model, coders, [3, 1, 4, 1, 5], **ends, memory=sizes.product())


def test_the_free_memory_is_that_of_the_machine() -> None:
    free = free_memory(CPU)
    assert 10**7 < free < 10**14


PEAK = """
import os, threading, time
import torch, gossamer
from transformers import GPT2Config, GPT2LMHeadModel
from gossamer.attribution import edges as module
from gossamer.models.model import Model
from tests.tiny_saes import tiny_sae

torch.manual_seed(0)
config = GPT2Config(
    n_layer=3, n_embd=256, n_head=8, n_positions=256, vocab_size=50, bos_token_id=0, eos_token_id=0
)
model = Model(GPT2LMHeadModel(config))
first, last = "blocks.0.hook_resid_pre", "blocks.2.hook_resid_post"
sites, dtype = (first, last), torch.float32
coders = [tiny_sae("topk", s, 256, seed=n, dtype=dtype) for n, s in enumerate(sites)]
ends = dict(source=gossamer.Latents(first), target=gossamer.Latents(last))
gossamer.edges(model, coders, [1, 2, 3], **ends)
planned = []
plan = module.at_once
def noted(sizes, memory, device):
    n = plan(sizes, memory, device)
    planned.append(sizes.fixed() + n * sizes.product())
    return n
module.at_once = noted
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before, peak, done = resident(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, resident())
watcher = threading.Thread(target=watch)
watcher.start()
gossamer.edges(model, coders, [i % 50 for i in range(256)], **ends)
done.set()
watcher.join()
print(planned[0], peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what is resident.")
def test_the_plan_is_kept() -> None:
    """The peak that the system saw, above that of a smaller call, beside what was planned."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(gossamer.__file__).parent.parent,
        timeout=300,
    )
    planned, measured = map(int, done.stdout.split()[-2:])
    assert 0.1 * planned < measured < 1.3 * planned
