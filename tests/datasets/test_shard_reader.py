"""Reading shards: every sample once, bad samples named, and no broken archive taken for a whole one."""

import io
import tarfile

import numpy as np
import pytest

from dr_plugin.datasets.shard_reader import BadSample, count_images, find_shards, read_shard
from dr_plugin.datasets.shards import write_shards

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 3, 24, 24), dtype=np.uint8)  # several blocks each


def _tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


GOOD = {"png": b"x", "cls": b"3", "json": b'{"relevance": 0.5}', "npy": _npy(np.ones(2))}


def _sample(key, files):
    return [(f"{key}.{suffix}", content) for suffix, content in files.items()]


@pytest.fixture
def shard(tmp_path):
    (written,) = write_shards(IMAGES, range(10), tmp_path / "shards", seed=1)
    return written


def test_samples_come_with_all_they_hold(tmp_path):
    files = [*_sample("a/b", GOOD), *_sample("c", {"JPG": b"y", "cls": b"-7"})]
    first, second = read_shard(_tar(tmp_path / "s.tar", files))
    assert (first.name, first.image, first.label, first.relevance) == ("s.tar: a/b", b"x", 3, 0.5)
    assert first.feature.tolist() == [1, 1]
    assert second == ("s.tar: c", b"y", -7, None, None)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_compressed_shards_are_read(tmp_path, mode):
    shard = _tar(tmp_path / "s.tar.z", _sample("a", GOOD), mode)
    assert find_shards([shard]) == [shard]
    assert [sample.label for sample in read_shard(shard)] == [3]


def test_folders_links_and_names_of_webdatasets_own_are_passed_over(tmp_path):
    path = _tar(tmp_path / "s.tar", [("__index__/x.json", b"{}"), ("no-suffix", b""), *_sample("a", GOOD)])
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            member = tarfile.TarInfo("z.png")
            member.type, member.linkname = kind, "nowhere"
            tar.addfile(member)
    assert [sample.name for sample in read_shard(path)] == ["s.tar: a"]


def test_shard_without_samples_gives_none(tmp_path):
    assert list(read_shard(_tar(tmp_path / "s.tar", []))) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"png": None}, "got 0 images"),
        ({"jpg": b"y"}, "got 2 images"),
        ({"cls": None}, "got no label"),
        ({"cls": b"cat"}, "invalid literal"),
        ({"cls": b"9" * 30}, "expected one of 64 bits"),
        ({"json": b"{"}, "Expecting property name"),
        ({"json": b"[]"}, "list indices"),
        ({"json": b"{}"}, "'relevance'"),
        ({"json": b'{"relevance": NaN}'}, "got relevance nan"),
        ({"json": b'{"relevance": -0.5}'}, r"got relevance -0\.5"),
        ({"json": b'{"relevance": 1e999}'}, "got relevance inf"),
        ({"json": b'{"relevance": "1"}'}, "got relevance '1'"),
        ({"json": b'{"relevance": true}'}, "got relevance True"),
        ({"npy": b""}, "No data left"),
        ({"npy": _npy(np.array([None]), allow_pickle=True)}, "allow_pickle=False"),
        ({"npy": _npy(np.array([np.nan]))}, "got a feature"),
        ({"npy": _npy(np.ones((1, 1)))}, r"got a feature float64 \(1, 1\)"),
    ],
)
def test_bad_sample_is_named_and_the_rest_is_read(tmp_path, changes, message):
    bad = {suffix: content for suffix, content in (GOOD | changes).items() if content is not None}
    if changes == {"png": None}:
        bad = {"cls": b"3"}
    shard = _tar(tmp_path / "s.tar", [*_sample("a", GOOD), *_sample("b", bad), *_sample("c", GOOD)])
    first, second, third = read_shard(shard)
    assert (first.name, third.name) == ("s.tar: a", "s.tar: c")
    assert isinstance(second, BadSample)
    assert second.name == "s.tar: b"
    with pytest.raises(ValueError, match=f"^s.tar: b: .*{message}"):
        raise second


def test_truncated_shard_is_refused_wherever_it_was_cut(shard):
    whole = shard.read_bytes()
    content = len(whole.rstrip(b"\0"))
    for length in [0, 1, 511, *range(512, content, 512), content - 1]:
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut short or no tar file"):
            find_shards([shard])
        with pytest.raises(ValueError, match="broken after"):
            list(read_shard(shard))


def test_damaged_header_is_refused_wherever_it_is(shard):
    # WebDataset's own reader, and tarfile, take all but the first for the archive's end.
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        offsets = [member.offset for member in tar]
    for offset in offsets:
        shard.write_bytes(whole[: offset + 100] + b"\xff" + whole[offset + 101 :])
        assert find_shards([shard]) == [shard]
        with pytest.raises(ValueError, match=rf"{shard.name}: broken after"):
            list(read_shard(shard))


def test_truncated_compressed_shard_is_refused(tmp_path):
    path = _tar(tmp_path / "s.tgz", [("a.png", IMAGES.tobytes()), ("a.cls", b"0")], "w:gz")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="broken after"):
        list(read_shard(path))


def test_file_that_is_twice_in_a_sample_is_refused(tmp_path):
    shard = _tar(tmp_path / "s.tar", [("a.png", b"x"), ("a.png", b"y")])
    with pytest.raises(ValueError, match=r"s\.tar: a\.png: duplicate file name"):
        list(read_shard(shard))


def test_sources_name_the_same_shards(tmp_path):
    shards = write_shards(IMAGES, range(10), tmp_path, images_per_shard=2)
    for source in (
        tmp_path,
        str(tmp_path),
        [str(shard) for shard in shards],
        f"{tmp_path}/images-{{000000..000004}}.tar",
        f"{tmp_path}/images-*.tar",
        f"{tmp_path}/images-00000[0-2].tar::{tmp_path}/images-00000{{3,4}}.tar",
    ):
        assert find_shards(source) == shards
    assert find_shards(shards[3]) == shards[3:4]


def test_images_are_counted_where_meta_json_lists_the_shards(tmp_path):
    shards = write_shards(IMAGES, range(10), tmp_path / "a", images_per_shard=4)
    others = write_shards(IMAGES, range(10), tmp_path / "b", images_per_shard=8)
    assert count_images(shards[1:]) == 6
    assert count_images([*shards, *others]) == 20
    (tmp_path / "b" / "meta.json").unlink()
    assert count_images([*shards, *others]) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}", r"without a whole meta\.json"),
        ("{}/none-*.tar", "names no shard"),
        ([], "names no shard"),
        ("{}/none.tar", "got no shard .*No such file"),
        (["{}/s.tar", "{}/s.tar"], "a shard twice"),
        ("https://example.org/s.tar", "expected local files"),
        ("pipe:cat s.tar", "expected local files"),
    ],
)
def test_bad_sources_are_refused(tmp_path, source, message):
    _tar(tmp_path / "s.tar", [])
    fill = (lambda name: name.replace("{}", str(tmp_path))) if "{}" in str(source) else str
    with pytest.raises(ValueError, match=message):
        find_shards([fill(name) for name in source] if isinstance(source, list) else fill(source))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 2}'])
def test_folder_with_another_meta_json_is_refused(tmp_path, content):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(ValueError, match=r"meta\.json"):
        find_shards(tmp_path)


def test_folder_with_a_shard_of_another_size_is_refused(tmp_path):
    (shard,) = write_shards(IMAGES, range(10), tmp_path)
    with open(shard, "ab") as file:
        file.write(bytes(10240))
    with pytest.raises(ValueError, match=r"images-000000\.tar: got \d+ bytes, expected"):
        find_shards(tmp_path)
