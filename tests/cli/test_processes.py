"""`gloss-graph train` under torchrun, two processes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from processes import together

from gloss_graph.cli import main
from gloss_graph.training import TextClassifier

from .conftest import fast

ROOT = Path(__file__).resolve().parents[2]


def torchrun(folder: Path, *words: object) -> tuple[int, list[tuple[str, str]]]:
    """Exit status of torchrun, and what each process wrote to stdout and stderr."""
    script = folder / "command.py"
    script.write_text("from gloss_graph.cli import main\n\nraise SystemExit(main())\n")
    logs = folder / "logs"
    options = ["--nproc_per_node", "2", "--redirects", "3", "--log-dir", logs]
    words = (sys.executable, "-m", "torch.distributed.run", *options, script, *words)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "80",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [str(word) for word in words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    written = [
        tuple(
            next(logs.glob(f"*/attempt_0/{rank}/{stream}.log")).read_text(encoding="utf-8")
            for stream in ("stdout", "stderr")
        )
        for rank in range(2)
    ]
    return done.returncode, written


def train(rank: int, folder: Path) -> list[str]:
    """The command in a process that knows all that torchrun tells it; what it wrote."""
    streams = [folder / f"{rank}.{name}" for name in ("out", "err")]
    for number, file in enumerate(streams, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ["COLUMNS"] = "80"
    assert main(json.loads((folder / "words.json").read_text())) == 0
    sys.stdout.flush()
    sys.stderr.flush()
    return [file.read_text(encoding="utf-8") for file in streams]


@pytest.mark.slow  # by default `training/test_processes.py` writes a run of two processes
@pytest.mark.parametrize("launched", [False, True])
def test_one_run_folder_and_one_voice(
    tmp_path: Path, files: tuple[Path, Path], encoder_folder: Path, launched: bool
) -> None:
    out = tmp_path / "run"
    words = ["train", "--train", str(files[0]), "--test", str(files[1])]
    words += fast(encoder_folder, out)
    if launched:
        status, (first, second) = torchrun(tmp_path, *words)
        assert status == 0, first[1]
    else:
        (tmp_path / "words.json").write_text(json.dumps(words))
        first, second = map(tuple, together(train, tmp_path))
    assert "propagated F1" in first[0]
    assert f"Run folder: {out}" in first[0]
    assert "Warning" not in first[1], first[1]
    assert second == ("", "")

    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == 3
    assert f"{100 * metrics['test.macro_f1']:.1f}" in first[0]
    history = pd.read_csv(out / "history.csv")
    assert history["step"].max() == 3
    assert {path.name for path in out.iterdir()} >= {"model", "memory", "training.png"}
    model = TextClassifier.load(out / "model")
    assert model.encoder.encode(["a graph"]).isfinite().all()


@pytest.mark.slow
def test_a_refusal_ends_all_processes(
    tmp_path: Path, files: tuple[Path, Path], encoder_folder: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "kept.txt").write_text("mine")
    status, (first, second) = torchrun(
        tmp_path, "train", "--train", files[0], *fast(encoder_folder, out)
    )
    assert status != 0
    assert [path.name for path in out.iterdir()] == ["kept.txt"]
    assert first[0] == ""
    assert first[1].splitlines() == [
        f"Error: 'out' must be a new or empty folder ({out} holds files). Choose another name or "
        "remove it."
    ]
    assert second == ("", "")
