"""Trained networks as files for other programs: weights, a program of torch.export, or ONNX."""

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sgenas.errors import CheckpointError, RunDirError, load_extra, one_line, require, require_choice
from sgenas.files import replacing
from sgenas.functional import evaluating
from sgenas.run.run_dir import RunDir
from sgenas.spaces.networks import build
from sgenas.training.config import TrainConfig
from sgenas.training.loop import load_weights

DYNAMIC = ({0: torch.export.Dim("batch")},)


def export_run(run_dir: str | Path, format: str, out: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the trained network of a run directory to a file; see `export_network`.

    The images are normalized by ``mean`` and ``std`` under ``environment`` in the run's config.json.

    Raises:
        InvalidValueError: As `export_network`.
        RunDirError: As `trained_network`.
    """
    _check(format, Path(out), overwrite)
    network, images = trained_network(run_dir)
    return export_network(network, images, format, out, overwrite=overwrite)


def export_network(
    network: nn.Module, inputs: Tensor, format: str, out: str | Path, *, overwrite: bool = False
) -> Path:
    """Writes a network in evaluation mode to a file.

    Args:
        network: Takes one tensor and returns one.
        inputs: An example of at least two rows; the programs take any number of rows.
        format: ``"state-dict"``: the weights by name, for `safetensors.torch.load_file`; ``"torch-export"``:
            a program for `torch.export.load`; ``"onnx"``: the same as ONNX, inputs ``inputs`` and outputs
            ``outputs``.
        out: File to write.
        overwrite: Replace the file if it exists.

    Returns:
        ``out``.

    Raises:
        InvalidValueError: For another format, an existing file without ``overwrite``, missing packages, or an
            operation that the format does not have.
        RunDirError: If the file cannot be written.
    """
    out = Path(out)
    _check(format, out, overwrite)
    with evaluating(network):
        content = EXPORT_FORMATS[format](network, inputs)
    with replacing(out) as file:
        file.write(content)
    return out


def _check(format: str, out: Path, overwrite: bool) -> None:
    require_choice("format", format, tuple(EXPORT_FORMATS))
    require(overwrite or not out.exists(), "out", "a new file without overwrite", str(out))
    require(out.parent.is_dir(), "out", "in a directory that exists", str(out))


def trained_network(run_dir: str | Path) -> tuple[nn.Module, Tensor]:
    """The network of a training run, and two images of zeros of the size that it was trained with.

    On the CPU, in evaluation mode, without auxiliary head, with the moving average of the weights if the run
    has one. Needs no data.

    Raises:
        RunDirError: If there is no training run, or one of a module from Python.
        CheckpointError: If its checkpoint is missing, damaged, or of other settings.
    """
    return network_of(run_dir, *read_run(run_dir))


def network_of(
    run_dir: str | Path, config: TrainConfig, facts: dict[str, Any], state: dict[str, Any]
) -> tuple[nn.Module, Tensor]:
    """`trained_network` from what `read_run` returned."""
    try:
        shape, weights = facts["input"], state["own"]["average"] or state["own"]["network"]
        network: nn.Module = build(
            config.genotype,
            channels=config.channels,
            layers=config.layers,
            num_classes=len(facts["classes"]),
            input_channels=shape[0],
            # the weights replace whatever it draws
            generator=torch.Generator(),
        )
        kept = {name: value for name, value in weights.items() if not name.startswith("auxiliary.")}
        load_weights(network, kept)
        return network.eval(), torch.zeros(2, *shape)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint in {run_dir} does not match this training: {one_line(error)}") from None


def read_run(run_dir: str | Path) -> tuple[TrainConfig, dict[str, Any], dict[str, Any]]:
    """(configuration, facts about data and machine, checkpoint) of a training run.

    Raises:
        RunDirError: If there is none, or one of a module from Python.
        CheckpointError: If its checkpoint is missing or damaged.
    """
    directory = RunDir(run_dir)
    content = directory.read_config("training")
    if content["config"].get("source") == "python":
        raise RunDirError(
            f"{run_dir} must be a run of a genotype, got one of a module from Python; resume it with sgenas.train"
            " to get the network"
        )
    return TrainConfig.from_dict(content["config"]), content["environment"], directory.read_checkpoint()


def _state_dict(network: nn.Module, _: Tensor) -> bytes:
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    return safetensors.torch.save(weights)


def _torch_export(network: nn.Module, inputs: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network, (inputs,), dynamic_shapes=DYNAMIC), buffer)
    return buffer.getvalue()


def _onnx(network: nn.Module, inputs: Tensor) -> bytes:
    for package in ("onnx", "onnxscript"):
        load_extra(package, "onnx", "format")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        # the exporter's messages about its own steps are of no use here
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                network,
                (inputs,),
                dynamic_shapes=DYNAMIC,
                dynamo=True,
                verbose=False,
                input_names=["inputs"],
                output_names=["outputs"],
            )
    finally:
        logger.setLevel(level)
    return made.model_proto.SerializeToString()


EXPORT_FORMATS: dict[str, Callable[[nn.Module, Tensor], bytes]] = {
    "state-dict": _state_dict,
    "torch-export": _torch_export,
    "onnx": _onnx,
}
"""By name, what turns a network and example inputs into the content of a file."""
