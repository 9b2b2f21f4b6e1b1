import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sgenas.errors import RunDirError
from sgenas.experiments.grid import Dataset, Grid, Job
from sgenas.experiments.outcome import JobStatus, is_done, read_outcome
from sgenas.experiments.run_job import run_job
from sgenas.run.checkpoint import load_checkpoint
from sgenas.run.run_dir import RunDir
from sgenas.searching.config import SearchConfig
from sgenas.spaces import Genotype, TopEdges
from sgenas.spaces.networks import network_size


def after(steps: int) -> Callable[[], bool]:
    """A stop that is true at its ``steps``-th question."""
    asked = iter(range(steps, -1, -1))
    return lambda: next(asked, 0) <= 1


def last_row(path: Path) -> dict:
    return json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture
def job(grid: Grid) -> Job:
    return grid.job("digits/darts-first-order/seed-0")


def test_job_searches_trains_and_measures(job: Job) -> None:
    assert read_outcome(job) is None
    assert str(JobStatus.of(job)) == "not begun"
    outcome = run_job(job, progress=False)
    assert outcome is not None
    assert outcome == read_outcome(job)
    assert is_done(job)
    assert SearchConfig.from_dict(RunDir(job.search_dir).read_config("search")["config"]) == job.search
    genotype = Genotype.load(job.search_dir / "genotype.json")
    figures = outcome.figures
    assert figures is not None
    search, training = last_row(job.search_dir), last_row(job.training_dir)
    assert figures.test_accuracy == training["test_accuracy"]
    assert figures.best_test_accuracy == training["best_test_accuracy"]
    assert (figures.search_seconds, figures.training_seconds) == (search["seconds"], training["seconds"])
    # two passes at each of 2 x 3 steps
    assert figures.forward == 12
    assert (figures.test_images, figures.genotype) == (30, genotype)
    size = network_size(genotype, channels=2, layers=3, num_classes=10, resolution=8, input_channels=1)
    assert (figures.params, figures.macs) == (size.params, size.macs)
    assert f"{torch.get_num_threads()} thread" in figures.device
    status = JobStatus.of(job)
    assert (status.state, status.stage, status.epoch, status.epochs) == ("done", "training", 2, 2)

    # what is done is not run again, and a damaged outcome is written again from the runs
    before = (job.training_dir / "checkpoint.safetensors").stat().st_mtime_ns
    assert run_job(job, progress=False) == outcome
    assert (job.training_dir / "checkpoint.safetensors").stat().st_mtime_ns == before
    (job.path / "outcome.json").write_text('{"when": "to')
    assert not is_done(job)
    again = run_job(job, progress=False)
    assert again is not None
    assert again.figures == figures

    # without its training run, a job is not done
    for file in job.training_dir.glob("*"):
        file.unlink()
    assert not is_done(job)


@pytest.mark.parametrize(
    "steps", [2, pytest.param(8, marks=pytest.mark.slow)], ids=["in the search", "in the training"]
)
def test_stopped_job_resumes_bit_for_bit(job: Job, steps: int, tmp_path: Path) -> None:
    assert run_job(job, stop=after(steps), progress=False) is None
    assert read_outcome(job) is None
    assert JobStatus.of(job).stage == ("search" if steps == 2 else "training")
    outcome = run_job(job, progress=False)
    other = replace(job, grid=tmp_path / "other")
    straight = run_job(other, progress=False)
    assert outcome is not None
    assert straight is not None
    assert outcome.figures is not None
    assert straight.figures is not None
    assert outcome.figures.test_accuracy == straight.figures.test_accuracy
    states = [load_checkpoint(each.training_dir / "checkpoint.safetensors")["own"] for each in (job, other)]
    leaves = [torch.utils._pytree.tree_leaves(state) for state in states]
    for ours, theirs in zip(*leaves, strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_cell_without_operations_is_a_failure_with_its_reason(grid: Grid) -> None:
    job = grid.job("digits/fair-darts-first-order/seed-0")
    search = replace(job.entry.search, discretization=TopEdges(threshold=0.99))
    job = replace(job, entry=replace(job.entry, search=search))
    outcome = run_job(job, progress=False)
    assert outcome is not None
    assert (outcome.done, outcome.stage is None) == (False, False)
    assert outcome.reason
    assert read_outcome(job) == outcome


def test_job_with_other_settings_in_its_directory_fails_and_keeps_the_run(job: Job) -> None:
    assert run_job(job, stop=after(2), progress=False) is None
    changed = replace(job, entry=replace(job.entry, search=replace(job.entry.search, epochs=3)))
    outcome = run_job(changed, progress=False)
    assert outcome is not None
    assert outcome.stage == "search"
    assert "epochs" in str(outcome.reason)
    # a failed job is tried again
    again = run_job(job, progress=False)
    assert again is not None
    assert again.done


def test_bug_is_a_failure_and_its_traceback_is_printed(
    job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of a bug\nin two lines")

    monkeypatch.setattr(SearchConfig, "run", broken)
    outcome = run_job(job)
    assert outcome is not None
    assert (outcome.stage, outcome.reason) == ("search", "ZeroDivisionError: of a bug in two lines")
    assert "Traceback" in capfd.readouterr().err


def test_job_is_run_by_one_process(job: Job) -> None:
    with job.locked(), pytest.raises(RunDirError, match="in use"):
        run_job(job)
    assert read_outcome(job) is None


def lossless_images(path: Path, labels: np.ndarray, classes: list[str]) -> np.ndarray:
    """Writes a table in the layout of Hugging Face's CIFAR-100, images as lossless WebP; returns them (N, H, W, C)."""
    images = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    encoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "WEBP", lossless=True)
        encoded.append({"bytes": file.getvalue(), "path": None})
    features = {"fine_label": {"names": classes, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {"img": encoded, "fine_label": labels, "coarse_label": labels // 5}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return images


def test_job_on_lossless_images_of_a_hundred_named_classes(job: Job, tmp_path: Path) -> None:
    classes, labels = [f"class {index:02}" for index in range(100)], np.arange(200) % 100
    train = lossless_images(tmp_path / "cifar100-train.parquet", labels, classes)
    lossless_images(tmp_path / "cifar100-test.parquet", labels[:100], classes)
    data = Dataset.parse(f"cifar100=parquet:{tmp_path}")
    search, training = (
        replace(config, data=replace(config.data, data=data.spec, train_images=None, batch_size=50))
        for config in (job.entry.search, replace(job.entry.training, channels=4))
    )
    training = replace(training, data=replace(training.data, test_images=None))
    job = replace(job, entry=replace(job.entry, dataset=data, search=search, training=training))
    outcome = run_job(job, progress=False)
    assert outcome is not None
    assert outcome.figures is not None, outcome.reason
    assert outcome.figures.test_images == 100
    size = network_size(outcome.figures.genotype, channels=4, layers=3, num_classes=100, resolution=8)
    assert outcome.figures.params == size.params
    facts = RunDir(job.training_dir).read_config("training")["environment"]
    assert facts["classes"] == classes
    # the statistics that normalize are those of the images themselves
    assert facts["mean"] == pytest.approx((train / 255).mean((0, 1, 2)))
    assert facts["std"] == pytest.approx((train / 255).std((0, 1, 2)))
