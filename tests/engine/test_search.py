import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from stopping import stop_after

from sgenas import trees
from sgenas.bilevel import (
    SGD,
    SGE,
    BilevelProblem,
    ConjugateGradient,
    EvolutionStrategies,
    FiniteDifference,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.inner import InnerState
from sgenas.engine import Search, SearchConfig, parts, resume_search, run_search
from sgenas.engine import checkpoint as checkpoints
from sgenas.engine.meter import MEASURED
from sgenas.engine.run_folder import RunFolder, read_config
from sgenas.errors import CheckpointError, ConfigError, DivergenceError, RunFolderError
from sgenas.spaces import Genotype

Make = Callable[..., SearchConfig]


def test_a_search_fills_its_run_folder(small: Make, tmp_path: Path) -> None:
    config = small()
    result = run_search(config, tmp_path / "run")
    assert result.finished
    assert result.path == tmp_path / "run"
    names = {path.name for path in result.path.iterdir()}
    assert names == {
        *("config.json", "split.npz", "metrics.jsonl", "checkpoint.pt", "alphas.npz", "genotype.json"),
        *("checkpoint-previous.pt", "run.lock", "tensorboard"),
    }
    assert read_config(result.path) == config
    environment = json.loads((result.path / "config.json").read_text())["environment"]
    assert environment["torch"] == torch.__version__
    assert environment["device"] == "cpu"
    assert environment["images"] == {"training": 60, "validation": 60}
    assert environment["alphas"] == 2 * 2 * 8
    assert environment["classes"] == list("0123456789")
    assert Genotype.load(result.path / "genotype.json") == result.genotype

    rows = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["epoch"], row["step"]) for row in rows] == [
        *(("step", 0, 2), ("step", 0, 3), ("epoch", 0, 3)),
        *(("step", 1, 4), ("step", 1, 6), ("epoch", 1, 6)),
        *(("step", 2, 8), ("step", 2, 9), ("epoch", 2, 9)),
    ]
    last = rows[-1]
    assert last == result.epochs[-1]
    # Q = 2, N = 1: three inner passes and one outer pass a step
    assert (last["forward"], last["backward"], last["inner_steps"]) == (36, 36, 27)
    assert last["images"] == 36 * 16
    assert set(MEASURED) <= set(last)
    assert min(last[name] for name in MEASURED) > 0
    assert 0 <= last["val_accuracy"] <= 1

    alphas = np.load(result.path / "alphas.npz")
    assert alphas["normal"].shape == (4, 2, 8)
    np.testing.assert_allclose(alphas["normal_mixing"].sum(axis=-1), 1, rtol=1e-6)
    assert alphas["edges"].tolist() == [[0, 2], [1, 2]]
    split = np.load(result.path / "split.npz")
    assert sorted([*split["training"], *split["validation"]]) == list(range(120))
    assert list((result.path / "tensorboard").glob("events.out.tfevents.*"))


def test_tensorboard_has_every_number_once_after_a_resume_too(small: Make, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_search(small(log_every=1), tmp_path / "run", stop=stop_after(5))
    resume_search(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/inner_loss")] == list(range(1, 10))
    assert [event.step for event in events.Scalars("epoch/val_accuracy")] == [3, 6, 9]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [row["val_accuracy"] for row in rows if row["kind"] == "epoch"]
    shown = [event.value for event in events.Scalars("epoch/val_accuracy")]
    np.testing.assert_allclose(shown, logged, rtol=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    small: Make, tmp_path: Path, assert_same_runs: Any
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_search(small(seed=seed), tmp_path / name)
    assert_same_runs(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_runs(tmp_path / "a", tmp_path / "c")


MODES = {
    "sge": {},
    "first-order": {"estimator": {"estimator": "first-order", "directions": 10}},
    "second-order": {"estimator": {"estimator": "second-order", "directions": 10}},
    "evolution": {"estimator": {"estimator": "evolution"}},
    "auto-smoothing": {"estimator": {"smoothing": "auto", "blocks": "table"}},
    "separate": {"weights": {"weights": "separate"}, "alphas": {"alpha_optimizer": "sgd", "alpha_lr": 0.01}},
    "variates": {"estimator": {"directions": 4, "direction_kind": "antithetic", "control_variate": "both"}},
    "least-squares": {"estimator": {"combine": "least-squares", "control_variate": "memory"}},
    "seldom": {"alphas": {"alpha_every": 2}, "watch": {"eigenvalue_every": 1}},
    "warm-up": {"alphas": {"warmup_epochs": 1}, "estimator": {"inner_steps": 2}, "data": {"batch_size": 8}},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_search_equals_an_uninterrupted_one(
    mode: str, small: Make, tmp_path: Path, assert_same_runs: Any
) -> None:
    config = small(**MODES[mode])
    whole = run_search(config, tmp_path / "whole")
    for steps in (1, 3):
        path = tmp_path / f"stopped-{steps}"
        result = run_search(config, path, stop=stop_after(steps))
        assert not result.finished
        result = resume_search(path, stop=stop_after(2))
        assert not result.finished
        result = resume_search(path)
        assert result.finished
        assert result.genotype == whole.genotype
        assert_same_runs(tmp_path / "whole", path)


def test_steps_after_the_last_checkpoint_are_taken_again(
    small: Make, tmp_path: Path, assert_same_runs: Any
) -> None:
    """As after a kill: the log is ahead of the checkpoint, its last line half written."""
    config = small()
    run_search(config, tmp_path / "whole")
    run_search(config, tmp_path / "killed", stop=stop_after(4))
    log = tmp_path / "killed" / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + b'{"kind": "step", "epoch": 1, "step": 6}\n{"kind": "st')
    resume_search(tmp_path / "killed")
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


def by_hand(search: Search, steps: int, separate: bool, estimator: Any) -> tuple[Any, Any]:
    """The first `steps` steps of an epoch, written out from Algorithm 1 and the design."""
    config = search.config

    def loss(weights: trees.Tree, alphas: trees.Tree, batch: Any) -> torch.Tensor:
        return F.cross_entropy(search.space.logits(weights, alphas, batch[0]), batch[1])

    sgd = SGD(0.025, 0.9, 3e-4, 5.0)
    training = BilevelProblem(loss, loss, sgd)
    own = BilevelProblem(loss, loss, SGD(0.01)) if separate else training
    state = sgd.init(search.state.weights)
    alphas = trees.clone(search.alphas)
    parameters = [alpha.requires_grad_() for alpha in alphas.values()]
    adam = torch.optim.Adam(parameters, config.alphas.alpha_lr, (0.5, 0.999), weight_decay=1e-3)
    for _ in range(steps):
        inner, outer = [next(search.inner_stream)], next(search.outer_stream)
        start = InnerState(state.weights, {}) if separate else state
        result = estimator(own, start, alphas, inner, outer, generator=search.directions)
        for name, alpha in alphas.items():
            alpha.grad = result.grad[name].clone()
        adam.step()
        state = training.run(state, alphas, inner).end if separate else result.state
    return state, trees.detach(alphas)


@pytest.mark.parametrize(
    ("changes", "estimator"),
    [
        # one way of computing on both sides: by hand there is no stacked loss to choose another
        ({"estimator": {"computation": "streamed", "smoothing": 0.01}}, SGE(2, computation="streamed")),
        (
            {
                "weights": {"weights": "separate"},
                "estimator": {"computation": "streamed", "smoothing": 0.01},
            },
            SGE(2, computation="streamed"),
        ),
        ({"estimator": {"estimator": "second-order", "directions": 10}}, FiniteDifference()),
        ({"estimator": {"estimator": "unrolled", "last_steps": 1, "directions": 10}}, Unrolled(1)),
        (
            {
                "estimator": {
                    "estimator": "neumann",
                    "products": 2,
                    "scale": 0.1,
                    "damping": 0.5,
                    "directions": 10,
                }
            },
            Neumann(2, 0.1, 0.5),
        ),
        (
            {
                "estimator": {
                    "estimator": "conjugate-gradient",
                    "products": 2,
                    "tolerance": 0.01,
                    "damping": 1.0,
                    "directions": 10,
                }
            },
            ConjugateGradient(2, 0.01, 1.0),
        ),
        (
            {"estimator": {"estimator": "evolution", "smoothing": 0.3, "direction_kind": "antithetic"}},
            EvolutionStrategies(2, 0.3, "antithetic"),
        ),
    ],
)
def test_the_loop_is_algorithm_1(changes: Any, estimator: Any, small: Make, tmp_path: Path) -> None:
    config = small(**changes)
    search = Search(config, RunFolder(tmp_path))
    separate = config.weights.weights == "separate"
    state, alphas = by_hand(Search(config, RunFolder(tmp_path)), 3, separate, estimator)
    for _ in range(3):
        search._take_step()
    for name, tensor in alphas.items():
        assert torch.equal(search.alphas[name], tensor)
    for name, tensor in state.weights.items():
        assert torch.equal(search.state.weights[name], tensor)


@pytest.mark.parametrize(
    ("computation", "grad_clip"),
    [("streamed", None), ("streamed", 0.5), ("vectorised", None), ("vectorised", 0.5), ("directional", None)],
)
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_every_computation_gives_the_same_steps(
    computation: str, grad_clip: float | None, inner_steps: int, small: Make, tmp_path: Path
) -> None:
    """On the real supernet, in float64: in float32 rounding flips kinks, and the numbers with them."""

    def after_two_steps(name: str) -> dict[str, torch.Tensor]:
        config = small(
            estimator={"computation": name, "inner_steps": inner_steps},
            weights={"grad_clip": grad_clip},
            space={"nodes": 2},
        )
        search = Search(config, RunFolder(tmp_path))
        double = trees.map_tree(torch.Tensor.double, search.state.weights)
        search.state = InnerState(double, trees.zeros_like(double))
        search.alphas = trees.map_tree(torch.Tensor.double, search.alphas)
        search.alpha_optimizer = search._alpha_optimizer()
        streams = search.inner_stream, search.outer_stream
        for stream in streams:
            augment = stream._augmentation
            stream._augmentation = lambda images, draw, augment=augment: augment(images, draw).double()
        search._take_step()
        values = search._take_step()
        return values | search.alphas | search.state.weights

    definition, other = after_two_steps("loop"), after_two_steps(computation)
    for name, value in definition.items():
        torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-9)


def test_alphas_stand_still_in_the_warm_up_and_move_after_it(small: Make, tmp_path: Path) -> None:
    result = run_search(small(alphas={"warmup_epochs": 2}), tmp_path / "run")
    alphas = np.load(result.path / "alphas.npz")["normal"]
    assert (alphas[0] == alphas[2]).all()
    assert (alphas[2] != alphas[3]).any()
    assert [row["outer_loss"] is None for row in result.epochs] == [True, True, False]


def test_learning_rate_falls_by_a_cosine(small: Make, tmp_path: Path) -> None:
    search = Search(small(epochs=10, weights={"lr": 0.1, "lr_min": 0.02}), RunFolder(tmp_path))
    rates = []
    for search.epoch in range(10):
        rates.append(search.learning_rate())
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.06)
    assert rates[9] == pytest.approx(0.02 + 0.04 * (1 + math.cos(0.9 * math.pi)))


def test_a_search_learns(small: Make, tmp_path: Path) -> None:
    config = small(
        epochs=6,
        data={"train_images": 600, "batch_size": 32},
        space={"channels": 4, "nodes": 2},
        estimator={"estimator": "first-order", "directions": 10},
        weights={"lr": 0.1},
    )
    result = run_search(config, tmp_path / "run")
    accuracies = [row["val_accuracy"] for row in result.epochs]
    assert accuracies[-1] > 0.5, "chance is 0.1"
    assert result.epochs[-1]["val_loss"] < result.epochs[0]["val_loss"]


def test_images_are_evaluated_in_batches_of_mixed_classes(small: Make, tmp_path: Path) -> None:
    """Batch statistics of batches of one class would be misleading."""
    config = small(
        epochs=4,
        data={"train_images": 400, "batch_size": 20},
        space={"channels": 4},
        estimator={"estimator": "first-order", "directions": 10},
        weights={"lr": 0.1},
    )
    result = run_search(config, tmp_path / "run")
    search = Search(config, RunFolder(tmp_path / "run"))
    labels = [labels for _, labels in search._validation.batches()]
    assert min(len(batch.unique()) for batch in labels) > 5
    assert result.epochs[-1]["val_accuracy"] > 0.3


def test_runs_name_their_data_by_absolute_paths(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(8):
            pixels = draw.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    config = small(epochs=2, data={"data": "folder:images", "train_images": None, "batch_size": 4})
    run_search(config, "run", stop=stop_after(1))
    monkeypatch.chdir("/")
    assert read_config(tmp_path / "run").data.data == f"folder:{tmp_path / 'images'}"
    assert resume_search(tmp_path / "run").finished


def test_paths_of_each_kind_become_absolute(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    for source, expected in {
        "parquet:a, b": f"parquet:{tmp_path}/a,{tmp_path}/b",
        "folder:a,b": f"folder:{tmp_path}/a,b",
        "hf:saved": f"hf:{tmp_path}/saved",
        # no folder here: a name
        "hf:someone/pictures": "hf:someone/pictures",
        "cifar10": "cifar10",
    }.items():
        config = parts.with_absolute_paths(small(data={"data": source}))
        assert config.data.data == expected


def test_a_folder_that_cannot_be_written_is_named(small: Make, tmp_path: Path) -> None:
    run_search(small(), tmp_path / "run", stop=stop_after(2))
    (tmp_path / "run" / "metrics.jsonl").rename(tmp_path / "run" / "old.jsonl")
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"metrics.jsonl (cannot be written: Is a directory|must have)"):
        resume_search(tmp_path / "run")


def test_no_global_generator_is_used(small: Make, tmp_path: Path) -> None:
    import rich.style  # noqa: F401  its import alone draws a number

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run_search(small(epochs=1), tmp_path / "run")
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_run_is_never_overwritten_unasked(small: Make, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run_search(small(epochs=1), path)
    (path / "notes.txt").write_text("mine")
    before = (path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match="already holds a run.*--overwrite"):
        run_search(small(epochs=1), path)
    assert (path / "metrics.jsonl").read_bytes() == before
    run_search(small(epochs=1, seed=3), path, overwrite=True)
    assert read_config(path).seed == 3
    assert (path / "metrics.jsonl").read_bytes() != before
    assert (path / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_files_is_refused(small: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match="must be new or empty"):
        run_search(small(), tmp_path, overwrite=True)
    with pytest.raises(RunFolderError, match="must be a folder, got a file"):
        run_search(small(), tmp_path / "thesis.tex")


def test_bad_input_leaves_nothing_behind(small: Make, tmp_path: Path) -> None:
    for config, message in (
        (small(data={"batch_size": 64}), "--batch-size must be at most the 60 images that train, got 64"),
        (small(estimator={"inner_steps": 4}), "--inner-steps must be at most the 3 batches of an epoch"),
        (small(data={"cutout": 9}), "--cutout must be at most the image's side 8, got 9"),
        (small(device="abacus"), "--device must be auto or a device of this machine, got 'abacus'"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_search(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestBadCheckpoints:
    """With no older one to fall back to: test_checkpoint_pair.py has that."""

    @pytest.fixture
    def path(self, small: Make, tmp_path: Path) -> Path:
        run_search(small(), tmp_path / "run", stop=stop_after(2))
        (tmp_path / "run" / "checkpoint-previous.pt").unlink()
        return tmp_path / "run"

    def test_truncated(self, path: Path) -> None:
        checkpoint = path / "checkpoint.pt"
        whole = checkpoint.read_bytes()
        contents = [whole[:size] for size in (0, 10, len(whole) // 2, len(whole) - 10)]
        # short texts that the restricted unpickler takes for commands
        for content in [*contents, b"abc", b".", b"a"]:
            checkpoint.write_bytes(content)
            with pytest.raises(CheckpointError, match=rf"checkpoint.pt is damaged \({len(content)} bytes\)"):
                resume_search(path)
        assert (path / "metrics.jsonl").exists()

    def test_missing(self, path: Path) -> None:
        (path / "checkpoint.pt").unlink()
        with pytest.raises(CheckpointError, match="checkpoint.pt does not exist"):
            resume_search(path)

    def test_from_another_configuration(self, path: Path) -> None:
        data = json.loads((path / "config.json").read_text())
        data["config"]["data"]["batch_size"] = 8
        (path / "config.json").write_text(json.dumps(data))
        with pytest.raises(CheckpointError, match=r"data.batch_size is 8 in config.json, 16 there"):
            resume_search(path)

    def test_of_other_images(self, path: Path) -> None:
        state = torch.load(path / "checkpoint.pt", weights_only=True)
        checkpoints.save(path / "checkpoint.pt", state | {"images_digest": "0"})
        with pytest.raises(CheckpointError, match="made with other images than --data digits holds now"):
            resume_search(path)

    def test_of_something_else(self, path: Path) -> None:
        checkpoints.save(path / "checkpoint.pt", {"format": "another"})
        with pytest.raises(CheckpointError, match="is no checkpoint of sgenas"):
            resume_search(path)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("version", torch.ones(2)),
            ("format", [1]),
            ("epoch", None),
            ("epoch", -1),
            ("epoch", 10**30),
            ("step", "3"),
            ("step_in_epoch", torch.ones(2)),
            ("stopped_at", "1"),
            ("stopped_at", 10**18),
            ("history", 5),
            ("inner_stream", {"start": None, "taken": 10**12}),
            ("directions", "x" * 10_000),
            ("config", torch.ones(2)),
        ],
    )
    def test_values_of_other_kinds(self, path: Path, name: str, value: Any) -> None:
        """Each is one line, and not a long one."""
        state = torch.load(path / "checkpoint.pt", weights_only=True)
        checkpoints.save(path / "checkpoint.pt", state | {name: value})
        (path / "checkpoint.previous.pt").unlink(missing_ok=True)
        with pytest.raises(CheckpointError) as caught:
            resume_search(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000

    def test_a_setting_that_is_a_tensor(self, path: Path) -> None:
        state = torch.load(path / "checkpoint.pt", weights_only=True)
        state["config"]["epochs"] = torch.ones(2)
        checkpoints.save(path / "checkpoint.pt", state)
        with pytest.raises(
            CheckpointError, match="from another configuration: epochs is 3 in config.json, tensor"
        ):
            resume_search(path)

    def test_of_another_version(self, path: Path) -> None:
        state = torch.load(path / "checkpoint.pt", weights_only=True)
        checkpoints.save(path / "checkpoint.pt", state | {"version": 99})
        with pytest.raises(CheckpointError, match="version must be 1, got 99"):
            resume_search(path)

    @pytest.mark.parametrize("field", ["weights", "alpha_optimizer", "inner_stream", "history", "sums"])
    def test_with_parts_that_do_not_fit(self, path: Path, field: str) -> None:
        state = torch.load(path / "checkpoint.pt", weights_only=True)
        state[field] = {"other": torch.zeros(2)} if field != "history" else [{"other": torch.zeros(2)}]
        checkpoints.save(path / "checkpoint.pt", state)
        with pytest.raises(CheckpointError, match="does not fit this search"):
            resume_search(path)

    def test_that_would_run_code(self, path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return (Path.touch, (path / "executed",))

        checkpoints.save(path / "checkpoint.pt", {"weights": Evil()})
        with pytest.raises(CheckpointError, match="damaged"):
            resume_search(path)
        assert not (path / "executed").exists()

    def test_with_a_log_that_lost_lines(self, path: Path) -> None:
        (path / "metrics.jsonl").write_bytes(b"")
        with pytest.raises(RunFolderError, match="must have at least .* bytes as at the checkpoint, got 0"):
            resume_search(path)


def test_resume_of_a_finished_search_returns_it(small: Make, tmp_path: Path) -> None:
    first = run_search(small(epochs=1), tmp_path / "run")
    again = resume_search(tmp_path / "run")
    assert again.finished
    assert again.genotype == first.genotype
    assert again.epochs == ()


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        resume_search(tmp_path / "none")
    with pytest.raises(RunFolderError, match="holds no run"):
        resume_search(tmp_path)


def test_a_diverging_search_says_so_and_keeps_its_checkpoint(small: Make, tmp_path: Path) -> None:
    config = small(weights={"lr": 1e30, "grad_clip": None})
    with pytest.raises(DivergenceError, match=r"outer_loss is nan after inner step 1 at step 1 .*lower --lr"):
        run_search(config, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 0


def test_no_checkpoint_is_written_of_a_search_that_diverged_unseen(small: Make, tmp_path: Path) -> None:
    """In a warm-up, where no estimator looks at the losses."""
    config = small(
        weights={"lr": 1e38, "grad_clip": None},
        alphas={"warmup_epochs": 1},
        log_every=100,
        checkpoint_every=1,
    )
    with pytest.raises(DivergenceError, match=r"norm of the weights is (inf|nan) at step [12] "):
        run_search(config, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["weights"].values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_search_on_the_gpu(small: Make, tmp_path: Path, assert_same_runs: Any) -> None:
    for name in "ab":
        run_search(small(device="cuda"), tmp_path / name)
    assert_same_runs(tmp_path / "a", tmp_path / "b")


def test_bfloat16_trains_with_the_first_order_estimator(small: Make, tmp_path: Path) -> None:
    rows = {}
    for precision in ("float32", "bfloat16"):
        config = small(estimator={"estimator": "first-order", "directions": 10}, precision=precision)
        rows[precision] = run_search(config, tmp_path / precision).epochs
    losses = [[row["inner_loss"] for row in rows[name]] for name in rows]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["first-order", "sge"])
def test_compiled_search_follows_the_plain_one(estimator: str, small: Make, tmp_path: Path) -> None:
    """Long: the compiler takes a minute on a CPU."""
    rows = {}
    for compiled in (False, True):
        directions = 2 if estimator == "sge" else 10
        config = small(
            epochs=1, estimator={"estimator": estimator, "directions": directions}, compile=compiled
        )
        rows[compiled] = run_search(config, tmp_path / str(compiled)).epochs[-1]
    for name in ("inner_loss", "outer_loss", "val_loss"):
        assert rows[True][name] == pytest.approx(rows[False][name], rel=1e-2)
