"""Published cells and their sizes, against counts from the original evaluation networks."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.nets import DartsNetwork, NasBench201Network, Size, build, find_genotype, names, network_size
from sgenas.nets import published as published_cells
from sgenas.spaces.genotype import Cell, Edge, Genotype
from sgenas.spaces.nasbench201_strings import to_string

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

shared = pytest.mark.skipif(not SHARED.exists(), reason="shared folder is missing")


def entries() -> dict[str, Any]:
    return json.loads(SHARED.read_text())["genotypes"] if SHARED.exists() else {}


@shared
def test_every_entry_has_a_name() -> None:
    assert set(entries()) == set(NAMES)
    assert set(NAMES.values()) == set(names())


@shared
@pytest.mark.parametrize("entry_name", NAMES)
def test_edges_are_the_published_ones(entry_name: str) -> None:
    entry = entries()[entry_name]
    genotype = published_cells(NAMES[entry_name])
    fair = entry["cell_class"] == "DCOCell"
    assert genotype.space == ("fair-darts" if fair else "darts")
    for kind in ("normal", "reduce"):
        expected = set()
        for index, row in enumerate(entry["genotype"][kind]):
            operation, target, source = row if fair else (row[0], 2 + index // 2, row[1])
            expected.add((source, target, operation))
        cell = genotype[kind]
        assert {(edge.source, edge.target, edge.operation) for edge in cell.edges} == expected
        assert list(cell.concat) == entry["genotype"][f"{kind}_concat"]


@shared
@pytest.mark.parametrize("entry_name", NAMES)
def test_size_of_every_published_cell(entry_name: str) -> None:
    entry = entries()[entry_name]
    for classes in (10, 100):
        counts = entry[f"cifar{classes}"]
        assert network_size(published_cells(NAMES[entry_name]), classes=classes) == Size(
            counts["params_no_aux"], counts["params_with_aux"], counts["macs_conv_linear"]
        )


# so that the check exists without the shared folder
@pytest.mark.parametrize(
    ("name", "classes", "size"),
    [
        ("darts-v2", 10, Size(3349342, 3825768, 528359040)),
        ("pc-darts-cifar10", 100, Size(3686608, 4232244, 556722432)),
        ("p-darts", 10, Size(3433798, 3910224, 532174464)),
        ("fair-darts-a", 10, Size(2360782, 2837208, 371455200)),
        ("fair-darts-c", 100, Size(2637784, 3183420, 400026816)),
    ],
)
def test_size_of_a_few_published_cells(name: str, classes: int, size: Size) -> None:
    assert network_size(published_cells(name), channels=36, layers=20, classes=classes) == size


def test_size_agrees_with_a_real_network_and_draws_nothing() -> None:
    state = torch.get_rng_state()
    sizes: dict[str, Any] = {"channels": 4, "layers": 3, "classes": 7, "input_channels": 1}
    size = network_size(published_cells("darts-v1"), resolution=9, **sizes)
    assert torch.equal(torch.get_rng_state(), state)
    for auxiliary, expected in ((False, size.params), (True, size.params_with_auxiliary)):
        network = build(published_cells("darts-v1"), auxiliary=auxiliary, **sizes)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert network_size(published_cells("darts-v1"), resolution=18, **sizes).macs > 3 * size.macs


def test_size_without_an_auxiliary_head() -> None:
    size = network_size(NASBENCH, channels=4, layers=2)
    assert size.params == size.params_with_auxiliary
    with pytest.raises(InvalidValueError, match="resolution must be an integer >= 1, got 0"):
        network_size(NASBENCH, resolution=0)


def test_build_chooses_by_the_space() -> None:
    assert isinstance(build(published_cells("fair-darts-b"), channels=2, layers=3), DartsNetwork)
    network = build(NASBENCH, channels=2, layers=1)
    assert isinstance(network, NasBench201Network)
    assert len(network.blocks) == 3 + 2
    assert len(build(NASBENCH).blocks) == 15 + 2
    with pytest.raises(GenotypeError, match="genotype.space must be one of darts, .*, got 'choice'"):
        build(Genotype("choice", NASBENCH.cells))
    with pytest.raises(InvalidValueError, match="auxiliary must be False in the space nasbench201"):
        build(NASBENCH, auxiliary=True)


def test_build_draws_from_a_generator() -> None:
    genotype = published_cells("darts-v2")
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(5)
    first, second = (build(genotype, channels=2, layers=3, generator=generator) for _ in range(2))
    again = build(genotype, channels=2, layers=3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert torch.equal(first.stem[0].weight, again.stem[0].weight)
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_find_genotype(tmp_path: Path) -> None:
    genotype = published_cells("darts-v1")
    assert find_genotype("darts-v1") == genotype
    arch = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    assert to_string(find_genotype(arch)) == arch
    (tmp_path / "genotype.json").write_text(genotype.to_json())
    assert find_genotype(str(tmp_path)) == genotype
    assert find_genotype(str(tmp_path / "genotype.json")) == genotype


def test_find_genotype_errors(tmp_path: Path) -> None:
    with pytest.raises(GenotypeError, match=r"published name \(darts-v1, .*\), a genotype file .* got 'nix'"):
        find_genotype("nix")
    with pytest.raises(GenotypeError, match="has no genotype.json"):
        find_genotype(str(tmp_path))
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(GenotypeError, match="broken.json: genotype must be an object"):
        find_genotype(str(tmp_path / "broken.json"))
    with pytest.raises(GenotypeError, match="must be one of darts-v1, .*, got 'darts-v3'"):
        published_cells("darts-v3")
    for text in ("", "a\0b", "x" * 5000):
        with pytest.raises(GenotypeError):
            find_genotype(text)


def test_the_data_file_is_packaged() -> None:
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {path for pattern in settings["sgenas"] for path in (root / "src" / "sgenas").glob(pattern)}
    assert root / "src" / "sgenas" / "nets" / "published.json" in packaged
