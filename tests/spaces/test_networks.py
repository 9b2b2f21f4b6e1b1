"""Published cells, their sizes against counts from the original networks, and how a network is built."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.spaces.darts_space.network import DartsNetwork
from sgenas.spaces.darts_space.published import find_genotype, names, published
from sgenas.spaces.genotype import Cell, Edge, Genotype
from sgenas.spaces.nasbench201_space.network import NasBench201Network
from sgenas.spaces.nasbench201_space.strings import to_string
from sgenas.spaces.networks import Size, build, network_size

SHARED = Path(__file__).parents[3] / "shared" / "genotypes.json"
NAMES = {
    "DARTS_V1": "darts-v1",
    "DARTS_V2": "darts-v2",
    "PC_DARTS_cifar": "pc-darts-cifar10",
    "PC_DARTS_image": "pc-darts-imagenet",
    "PDARTS": "p-darts",
    "FairDARTS_a": "fair-darts-a",
    "FairDARTS_b": "fair-darts-b",
    "FairDARTS_c": "fair-darts-c",
}
SKIP_CELL = Cell((Edge(0, 1, "skip_connect"), Edge(1, 3, "nor_conv_1x1")), concat=(3,), nodes=3, inputs=1)
NASBENCH = Genotype("nasbench201", (("cell", SKIP_CELL),))


@pytest.mark.skipif(not SHARED.exists(), reason="shared folder is missing")
@pytest.mark.parametrize("entry_name", NAMES)
def test_published_cells_have_the_published_edges_and_sizes(entry_name: str) -> None:
    entries = json.loads(SHARED.read_text())["genotypes"]
    assert set(entries) == set(NAMES)
    assert set(NAMES.values()) == set(names())
    entry, genotype = entries[entry_name], published(NAMES[entry_name])
    fair = entry["cell_class"] == "DCOCell"
    assert genotype.space == ("fair-darts" if fair else "darts")
    assert Genotype.from_dict(entry["genotype"]) == genotype
    for kind in ("normal", "reduce"):
        expected = set()
        for index, row in enumerate(entry["genotype"][kind]):
            operation, target, source = row if fair else (row[0], 2 + index // 2, row[1])
            expected.add((source, target, operation))
        assert {(edge.source, edge.target, edge.operation) for edge in genotype[kind].edges} == expected
        assert list(genotype[kind].concat) == entry["genotype"][f"{kind}_concat"]
    for num_classes in (10, 100):
        counts = entry[f"cifar{num_classes}"]
        size = Size(counts["params_no_aux"], counts["params_with_aux"], counts["macs_conv_linear"])
        assert network_size(genotype, num_classes=num_classes) == size


# without the shared folder too
@pytest.mark.parametrize(
    ("name", "num_classes", "size"),
    [
        ("darts-v2", 10, Size(3349342, 3825768, 528359040)),
        ("pc-darts-cifar10", 100, Size(3686608, 4232244, 556722432)),
        ("p-darts", 10, Size(3433798, 3910224, 532174464)),
        ("fair-darts-a", 10, Size(2360782, 2837208, 371455200)),
        ("fair-darts-c", 100, Size(2637784, 3183420, 400026816)),
    ],
)
def test_sizes_of_published_cells(name: str, num_classes: int, size: Size) -> None:
    assert network_size(published(name), channels=36, layers=20, num_classes=num_classes) == size


def test_size_agrees_with_a_real_network_and_draws_nothing() -> None:
    state = torch.get_rng_state()
    sizes: dict[str, Any] = {"channels": 4, "layers": 3, "num_classes": 7, "input_channels": 1}
    size = network_size(published("darts-v1"), resolution=9, **sizes)
    assert torch.equal(torch.get_rng_state(), state)
    for auxiliary, expected in ((False, size.params), (True, size.params_with_auxiliary)):
        network = build(published("darts-v1"), auxiliary=auxiliary, **sizes)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert network_size(published("darts-v1"), resolution=18, **sizes).macs > 3 * size.macs
    wide, square = (network_size(published("darts-v1"), resolution=shape, **sizes) for shape in ((8, 16), 8))
    # all but the linear layer, which sees the mean over the pixels
    assert wide.macs == 2 * square.macs - build(published("darts-v1"), **sizes).classifier.weight.numel()  # type: ignore[operator, union-attr]
    without = network_size(NASBENCH, channels=4, layers=2)
    assert without.params == without.params_with_auxiliary


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 0),
        ("resolution", 32.5),
        ("resolution", (32, 0)),
        ("resolution", (32,)),
        ("channels", 10**12),
        ("num_classes", 1),
    ],
)
def test_size_of_an_impossible_network_raises(field: str, value: int) -> None:
    with pytest.raises(InvalidValueError, match=field):
        network_size(NASBENCH, **{field: value})


def test_build_chooses_the_network_by_the_space() -> None:
    assert isinstance(build(published("fair-darts-b"), channels=2, layers=3), DartsNetwork)
    network = build(NASBENCH, channels=2, layers=1)
    assert isinstance(network, NasBench201Network)
    assert len(network.blocks) == 3 + 2
    assert len(build(NASBENCH).blocks) == 15 + 2
    with pytest.raises(GenotypeError, match=r"genotype.space .* got 'choice'"):
        build(Genotype("choice", NASBENCH.cells))
    with pytest.raises(InvalidValueError, match="auxiliary"):
        build(NASBENCH, auxiliary=True)


def test_build_draws_weights_from_its_generator() -> None:
    genotype = published("darts-v2")
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(5)
    first, second = (build(genotype, channels=2, layers=3, generator=generator) for _ in range(2))
    again = build(genotype, channels=2, layers=3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert torch.equal(first.stem[0].weight, again.stem[0].weight)
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_find_genotype_reads_names_strings_files_and_run_directories(tmp_path: Path) -> None:
    genotype = published("darts-v1")
    assert find_genotype("darts-v1") == genotype
    cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    assert to_string(find_genotype(cell)) == cell
    (tmp_path / "genotype.json").write_text(genotype.to_json())
    (tmp_path / "cell.txt").write_text(cell + "\n")
    assert find_genotype(str(tmp_path)) == find_genotype(str(tmp_path / "genotype.json")) == genotype
    assert find_genotype(genotype.to_json()) == genotype
    assert to_string(find_genotype(str(tmp_path / "cell.txt"))) == cell


def test_find_genotype_errors_name_the_fault(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("[]")
    for text, word in (
        ("nix", "got 'nix'"),
        ("darts-v3", "did you mean 'darts-v"),
        (str(tmp_path), "has no genotype.json"),
        (str(tmp_path / "broken.json"), "broken.json: genotype must be an object"),
        ("", "got ''"),
        ("a\0b", "genotype"),
        ("x" * 5000, "genotype"),
    ):
        with pytest.raises(GenotypeError, match=word) as caught:
            find_genotype(text)
        assert "\n" not in str(caught.value)
    with pytest.raises(GenotypeError, match="darts-v1, .*, got 'darts-v3'"):
        published("darts-v3")


def test_published_json_is_in_the_package_data() -> None:
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {path for pattern in settings["sgenas"] for path in (root / "src" / "sgenas").glob(pattern)}
    assert root / "src" / "sgenas" / "spaces" / "darts_space" / "published.json" in packaged
