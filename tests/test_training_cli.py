"""`gossamer train`: what it trains, what it writes, what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from gossamer.cli.train import train_command
from gossamer.cli.train_configs import configs_of
from gossamer.errors import FormatError, GossamerError
from gossamer.saes import JumpReLU, TopK, load_native
from tests.tiny_models import tiny_model
from tests.tiny_training import OTHER, SITE, dictionary_rows

THIRD = "blocks.1.hook_resid_pre"
SMALL = ["--d-sae", "40", "--tokens", "2e3", "--batch", "64"]


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    """A file of activations of three sites."""
    x = dictionary_rows(500, 40, 16, 3)[0]
    save_file({SITE: x, OTHER: -x, THIRD: 2 * x}, tmp_path / "acts.safetensors")
    return tmp_path / "acts.safetensors"


def ran(acts: Path, out: Path, *arguments: str) -> Result:
    arguments = (*SMALL, "--from", str(acts), *arguments, "--out", str(out))
    return CliRunner().invoke(train_command, arguments, catch_exceptions=False)


def test_it_trains_writes_and_continues(acts: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "run", tmp_path / "curves.html"
    options = ["--k", "3", "--site", SITE, "--html", str(page), "--log-axis", "--json"]
    first = ran(acts, out, *options)
    (row,) = json.loads(first.stdout)["saes"]
    assert row["directory"] == str(out) and row["tokens"] == 2048 and row["l0"] <= 3
    assert first.stderr == "500 tokens an epoch, 4.1 epochs.\n"
    sae = load_native(out)
    assert isinstance(sae.selection, TopK) and sae.selection.k == 3 and sae.site_in == SITE
    assert '"log": true' in page.read_text()
    assert ran(acts, out, *options).output == first.output  # read, not trained again
    with pytest.raises(GossamerError, match="other settings"):
        ran(acts, out, *options, "--seed", "1")
    (out / "log.jsonl").unlink()
    with pytest.raises(FormatError, match=r"log.jsonl .* missing"):
        ran(acts, out, *options)


def test_a_bare_array_takes_its_site_from_the_command(tmp_path: Path) -> None:
    np.save(tmp_path / "acts.npy", dictionary_rows(500, 40, 16, 3)[0].numpy())
    ran(tmp_path / "acts.npy", tmp_path / "run", "--k", "3", "--site", SITE)
    assert load_native(tmp_path / "run").site_in == SITE
    with pytest.raises(GossamerError, match="does not say where it is from"):
        ran(tmp_path / "acts.npy", tmp_path / "other", "--k", "3")


def test_a_sweep_and_several_sites_are_one_run(acts: Path, tmp_path: Path) -> None:
    sites = ["--site", SITE, "--site", OTHER]
    out = tmp_path / "run"
    result = ran(acts, out, "--sae", "batchtopk", "--k", "2", "--k", "4", *sites)
    assert result.exit_code == 0 and "FVU" in result.output
    folders = sorted(path.parent.name for path in out.glob("*/sae.json"))
    assert folders == [f"00-{SITE}", f"01-{SITE}", f"02-{OTHER}", f"03-{OTHER}"]
    assert isinstance(load_native(out / folders[0]).selection, JumpReLU)


def test_transcoders_are_pairs_of_sites(acts: Path, tmp_path: Path) -> None:
    pairs = ["--site", SITE, "--site-out", OTHER, "--site", OTHER, "--site-out", THIRD]
    ran(acts, tmp_path / "run", "--k", "2", *pairs)
    found = [load_native(tmp_path / "run" / name) for name in (OTHER, THIRD)]
    assert [(sae.site_in, sae.site_out) for sae in found] == [(SITE, OTHER), (OTHER, THIRD)]
    with pytest.raises(GossamerError, match="a --site-out for each --site, got 1 for 2"):
        ran(acts, tmp_path / "other", "--k", "2", *pairs[:4], "--site", OTHER)


@pytest.mark.parametrize(
    "options",
    [
        ["--sae", "relu", "--sparsity", "2", "--norm", "unit"],
        ["--sae", "gated", "--remedy", "resample", "--sparsity-warmup", "0"],
        ["--sae", "jumprelu", "--penalty", "l0", "--bandwidth", "0.3"],
        ["--sae", "jumprelu", "--penalty", "target", "--target-l0", "4"],
        ["--sae", "matryoshka", "--k", "2", "--prefix", "5", "--prefix-weight", "2"],
        ["--sae", "abstopk", "--k", "2"],
        ["--sae", "panneal", "--sparsity", "2", "--p-end", "0.5"],
        ["--k", "2", "--bfloat16"],
        ["--k", "2", "--site-out", OTHER, "--skip"],
    ],
)
def test_each_architecture(acts: Path, options: list[str], tmp_path: Path) -> None:
    result = ran(acts, tmp_path / "run", "--site", SITE, *options)
    assert result.exit_code == 0
    assert load_native(tmp_path / "run").is_transcoder == ("--skip" in options)


def test_every_number_reaches_the_config(acts: Path, tmp_path: Path) -> None:
    options = [
        *("--warmup-steps", "3", "--decay", "0.5", "--clip", "0", "--rate", "2e-3"),
        *("--dead-after", "1e2", "--aux-weight", "0.5", "--k-aux", "7", "--remedy", "auxk"),
        *("--start-b-dec", "zero", "--keep", "1", "--log-steps", "5"),
        *("--checkpoint-seconds", "0"),
    ]
    out = tmp_path / "run"
    ran(acts, out, "--k", "3", "--site", SITE, *options)
    (config,) = json.loads((out / "run.json").read_text())["configs"]
    assert config["optimizer"] == {
        **{"rate": 2e-3, "warmup_steps": 3, "decay": 0.5, "clip": None},
        **{"betas": [0.9, 0.999], "epsilon": 1e-8},
    }
    assert config["dead"] == {
        **{"after_tokens": 100, "aux_weight": 0.5, "k_aux": 7, "remedy": "auxk"},
        "resample_tokens": None,
    }
    assert config["start"]["b_dec"] == "zero"
    assert len(list((out / "checkpoints").iterdir())) == 1
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20, 25, 30, 32]


def test_a_model_that_runs_live_takes_corpus_and_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    def load(name: str, *, device: str | None) -> object:
        heard.append((name, device))
        return tiny_model("gpt2", torch.float32)

    monkeypatch.setattr("gossamer.library.load_model", load)
    np.save(tmp_path / "ids.npy", np.arange(600).reshape(20, 30) % 37)
    command = [
        *(*SMALL, "--k", "3", "--model", "tiny", "--site", SITE, "--device", "cpu"),
        *("--corpus", str(tmp_path / "ids.npy"), "--out", str(tmp_path / "run")),
    ]
    more = ["--context", "8", "--exclude-special"]
    CliRunner().invoke(train_command, [*command, *more], catch_exceptions=False)
    source = json.loads((tmp_path / "run" / "run.json").read_text())["source"]
    assert (source["corpus"], source["context"], source["exclude_special"]) == ("ids.npy", 8, True)
    assert heard == [("tiny", "cpu")]
    with pytest.raises(GossamerError, match="context is how many tokens a block has"):
        CliRunner().invoke(train_command, [*command, "--context", "1"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --k"),
        (["--sae", "relu", "--k", "3"], "--k is for .*, topk, not for relu"),
        (["--k", "3", "--sparsity", "1"], "--sparsity is for"),
        (["--k", "3", "--sparsity-warmup", "0"], "--sparsity-warmup is for"),
        (["--k", "3", "--bandwidth", "0"], "--bandwidth is for"),
        (["--k", "3", "--model", "pico-python"], "Give either --from"),
        (["--k", "3", "--corpus", "stdlib"], "--corpus is for --model"),
        (["--k", "3", "--context", "0"], "--context is for --model"),
        (["--k", "3", "--exclude-special"], "--exclude-special is for --model"),
        (["--k", "3", "--site", "blocks.0.hook_resid_prr"], "Near names"),
        (["--k", "3", "--device", "cuda:77"], 'no device "cuda:77"'),
        (["--k", "3", "--remedy", "none", "--k-aux", "5"], "are for --remedy auxk, not for none"),
        (["--k", "3", "--site", SITE, "--site-out", OTHER, "--start-b-dec", "zero"], "autoenc"),
    ],
)
def test_mistakes_end_in_one_sentence(
    acts: Path, options: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(GossamerError, match=message):
        ran(acts, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


NUMBERS = {
    "--d-sae": ("0", "-3"),
    "--k": ("0", "-1", "41"),
    "--tokens": ("nan", "inf", "-1", "0", "2.5"),
    "--batch": ("0", "-5"),
    "--rate": ("nan", "inf", "-1", "0"),
    "--warmup-steps": ("-1",),
    "--decay": ("nan", "inf", "-0.1", "1.5"),
    "--clip": ("nan", "inf", "-1"),
    "--dead-after": ("nan", "inf", "0", "-1", "2.5"),
    "--aux-weight": ("nan", "inf", "-1"),
    "--k-aux": ("0", "-1"),
    "--seed": ("-1", str(2**70)),
    "--checkpoint-seconds": ("nan", "inf", "-1"),
    "--keep": ("0", "-1"),
    "--log-steps": ("0", "-1"),
}
PENALIZED = {
    "--sparsity": ("nan", "inf", "-1"),
    "--sparsity-warmup": ("nan", "inf", "-1", "2"),
    "--bandwidth": ("nan", "inf", "-1", "0"),
    "--target-l0": ("nan", "inf", "-1", "0"),
}


def test_numbers_out_of_range_end_in_one_sentence(acts: Path, tmp_path: Path) -> None:
    topk = ["--k", "3"]
    jump = ["--sae", "jumprelu", "--penalty", "target", "--target-l0", "4"]
    for numbers, plain in ((NUMBERS, topk), (PENALIZED, jump)):
        for option, values in numbers.items():
            for value in values:
                with pytest.raises(GossamerError, match=rf"got .*{value[:3]}"):
                    ran(acts, tmp_path / "out", "--site", SITE, *plain, option, value)
    assert not (tmp_path / "out").exists()


def test_where_it_cannot_write_is_said(acts: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(GossamerError, match=r"nowhere.curves.html cannot be written"):
        page = str(tmp_path / "nowhere" / "curves.html")
        ran(acts, tmp_path / "run", "--k", "3", "--site", SITE, "--html", page)
    assert not (tmp_path / "run").exists()
    inside = str(tmp_path / "run" / "curves.html")
    ran(acts, tmp_path / "run", "--k", "3", "--site", SITE, "--html", inside)
    for out, message in (("notes", "is a file"), ("notes/run", "cannot be made")):
        with pytest.raises(GossamerError, match=message):
            ran(acts, tmp_path / out, "--k", "3", "--site", SITE)


def test_tensorboard_leaves_nothing_of_a_run_that_is_refused(
    acts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Writer:
        def __init__(self, directory: str) -> None:
            made.append(directory)

        def add_scalar(self, *_: object) -> None:
            pass

        def flush(self) -> None:
            pass

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with pytest.raises(GossamerError, match="harvest that site"):
        ran(acts, tmp_path / "a", "--k", "3", "--site", "blocks.7.hook_resid_pre", "--tensorboard")
    assert made == []
    ran(acts, tmp_path / "b", "--k", "3", "--site", SITE, "--tensorboard")
    assert made == [str(tmp_path / "b" / "tensorboard")]


@pytest.mark.slow
def test_control_c_is_said_and_goes_on(acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "gossamer", "train", "--from", str(acts), "--site", SITE),
        *("--d-sae", "40", "--k", "3", "--tokens", "1e8", "--batch", "64", "--out", str(out)),
    ]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log, start = out / "log.jsonl", time.monotonic()
    while not log.exists() and time.monotonic() - start < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    (checkpoint,) = (out / "checkpoints").iterdir()
    step = int(checkpoint.stem.removeprefix("step-"))
    assert step > 0 and process.returncode == 130 and output == ""
    assert errors.splitlines()[-1] == (
        f"Stopped after step {step}; run the same command again to go on."
    )


def test_the_configs_of_a_command_are_what_the_config_would_be() -> None:
    """What is not given is left to the configs' own defaults."""
    from gossamer.training.config import TrainConfig
    from gossamer.training.jumprelu import JumpReLUConfig

    words = ["--sae", "jumprelu", "--d-sae", "40", "--from", "acts", "--out", "run"]
    options = train_command.make_context("train", words).params
    assert configs_of(options) == [TrainConfig(sae=JumpReLUConfig(), d_sae=40, n_tokens=2_000_000)]
