"""Trained networks as files for others: weights, a program of torch.export, or ONNX."""

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgenas.engine.loop import load_checkpoint
from sgenas.engine.run_folder import existing, read_train_config
from sgenas.errors import CheckpointError, ConfigError
from sgenas.files import replacing
from sgenas.nets import build

ONNX_PACKAGES = ("onnx", "onnxscript")
DYNAMIC = {"images": {0: torch.export.Dim("batch")}}


def export_run(path: str | Path, form: str, out: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the trained network of the run folder `path` to the file `out`, which is returned.

    form: one of FORMATS. "state-dict": the weights by name, for torch.load and the network that
    `sgenas.nets.build` makes (without auxiliary head); "torch-export": a program for torch.export.load;
    "onnx": the same as ONNX. Both programs take normalised float32 images (B, C, H, W) for any B, as in
    evaluation, and give logits (B, classes). mean and std for normalising stand in config.json.

    Raises ConfigError for another form, an existing file without `overwrite` and missing packages,
    RunFolderError and CheckpointError as `trained_network` does, or when the file cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, got {form!r}")
    out = Path(out)
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out} must be a new file, or pass --overwrite; it exists already")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out} must be in a folder that exists")
    network, images = trained_network(path)
    content = FORMATS[form](network, images)
    with replacing(out) as file:
        file.write(content)
    return out


def trained_network(path: str | Path) -> tuple[nn.Module, Tensor]:
    """(the network, two images of zeros of the size that it was trained with) of the run folder `path`.

    On the CPU, in evaluation mode, without auxiliary head, with the running average of the weights where the
    run kept one. Needs no data. Raises RunFolderError when there is no training run, CheckpointError when
    its checkpoint is missing, damaged or belongs to other settings.
    """
    folder = existing(path)
    config = read_train_config(folder.path)
    state = load_checkpoint(folder, config)
    try:
        shape, weights = state["input"], state["average"] or state["network"]
        network = build(
            config.genotype,
            channels=config.network.channels,
            layers=config.network.layers,
            classes=len(state["classes"]),
            input_channels=shape[0],
            # the weights take the place of whatever it draws
            generator=torch.Generator(),
        )
        network.load_state_dict(
            {name: value for name, value in weights.items() if not name.startswith("auxiliary.")}
        )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {folder.checkpoint_path} does not fit: {error!r}") from None
    return network.eval(), torch.zeros(2, *shape)


def _state_dict(network: nn.Module, _: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(network.state_dict()), buffer)
    return buffer.getvalue()


def _torch_export(network: nn.Module, images: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=DYNAMIC), buffer)
    return buffer.getvalue()


def _onnx(network: nn.Module, images: Tensor) -> bytes:
    missing = [name for name in ONNX_PACKAGES if not _has(name)]
    if missing:
        raise ConfigError(
            f"--format onnx needs the packages of the extra onnx, {' and '.join(missing)} missing here:"
            " pip install 'sgenas[onnx]'"
        )
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        # what the exporter has to say about its own steps is of no use to whoever exports
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                dynamic_shapes=DYNAMIC,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
            )
    finally:
        logger.setLevel(level)
    return made.model_proto.SerializeToString()


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


FORMATS: dict[str, Callable[[nn.Module, Tensor], bytes]] = {
    "state-dict": _state_dict,
    "torch-export": _torch_export,
    "onnx": _onnx,
}
"""By name, what turns a network and two images into the content of a file."""
