import hashlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from dr_plugin.datasets import DownloadError, TinyImageNet

CLASS_IDS = ["n10000000", "n10000137", "n10000274"]


@pytest.fixture(scope="module")
def whole(make_tiny_imagenet, tmp_path_factory):
    """A small data set that no test changes."""
    return make_tiny_imagenet(
        tmp_path_factory.mktemp("whole"), classes=3, train=11, val=4, size=16, greyscale=2
    )


@pytest.fixture
def root(whole, tmp_path):
    """A copy to break."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def served(whole, file_server, monkeypatch, tmp_path):
    """A server that has the small data set's archive in the official one's place."""
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in sorted(whole.rglob("*")):
            file.write(name, name.relative_to(whole))
    file_server.content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(TinyImageNet, "DOWNLOAD_URL", file_server.url.replace("archive", "tiny-imagenet-200"))
    monkeypatch.setattr(TinyImageNet, "ARCHIVE_SIZE", len(file_server.content))
    monkeypatch.setattr(TinyImageNet, "ARCHIVE_SHA256", hashlib.sha256(file_server.content).hexdigest())
    return file_server


def test_train_equals_image_folder(whole):
    data = TinyImageNet(whole)
    oracle = ImageFolder(whole / "tiny-imagenet-200" / "train")
    assert list(zip(data.paths, data.labels, strict=True)) == oracle.samples
    assert data.class_ids == oracle.classes == CLASS_IDS
    assert data.class_names == [f"stripes {i}, pattern {i}" for i in range(3)]
    for i in range(len(oracle)):
        np.testing.assert_array_equal(data[i][0], oracle[i][0])
        assert data[i][1] == oracle[i][1]


def test_val_follows_its_annotations(whole):
    data = TinyImageNet(whole, "val")
    lines = (whole / "tiny-imagenet-200" / "val" / "val_annotations.txt").read_text().splitlines()
    oracle = [(line.split("\t")[0], CLASS_IDS.index(line.split("\t")[1])) for line in lines]
    assert [
        (path.rsplit("/", 1)[-1], label) for path, label in zip(data.paths, data.labels, strict=True)
    ] == oracle
    assert len(data) == 12
    assert np.bincount(data.labels).tolist() == [4, 4, 4]
    assert data.labels != sorted(data.labels)  # so that a mix-up of the two orders would show


@pytest.mark.parametrize("split", ["train", "val"])
def test_greyscale_images_become_rgb(whole, split):
    data = TinyImageNet(whole, split)
    modes = []
    for path in data.paths:
        with Image.open(path) as image:
            modes.append(image.mode)
    assert modes.count("L") == 6
    assert {image.mode for image, _ in data} == {"RGB"}


def test_transforms_are_applied(whole):
    data = TinyImageNet(whole, transform=np.asarray, target_transform=lambda label: label + 10)
    image, label = data[-1]
    assert (image.shape, label) == ((16, 16, 3), 12)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_data_set_survives_pickling_and_loader_workers(whole):
    data = pickle.loads(pickle.dumps(TinyImageNet(str(whole), "val", transform=np.array)))
    assert [data[i][1] for i in range(len(data))] == data.labels
    batches = list(DataLoader(data, batch_size=5, num_workers=2))
    assert np.concatenate([labels for _, labels in batches]).tolist() == data.labels
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches])[7], data[7][0])


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    ("split", "message"),
    [("test", "'test', whose images carry no labels"), ("Train", "'Train', expected 'train' or 'val'")],
)
def test_split_is_checked_before_root_is_touched(tmp_path, split, message, download):
    with pytest.raises(ValueError, match=message):
        TinyImageNet(tmp_path / "new", split, download=download)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_says_what_to_do(tmp_path):
    message = (
        r"holds no tiny-imagenet-200/: .*download=True to fetch https://.*, or put that archive at .*\.zip"
    )
    with pytest.raises(ValueError, match=message):
        TinyImageNet(tmp_path)
    with pytest.raises(ValueError, match=message):
        TinyImageNet(tmp_path / "none")
    (tmp_path / "tiny-imagenet-200.zip").touch()
    with pytest.raises(ValueError, match=r"download=True checks and unpacks tiny-imagenet-200\.zip"):
        TinyImageNet(tmp_path)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def break_train(folder, what):
    a_class = folder / "train" / CLASS_IDS[1]
    if what == "class missing":
        shutil.rmtree(a_class)
    elif what == "class unknown":
        (folder / "train" / "n19999999").mkdir()
    elif what == "class empty":
        for path in (a_class / "images").iterdir():
            path.rename(path.with_suffix(".txt"))
    elif what == "no images folder":
        (a_class / "images").rename(a_class / "pictures")
    elif what == "image missing":
        for i in range(5):
            (a_class / "images" / f"{CLASS_IDS[1]}_{i}.JPEG").unlink()
    elif what == "image unlisted":
        (a_class / "images" / "extra.JPEG").touch()
    elif what == "no train":
        (folder / "train").rename(folder / "training")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "class missing",
            r"1 class folders that wnids.txt lists and .*train lacks: n10000137; expected none",
        ),
        ("class unknown", r"1 class folders in .*train that wnids.txt does not list: n19999999"),
        ("class empty", r"n10000137/images holds no .JPEG image"),
        ("no images folder", r"the folder .*n10000137/images is missing"),
        (
            "image missing",
            r"5 images that n10000137_boxes.txt lists and .* lacks: n10000137_0.JPEG, .*_2.JPEG and 2 more",
        ),
        (
            "image unlisted",
            r"1 images in .*n10000137/images that n10000137_boxes.txt does not list: extra.JPEG",
        ),
        ("no train", r"the folder .*train is missing"),
    ],
)
def test_broken_train_folder_is_refused(root, what, message):
    break_train(root / "tiny-imagenet-200", what)
    with pytest.raises(ValueError, match=f"{message}.*unpack"):
        TinyImageNet(root)
    assert len(TinyImageNet(root, "val")) == 12


def break_val(folder, what):
    annotations = folder / "val_annotations.txt"
    if what == "image missing":
        (folder / "images" / "val_3.JPEG").unlink()
    elif what == "image unlisted":
        (folder / "images" / "val_99.JPEG").touch()
    elif what == "class unknown":
        edit(annotations, CLASS_IDS[0], "n19999999")
    elif what == "twice":
        edit(annotations, "val_3.JPEG", "val_4.JPEG")
    elif what == "malformed":
        edit(annotations, "val_1.JPEG\t", "val_1.JPEG ")
        edit(annotations, "val_1.JPEG", "\nval_1.JPEG")
    elif what == "no annotations":
        annotations.unlink()
    elif what == "no images":
        shutil.rmtree(folder / "images")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "image missing",
            r"1 images that val_annotations.txt lists and .*val/images lacks: val_3.JPEG; expected none",
        ),
        ("image unlisted", r"1 images in .*val/images that val_annotations.txt does not list: val_99.JPEG"),
        ("class unknown", r"1 class ids in .* that wnids.txt does not list: n19999999 \(for val_\d+.JPEG\)"),
        ("twice", r"1 images annotated twice in .*: val_4.JPEG"),
        ("malformed", r"1 lines of .* that are not 'file<TAB>class id': line 2"),
        ("no annotations", r"the file .*val_annotations.txt is missing"),
        ("no images", r"the folder .*val/images is missing"),
    ],
)
def test_broken_val_folder_is_refused(root, what, message):
    break_val(root / "tiny-imagenet-200" / "val", what)
    with pytest.raises(ValueError, match=f"{message}.*unpack"):
        TinyImageNet(root, "val")
    assert len(TinyImageNet(root, "train")) == 33


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("wnids.txt", None, "the file .*wnids.txt is missing"),
        ("wnids.txt", "n10000000\n", "wnids.txt: got 1 class ids, expected at least 2"),
        (
            "wnids.txt",
            "n10000000\nn10000137\nn10000000\n",
            "1 class ids that occur twice in wnids.txt: n10000000",
        ),
        ("words.txt", None, "the file .*words.txt is missing"),
        (
            "words.txt",
            "n10000000\tfish\nn10000137\n",
            "2 class ids without a name in .*: n10000137, n10000274",
        ),
    ],
)
def test_broken_lists_are_refused(root, split, file, text, message):
    path = root / "tiny-imagenet-200" / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        TinyImageNet(root, split)


def test_training_images_need_no_boxes_files(root):
    for path in (root / "tiny-imagenet-200").glob("train/*/*_boxes.txt"):
        path.unlink()
    assert len(TinyImageNet(root)) == 33


def test_download_gives_the_data_set_and_removes_the_archive(served, whole, tmp_path):
    (tmp_path / "stray.txt").touch()  # a stray file makes PML's own data sets skip the download
    calls = []
    data = TinyImageNet(tmp_path, "val", download=True, progress=lambda *call: calls.append(call))
    assert data.labels == TinyImageNet(whole, "val").labels
    np.testing.assert_array_equal(data[0][0], TinyImageNet(whole, "val")[0][0])
    visible = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert visible == ["stray.txt", "tiny-imagenet-200"]
    assert {task for task, _, _ in calls} == {
        "download tiny-imagenet-200.zip",
        "unpack tiny-imagenet-200.zip",
    }
    assert len(TinyImageNet(tmp_path, download=True)) == 33
    assert served.ranges == [None]
    pickle.dumps(data)


def test_download_shows_a_bar_unless_it_is_given_a_callback(served, tmp_path, capsys):
    TinyImageNet(tmp_path / "silent", download=True, progress=lambda *call: None)
    assert capsys.readouterr() == ("", "")
    TinyImageNet(tmp_path / "bar", download=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "download tiny-imagenet-200.zip: 100%" in captured.err


def test_archive_put_there_by_hand_is_unpacked_without_a_network(served, tmp_path):
    archive = tmp_path / "tiny-imagenet-200.zip"
    archive.write_bytes(served.content)
    assert len(TinyImageNet(tmp_path, download=True)) == 33
    assert served.ranges == []
    assert archive.read_bytes() == served.content


def test_wrong_archive_put_there_by_hand_is_refused(served, tmp_path):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(served.content[:-1])
    with pytest.raises(DownloadError, match="is not the file expected"):
        TinyImageNet(tmp_path, download=True)
    assert served.ranges == []
    assert not (tmp_path / "tiny-imagenet-200").exists()


def test_download_never_touches_a_folder_that_is_there(served, root):
    (root / "tiny-imagenet-200" / "words.txt").unlink()
    with pytest.raises(ValueError, match=r"words\.txt is missing"):
        TinyImageNet(root, download=True)
    assert served.ranges == []


@pytest.mark.real_data
def test_real_train_equals_image_folder(tiny_imagenet_root):
    data = TinyImageNet(tiny_imagenet_root)
    oracle = ImageFolder(tiny_imagenet_root / "tiny-imagenet-200" / "train")
    assert list(zip(data.paths, data.labels, strict=True)) == oracle.samples
    assert data.class_ids == oracle.classes
    assert (len(data), len(set(data.class_names))) == (100_000, 200)
    assert np.bincount(data.labels).tolist() == [500] * 200
    assert data.class_names[0] == "goldfish, Carassius auratus"


@pytest.mark.real_data
def test_real_val_has_50_images_a_class(tiny_imagenet_root):
    data = TinyImageNet(tiny_imagenet_root, "val")
    assert np.bincount(data.labels).tolist() == [50] * 200
    assert data.paths[1].endswith("val_1.JPEG")
    assert data.class_ids[data.labels[0]] == "n03444034"
    assert {data[i][0].mode for i in range(300)} == {"RGB"}
    assert {data[i][0].size for i in range(300)} == {(64, 64)}
