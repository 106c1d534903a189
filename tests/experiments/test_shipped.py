"""The recipes that come with the package."""

from pathlib import Path

import pytest

from dr_plugin.evaluation.table_recipe import is_table, load_table
from dr_plugin.experiments import shipped
from dr_plugin.experiments.recipe import RecipeError, load_recipe


def test_names_are_the_files_on_disk() -> None:
    names = shipped.names()
    assert names == sorted(names)
    assert {"quickstart", "tiny_uniform", "tiny_uniform_cpu", "tiny_uniform_paper"} <= set(names)
    assert all(shipped.path(name) == shipped.recipes_folder() / f"{name}.yaml" for name in names)


@pytest.mark.parametrize("name", shipped.names())
def test_shipped_recipe_loads_by_name_and_by_path(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    load = load_table if is_table(name) else load_recipe
    recipe = load(name)
    assert recipe == load(shipped.path(name))
    assert recipe.name == name
    Path("again.yaml").write_text(recipe.to_yaml())
    assert load("again.yaml") == recipe


@pytest.mark.parametrize("name", shipped.names())
def test_shipped_recipe_is_block_style_under_a_header_with_its_command(name: str) -> None:
    lines = shipped.path(name).read_text().splitlines()
    header = lines[: lines.index("")]
    assert all(line.startswith("#") for line in header)
    assert any(f"dr-run recipes/{name}.yaml" in line for line in header)
    assert not any("{" in line or "[" in line for line in lines[len(header) :])


def test_a_file_comes_before_a_shipped_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("a: 1\n")
    with pytest.raises(RecipeError, match=r"quickstart:1: a: got 1"):
        load_recipe("quickstart")


def test_a_folder_does_not_hide_a_shipped_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert load_recipe("quickstart").name == "quickstart"


def test_folder_is_the_package_s_own_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside = tmp_path / "dr_plugin" / "recipes"
    inside.mkdir(parents=True)
    (inside / "mine.yaml").write_text("a: 1\n")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "dr_plugin")
    assert shipped.names() == ["mine"]


def test_folder_missing_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "dr_plugin")
    with pytest.raises(RecipeError, match="shipped recipes are in neither"):
        shipped.names()


@pytest.mark.parametrize("target", ["", "folder", "mine.yaml"])
def test_copy_into_a_folder_or_to_a_file(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    written = shipped.copy("quickstart", target or ".")
    expected = {"": "quickstart.yaml", "folder": "folder/quickstart.yaml", "mine.yaml": "mine.yaml"}
    assert written == Path(expected[target])
    assert written.read_bytes() == shipped.path("quickstart").read_bytes()
    assert sorted(path.name for path in written.parent.glob(".*")) == []  # no temporary file is left


def test_copy_never_overwrites(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("precious")
    with pytest.raises(RecipeError, match=r"mine\.yaml: exists already; choose another name"):
        shipped.copy("quickstart", target)
    assert target.read_text() == "precious"


def test_copy_to_nowhere_raises(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be written: No such file or directory"):
        shipped.copy("quickstart", tmp_path / "missing" / "mine.yaml")


def test_copy_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shipped.os, "fsync", full)
    with pytest.raises(RecipeError, match="cannot be written: No space left on device"):
        shipped.copy("quickstart", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_copy_of_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^quikstart: got no file .*; did you mean quickstart\?$"):
        shipped.copy("quikstart", tmp_path)
