"""The floors of the export stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.imports import Package, check_circles, check_floor

PACKAGE = Package(Path(__file__).parents[2] / "export", "edgediff_export")
# Folders and files of the package, from the top floor down; each imports only from those below it.
FLOORS = (
    *("__main__", "adopting", "reference_model", "optimum_layout", "convert", "proving", "stages", "job", "progress"),
    *("workspace", "work_folder", "manifest", "latent_facts", "preview", "proof", "precision", "onnx_graph", "sources"),
    *("lora", "weight", "versions"),
)


@pytest.mark.parametrize("module", [m for m in PACKAGE.modules if m != "__init__"])
def test_imports_point_downward(module: str) -> None:
    check_floor(PACKAGE, module, FLOORS)


def test_no_circles() -> None:
    check_circles(PACKAGE, FLOORS)


def test_every_floor_is_there() -> None:
    assert set(FLOORS) == {m.split(".")[0] for m in PACKAGE.modules} - {"__init__"}


def test_neither_tests_nor_benchmarks_are_imported() -> None:
    names = [(m, name) for m in PACKAGE.modules for name, _ in PACKAGE.imports(m)]
    assert not [(m, name) for m, name in names if name.split(".")[0] in ("tests", "benchmarks")]
    assert {name.split(".")[0] for _, name in names} >= {"edgediff", "edgediff_export", "torch"}


@pytest.fixture
def house(tmp_path: Path) -> Package:
    """A package of two floors: roof/a -> roof/b -> cellar."""
    root = tmp_path / "house"
    (root / "roof").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "cellar": "",
        "roof/__init__": "",
        "roof/a": "from .b import x",
        "roof/b": "from ..cellar import x\n\ndef f():\n    from house.cellar import y",
    }.items():
        (root / f"{name}.py").write_text(text, encoding="utf-8")
    return Package(root, "house")


def test_the_checks_pass_a_house_in_order(house: Package) -> None:
    assert house.modules == ["__init__", "cellar", "roof", "roof.a", "roof.b"]
    assert house.imports("roof.b") == [("house.cellar", True), ("house.cellar", False)]
    check_circles(house, ("roof", "cellar"))
    for module in house.modules[1:]:
        check_floor(house, module, ("roof", "cellar"))


@pytest.mark.parametrize("text", ["from .roof.a import x", "from house.roof import a", "import house.roof.a"])
def test_the_checks_see_an_import_that_points_up(house: Package, text: str) -> None:
    (house.root / "cellar.py").write_text(f"def f():\n    {text}", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"cellar imports roof\.a, which is not below it"):
        check_floor(house, "cellar", ("roof", "cellar"))
    with pytest.raises(AssertionError, match="cellar stands on no floor"):
        check_floor(house, "cellar", ("roof",))


def test_the_checks_see_a_circle_inside_a_folder(house: Package) -> None:
    (house.root / "roof" / "b.py").write_text("from . import a", encoding="utf-8")
    check_floor(house, "roof.b", ("roof", "cellar"))
    with pytest.raises(AssertionError, match=r"roof\.a -> roof\.b -> roof\.a"):
        check_circles(house, ("roof", "cellar"))
