"""Which images a run with ``evaluation.gallery: val`` is evaluated on."""

import pytest

from dr_plugin.experiments.recipe import Recipe, RecipeError
from dr_plugin.experiments.unseen import JoinedImages, unseen_images


class Images:
    """Two images of each class; an image is its split and number."""

    def __init__(self, split, class_ids):
        self.class_ids, self.class_names = list(class_ids), [name.upper() for name in class_ids]
        self.labels = [label for label in range(len(self.class_ids)) for _ in range(2)]
        self.paths = [f"{split}/{i}" for i in range(len(self.labels))]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.paths[index], self.labels[index]


def recipe_with(classes=None, unseen=None):
    return Recipe.model_validate(
        {
            "name": "apart",
            "data": {
                "dataset": {"type": "Digits"},
                "image_size": 8,
                "classes": classes,
                "unseen_classes": unseen,
            },
            "trunk": {"type": "DeepRankingTrunk"},
            "stages": [
                {"name": "softmax", "epochs": 1, "batch_size": 8, "optimizer": {"type": "SGD", "lr": 0.1}}
            ],
            "evaluation": {"gallery": "val"},
        }
    )


def chosen(train, val, trained, unseen=None):
    """Ids of the classes evaluated, and their images."""
    source, labels = unseen_images(recipe_with(unseen=unseen), train, val, trained)
    images = [source[i][0] for i in range(len(source)) if source.labels[i] in labels]
    return [source.class_ids[label] for label in labels], images


def test_same_classes_in_both_splits_leaves_those_not_trained_on_with_all_their_images():
    ids, images = chosen(Images("train", "abcd"), Images("val", "abcd"), [0, 2])
    assert ids == ["b", "d"]
    assert images == ["train/2", "train/3", "train/6", "train/7", "val/2", "val/3", "val/6", "val/7"]


def test_other_classes_in_val_are_all_taken_and_nothing_of_train():
    ids, images = chosen(Images("train", "abc"), Images("val", "xyz"), [0, 1])
    assert ids == ["x", "y", "z"]
    assert images == [f"val/{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("unseen", "wanted"), [(2, ["b", "d"]), (["e", "b"], ["b", "e"]), (None, ["b", "d", "e"])]
)
def test_unseen_classes_choose_among_those_left(unseen, wanted):
    assert chosen(Images("train", "abcde"), Images("val", "abcde"), [0, 2], unseen)[0] == wanted


def test_overlapping_classes_need_a_choice():
    train, val = Images("train", "abc"), Images("val", "bcdef")
    with pytest.raises(
        RecipeError, match=r"evaluation\.gallery: got val, but 2 of its classes are trained on \(b, c\)"
    ):
        chosen(train, val, [0, 1, 2])
    assert chosen(train, val, [0])[0] == ["b", "c", "d", "e", "f"]
    assert chosen(train, val, [0, 1, 2], ["d", "f"])[0] == ["d", "f"]
    assert chosen(train, val, [0, 1, 2], 2)[0] == ["d", "e"]


@pytest.mark.parametrize(
    ("trained", "unseen", "message"),
    [
        ([0, 1, 2, 3], None, r"data\.classes: got 4 classes to train on, which leaves 0 of 4 for"),
        ([0, 1, 2], None, r"data\.classes: got 3 classes to train on, which leaves 1 of 4 for"),
        ([0, 1], 3, r"data\.unseen_classes: got 3, expected at most 2"),
        ([0, 1], ["b", "c"], r"data\.unseen_classes: got 'b', which is trained on, expected ids .*: c, d"),
        ([0, 1], ["c", "z"], r"data\.unseen_classes: got 'z', expected ids of classes not trained on: c, d"),
    ],
)
def test_classes_that_cannot_be_had_are_one_clear_error(trained, unseen, message):
    with pytest.raises(RecipeError, match=message):
        chosen(Images("train", "abcd"), Images("val", "abcd"), trained, unseen)


def test_joined_images_are_both_splits_in_order():
    train, val = Images("train", "ab"), Images("val", "ab")
    joined = JoinedImages(train, val)
    assert [joined[i] for i in range(len(joined))] == [some[i] for some in (train, val) for i in range(4)]
    assert joined.paths == [*train.paths, *val.paths]
    assert joined.labels == [0, 0, 1, 1] * 2
    assert (joined.class_ids, joined.class_names) == (["a", "b"], ["A", "B"])


def test_joined_images_have_no_paths_where_a_split_has_none():
    train, val = Images("train", "ab"), Images("val", "ab")
    del val.paths
    assert JoinedImages(train, val).paths is None
