"""SECURITY.md: what is read from elsewhere runs no code, and asks for no more than it is."""

import io
import json
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dr_plugin.cli import main
from dr_plugin.datasets import ClassFolders, PackedImages
from dr_plugin.experiments import checkpoint, shipped
from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.relevance.feature_store import StoredFeatures
from dr_plugin.trunks.weights import read_state


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def canary(tmp_path):
    """A file that is only there if code of a hostile file has run; it does run where pickle reads it."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Exploit(path))).close()
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


def zipped(path, canary):
    torch.save({"format": 1, "models": {"trunk": {"w": Exploit(canary)}}}, path)


def legacy(path, canary):
    torch.save({"format": 1, "x": Exploit(canary)}, path, _use_new_zipfile_serialization=False)


def pickled(path, canary):
    path.write_bytes(pickle.dumps({"format": 1, "x": Exploit(canary)}))


def replaced(path, canary):
    """A good checkpoint whose pickle was exchanged, its checksum right."""
    checkpoint.save(path, {"models": {"trunk": {"w": torch.zeros(2)}}})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickle.dumps(Exploit(canary), 2) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("write", [zipped, legacy, pickled, replaced])
def test_hostile_checkpoint_runs_nothing(tmp_path, canary, write):
    path = tmp_path / "last.pt"
    write(path, canary)
    with pytest.raises(ValueError, match=r"last\.pt: not a readable checkpoint"):
        checkpoint.load(path)
    with pytest.raises(ValueError, match="damaged, or holds more than tensors"):
        read_state(path)


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--resume"],
        ["evaluate", "--on", "Digits"],
        ["search", "--query", "0"],
        ["export", "--to", "model.pt"],
        ["export", "--to", "model.pt2"],
    ],
)
def test_hostile_run_folder_runs_nothing(tmp_path, canary, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    recipe = load_recipe("quickstart", [f"data.cache={tmp_path / 'cache'}"])
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    for name in ("last.pt", "best.pt"):
        zipped(folder / "checkpoint" / name, canary)
    arguments = [*command[:1], *(command[1:] if command[0] != "run" else ["--resume"]), str(folder)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "not a readable checkpoint" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def objects(canary):
    """A .npy file with an object in it."""
    file = io.BytesIO()
    np.save(file, np.array([Exploit(canary)], object), allow_pickle=True)
    return file.getvalue()


def test_array_of_objects_is_refused(tmp_path, canary):
    (tmp_path / "features-0.npy").write_bytes(objects(canary))
    with pytest.raises(ValueError, match="not whole"):
        StoredFeatures(tmp_path)


def test_pack_with_objects_is_pixels_or_refused(tmp_path, canary):
    packed = PackedImages.build([(np.zeros((4, 4, 3), np.uint8), 0)] * 3, tmp_path / "pack")
    (file,) = packed.folder.glob("*.npy")
    size = file.stat().st_size
    file.write_bytes(objects(canary).ljust(size, b"\0")[:size])
    with pytest.raises(ValueError, match="not those that were packed"):
        PackedImages(packed.folder).batch([0])


def test_pack_whose_meta_names_another_file_reads_no_code(tmp_path, canary):
    packed = PackedImages.build([(np.zeros((4, 4, 3), np.uint8), 0)] * 3, tmp_path / "pack")
    meta = json.loads((packed.folder / "meta.json").read_text())
    (packed.folder / "meta.json").write_text(json.dumps({**meta, "fingerprint": "../../../etc"}))
    with pytest.raises(ValueError, match="no whole pack"):
        PackedImages(packed.folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: !!python/object/apply:os.system [exit]", "expected a value without a tag"),
        ("seed: !!python/name:os.system", "expected a value without a tag"),
        ("trunk: {type: os.system, command: exit}", "expected a class that derives from Module"),
        ("trunk: {type: builtins.exec, source: exit}", "expected a class that derives from Module"),
        ("trunk: {type: subprocess.Popen, args: [exit]}", "expected a class that derives from Module"),
        (
            "trunk: {type: torch.hub.load, repo_or_dir: a/b, model: c}",
            "expected a class that derives from Module",
        ),
    ],
)
def test_hostile_recipe_calls_nothing(tmp_path, line, message):
    """What a dotted path may not name; mutations without end are in experiments/test_recipe_fuzz.py."""
    key, text = line.partition(":")[0], shipped.path("quickstart").read_text()
    lines, skip = [], False
    for old in text.splitlines():
        if not old.startswith((" ", "#")) and old:
            skip = old.startswith(f"{key}:")
        if not skip:
            lines.append(old)
    path = tmp_path / "hostile.yaml"
    path.write_text("\n".join([*lines, line]) + "\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("read", [checkpoint.load, read_state])
def test_compressed_checkpoint_is_refused_unread(tmp_path, read):
    """300 MB of zeros in a file of 300 KB, say."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"models": {"trunk": {"w": torch.zeros(4)}}})
    assert read(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/more", bytes(2**20))
    with pytest.raises(ValueError, match="'archive/more' is compressed"):
        read(path)


def png(width, height):
    """A file that claims to be an image of this size."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "a" / "1.png").write_bytes(png(30_000, 30_000))
    images = ClassFolders(tmp_path / "images", split="val", val_fraction=0.9)
    with pytest.raises(ValueError, match=r"1\.png.*decompression bomb"):
        PackedImages.build(images, tmp_path / "pack", workers=1)


def test_size_in_a_header_is_not_trusted(tmp_path):
    """A checkpoint that claims a member far larger than it is."""
    checkpoint.save(tmp_path / "last.pt", {"w": torch.zeros(4)})
    content = bytearray((tmp_path / "last.pt").read_bytes())
    place = content.index(b"PK\x01\x02") + 20
    struct.pack_into("<II", content, place, 2**31, 2**31)
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "last.pt")
