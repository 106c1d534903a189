import numpy as np
import pytest
import torch

from dr_plugin.evaluation.data import LabelledData, open_data
from dr_plugin.evaluation.evaluate import evaluate, summary
from dr_plugin.evaluation.model import FeatureModel, open_model
from dr_plugin.relevance.features import LABHistogram


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = open_data("Digits", image_size=16, cache=str(tmp_path_factory.mktemp("digits")))
    every = torch.arange(0, len(data.gallery), 5)
    return LabelledData(
        "Digits", data.query.subset(torch.arange(40)), data.gallery.subset(every), data.identity
    )


@pytest.mark.parametrize("distance", ["euclidean", "manhattan"])
def test_figures_on_labelled_images_equal_explicit_loops(digits, distance, monkeypatch):
    model = open_model("HOG", image_size=16)
    model.distance = distance
    figures = evaluate(model, digits, k=7)
    query, gallery = (model.embed(part).double() for part in (digits.query, digits.gallery))
    order = 1 if distance == "manhattan" else 2
    near = torch.cdist(query, gallery, p=order).argsort(dim=1, stable=True)
    right = digits.gallery.labels[near] == digits.query.labels[:, None]
    assert figures["precision_at_7"] == pytest.approx(float(right[:, :7].double().mean()), abs=2e-3)
    precisions = []
    for row, label in zip(right[:, :7], digits.query.labels, strict=True):
        found = [float(row[: i + 1].double().mean()) for i in range(7) if row[i]]
        precisions.append(sum(found) / min(7, int((digits.gallery.labels == label).sum())))
    assert figures["mean_average_precision_at_7"] == pytest.approx(np.mean(precisions), abs=3e-3)
    for at in (1, 2, 4, 8, 16, 32):
        assert figures[f"recall_at_{at}"] == pytest.approx(
            float(right[:, :at].any(1).double().mean()), abs=0.03
        )


def test_recalls_stop_at_the_gallerys_size(digits):
    small = LabelledData("Digits", digits.query, digits.gallery.subset(torch.arange(5)), "")
    figures = evaluate(open_model("HOG", image_size=16), small, k=5)
    assert [name for name in figures if name.startswith("recall")] == [
        "recall_at_1",
        "recall_at_2",
        "recall_at_4",
    ]


def test_k_beyond_the_gallery_and_no_k_are_refused_before_anything_is_embedded(digits, monkeypatch):
    model = open_model("HOG", image_size=16)
    monkeypatch.setattr(type(model), "embed", None)
    with pytest.raises(ValueError, match=r"k: got 500, expected at most 288, the images of the gallery"):
        evaluate(model, digits, k=500)
    with pytest.raises(ValueError, match=r"k: got 0, expected a whole number, at least 1"):
        evaluate(model, digits, k=0)


def test_rated_triplets_give_precision_and_scores(tmp_path, make_rated_triplets):
    root = make_rated_triplets(tmp_path / "rated")
    data = open_data(str(root), image_size=24, cache=str(tmp_path / "cache"))
    figures = evaluate(open_model("LABHistogram", image_size=24), data, k=3, resamples=200)
    assert figures["similarity_precision"]["value"] > 0.9
    assert {"score_at_top_3", "score_at_top_share", "score_at_top_3_of_all", "rated"} <= figures.keys()
    shown = dict(summary(figures))
    assert shown["similarity_precision"].startswith(f"{figures['similarity_precision']['value']:.4f} (95% ")
    assert "of 24 triplets counted" in shown["score_at_top_3"]


def test_a_feature_learns_without_labels_from_the_gallery(digits):
    class Learns(LABHistogram):
        def fit(self, images, y=None):
            self.seen_images, self.seen_labels = np.asarray(images), y
            return self

    transformer = Learns()
    evaluate(FeatureModel("learns", transformer, image_size=16), digits, k=3)
    assert transformer.seen_labels is None
    assert transformer.seen_images.shape == (288, 3, 16, 16)
