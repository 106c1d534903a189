"""Finding the files of the images that rows name."""

import hashlib

import pytest

from dr_plugin.datasets.triplet_files import TripletRow
from dr_plugin.datasets.triplet_images import ImageFiles, LocatedTriplet, content_ids, locate, missing_images

URL = "http://images.example/a%20b/Red%20car.jpg?size=2"


@pytest.fixture
def touch(tmp_path):
    def touched(*names, content=b""):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path

    return touched


def test_find_first_folder_that_has_the_file(touch):
    root = touch("one/a.jpg", "two/a.jpg", "two/b.jpg")
    files = ImageFiles(None, [root / "one", root / "two"])
    assert files.find("./a.jpg", "") == str(root / "one/a.jpg")
    assert files.find("b.jpg", "") == str(root / "two/b.jpg")
    assert files.find(str(root / "two/a.jpg"), "") == str(root / "two/a.jpg")
    assert files.find("c.jpg", "") is None
    assert ImageFiles(root / "two", [root / "one"]).find("a.jpg", "") == str(root / "two/a.jpg")


def test_find_in_a_mapping(touch):
    root = touch("a.jpg")
    files = ImageFiles({"cat": "a.jpg", "dog": root / "gone.jpg"}, [root])
    assert files.find("cat", "") == str(root / "a.jpg")
    assert files.find("dog", "") is files.find("a.jpg", "") is None


def test_find_by_number(touch):
    root = touch("a.jpg", "b.jpg")
    files = ImageFiles(["a.jpg", root / "b.jpg"], [root])
    assert files.find(1, "") == files.find("1", "") == str(root / "b.jpg")
    for wrong in (2, -1, "b.jpg"):
        with pytest.raises(
            ValueError, match=f"t.csv:3: got {wrong!r}, expected the number of an image, 0 to 1"
        ):
            files.find(wrong, "t.csv:3")


def test_find_number_without_numbered_images(tmp_path):
    with pytest.raises(ValueError, match=r"triplets\[4\]: got image number 7, expected a path: pass images"):
        ImageFiles(None, [tmp_path]).find(7, "triplets[4]")


@pytest.mark.parametrize("kind", ["sha1", "sha256", "md5"])
def test_find_url_by_its_digest(touch, kind):
    name = f"deep/er/{hashlib.new(kind, URL.encode()).hexdigest()}.JPG"
    root = touch(name, "Red car.jpg")
    assert ImageFiles(None, [root], [URL]).find(URL, "") == str(root / name)


def test_find_url_by_its_last_part_unless_ambiguous(touch):
    root = touch("x/Red car.jpg")
    assert ImageFiles(root, [root], [URL, URL]).find(URL, "") == str(root / "x/Red car.jpg")
    other = "http://other.example/Red%20car.jpg"
    files = ImageFiles(root, [root], [URL, other])
    assert files.find(URL, "") is files.find(other, "") is None


def test_urls_need_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"images: got '.*none', expected a folder of downloaded images"):
        ImageFiles(tmp_path / "none", [tmp_path], [URL])


def test_locate_counts_each_missing_name_once(touch):
    root = touch("a", "b", "c")
    rows = [
        TripletRow("t", ("a", "x", "y"), "f:1"),
        TripletRow("t", ("a", "b", "c"), "f:2"),
        TripletRow("t", ("x", "b", "c"), "f:3"),
    ]
    found, absent = locate(rows, ImageFiles(None, [root]))
    assert found == [LocatedTriplet("t", tuple(str(root / name) for name in "abc"))]
    assert absent == {"x": "f:1", "y": "f:1"}


def test_missing_images_names_the_first_five():
    text = missing_images({f"i{n}": f"t.csv:{n}" for n in range(7)}, 9)
    assert text.startswith("got 7 of 9 images without a file: i0 (t.csv:0), ")
    assert "i4 (t.csv:4) and 2 more; expected all" in text
    assert 'missing="skip"' in text


def test_content_ids_same_bytes_same_number(touch):
    root = touch("a", "b", content=b"1234")
    touch("c", content=b"1235")
    touch("d", content=b"12345")
    ids = content_ids([str(root / name) for name in "abcd"])
    numbers = [ids[str(root / name)] for name in "abcd"]
    assert numbers[0] == numbers[1]
    assert len(set(numbers)) == 3
