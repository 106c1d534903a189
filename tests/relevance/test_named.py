"""Transformers by name, or as they are given."""

import pytest
from sklearn.decomposition import PCA

from dr_plugin.relevance import features
from dr_plugin.relevance.features import HOG, LABHistogram
from dr_plugin.relevance.named import named_transformers


@pytest.mark.parametrize("name", features.__all__)
def test_every_feature_is_had_by_its_name(name):
    (made,) = named_transformers([name])
    assert type(made) is getattr(features, name)
    assert made.get_params() == type(made)().get_params()


def test_given_ones_stay_themselves_and_in_their_place():
    hog, pca = HOG(cell_size=4), PCA(2)
    found = named_transformers((hog, "LABHistogram", pca, "LABHistogram"))
    assert found[0] is hog
    assert found[2] is pca
    assert [type(of) for of in found] == [HOG, LABHistogram, PCA, LABHistogram]
    assert found[1] is not found[3]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("LABHistogramm", "LABHistogram"),
        ("SIFTHistograms", "SIFTHistogram"),
        ("HOGS", "HOG"),
        ("Wavelets", "Wavelet"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"features: got '{name}', expected one of .*did you mean '{near}'"):
        named_transformers(["HOG", name])


@pytest.mark.parametrize("name", ["", "zzz", "numpy", "hog.HOG"])
def test_a_name_like_none_of_them_is_refused(name):
    with pytest.raises(ValueError, match="expected one of HOG, FisherVector, "):
        named_transformers([name])


@pytest.mark.parametrize(
    "given", [[HOG], [3], [None], [object()]], ids=["class", "number", "None", "no transformer"]
)
def test_what_is_no_transformer_is_refused(given):
    with pytest.raises(ValueError, match="expected an object with transform and get_params"):
        named_transformers(given)


@pytest.mark.parametrize("given", [[], (), "HOG"])
def test_no_list_of_features_is_refused(given):
    with pytest.raises(ValueError, match="expected transformers or names, at least one"):
        named_transformers(given)
