"""Reading files of triplets, and the file and line that an error names."""

import numpy as np
import pytest
import torch

from dr_plugin.datasets.triplet_files import TripletRow, file_of, read_triplets, rows_of

LIST = ["red+cars", "http://a/1.jpg", "http://a/2.jpg", "http://b/3.jpg"]


@pytest.fixture
def write(tmp_path):
    def written(text, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def test_csv_columns_in_any_order_with_others(write):
    path = write('negative,rater,query,text_query,positive\nn.png,7,q.png,"a, b",p.png\n\nx,8,y,c,z\n')
    assert read_triplets(path) == [
        TripletRow("a, b", ("q.png", "p.png", "n.png"), f"{path}:2"),
        TripletRow("c", ("y", "z", "x"), f"{path}:4"),
    ]


def test_csv_without_text_queries_each_query_is_its_own(write):
    path = write("\ufeffquery,positive,negative\r\na,b,c\r\nd,b,c\r\n")
    assert [row.text_query for row in read_triplets(path)] == ["a", "d"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "t.csv: got an empty file, expected a header: text_query,query,positive,negative"),
        ("query,positive,negative\n", "t.csv: got no triplet, expected at least one"),
        ("text_query,query,positive\na,b,c\n", r"t.csv:1: got columns text_query, query.*; wrong: negative"),
        ("text_qeury,query,positive,negative\n", r"t.csv:1: .*; wrong: text_query"),
        ("query,query,positive,negative\n", r"t.csv:1: .*; wrong: text_query, query"),
        ("query,positive,negative\na,b,c\na,b\n", "t.csv:3: got 2 cells, expected 3 as in the header"),
        ("query,positive,negative\na,b,c,d\n", "t.csv:2: got 4 cells, expected 3 .* quotes"),
        ("query,positive,negative\na, ,\n", "t.csv:2: got nothing for positive, negative, expected a value"),
        ('query,positive,negative\na,b,c\na,"b"x,c\n', "t.csv:3: got .*, expected a csv file"),
        (b"query,positive,negative\n\xff\xfe,b,c\n", "t.csv: got .*, expected a csv file in UTF-8"),
    ],
)
def test_csv_faults_name_file_and_line(write, text, match):
    with pytest.raises(ValueError, match=match):
        read_triplets(write(text))


def test_list_four_lines_a_triplet(write):
    path = write("\n".join([*LIST, "dogs", *LIST[1:]]) + "\r\n\n", "query_and_triplets.txt")
    assert read_triplets(path) == [
        TripletRow("red+cars", tuple(LIST[1:]), f"{path}:1"),
        TripletRow("dogs", tuple(LIST[1:]), f"{path}:5"),
    ]


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([], "got no triplet"),
        (LIST[:3], "t.txt:3: got the end after 3 of 4 lines, expected four lines a triplet"),
        ([*LIST[:2], *LIST], "t.txt:3: got 'red.cars' as line 3 of 4, expected four lines a triplet"),
        ([LIST[1], *LIST], "t.txt:1: got 'http://a/1.jpg' as line 1 of 4"),
        ([*LIST, "", *LIST], "t.txt:5: got '' as line 1 of 4"),
    ],
)
def test_list_faults_name_file_and_line(write, lines, match):
    with pytest.raises(ValueError, match=match):
        read_triplets(write("\n".join(lines), "t.txt"))


def test_list_not_in_utf8(write):
    with pytest.raises(ValueError, match=r"t.txt: got .*, expected a text file in UTF-8"):
        read_triplets(write(b"\xff", "t.txt"))


def test_read_triplets_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"triplets: got '.*none.csv', expected a file"):
        read_triplets(tmp_path / "none.csv")


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_rows_of_numbers(make):
    assert rows_of(make([[4, 0, 2], [1, 2, 3]])) == [
        TripletRow("4", (4, 0, 2), "triplets[0]"),
        TripletRow("1", (1, 2, 3), "triplets[1]"),
    ]


def test_rows_of_paths_with_a_text_query(tmp_path):
    rows = rows_of([("cats", tmp_path / "a", "b", "c")])
    assert rows == [TripletRow("cats", (str(tmp_path / "a"), "b", "c"), "triplets[0]")]


@pytest.mark.parametrize(
    ("triplets", "match"),
    [
        ([], "triplets: got none"),
        ([[1, 2, 3], [1, 2]], r"triplets\[1\]: got \[1, 2\], expected \[text query,\] query"),
        (["abc"], r"triplets\[0\]: got 'abc'"),
        ([1, 2, 3], r"triplets\[0\]: got 1"),
        ([[1, 2, 3.0]], r"triplets\[0\]: got 3.0, expected a path or the number of an image"),
    ],
)
def test_rows_of_bad_rows(triplets, match):
    with pytest.raises(ValueError, match=match):
        rows_of(triplets)


def test_file_of_a_folder_csv_first(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"got no triplets.csv and no query_and_triplets.txt, expected one"):
        file_of(tmp_path, None)
    (tmp_path / "query_and_triplets.txt").touch()
    assert file_of(tmp_path, None) == tmp_path / "query_and_triplets.txt"
    (tmp_path / "triplets.csv").touch()
    assert file_of(tmp_path, None) == tmp_path / "triplets.csv"
    assert file_of(tmp_path, "triplets.csv") == tmp_path / "triplets.csv"
    monkeypatch.chdir(tmp_path)
    assert str(file_of(tmp_path, "triplets.csv")) == "triplets.csv"
    assert file_of(tmp_path, [[0, 1, 2]]) is None
