"""The multiscale network against an explicit version of Fig. 3, and in all the ways that a user runs it."""

import copy
import doctest
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils.inference import InferenceModel
from torch import nn
from torch.utils.data import TensorDataset

from dr_plugin.trunks import DeepRankingTrunk, SmallConvNet, deep_ranking
from dr_plugin.trunks.deep_ranking import LowResolutionPath


def small_trunk(input_size=24, embedding_size=6, dropout=0.0, **arguments):
    torch.manual_seed(0)
    return DeepRankingTrunk(
        SmallConvNet((4, 8)),
        embedding_size=embedding_size,
        input_size=input_size,
        dropout=dropout,
        **arguments,
    )


# --- the explicit version: one image, numpy, loops over output places --------------------------------------


def same_windows(n, kernel, stride):
    """The places of each window that are on the image, for SAME padding with the odd rest at the end."""
    count = math.ceil(n / stride)
    before = max((count - 1) * stride + kernel - n, 0) // 2
    return [
        [p for p in range(i * stride - before, i * stride - before + kernel) if 0 <= p < n]
        for i in range(count)
    ]


def subsample_loops(image, factor):
    """(3, n, n) -> (3, m, m): place i is the mean over all pixels that [i n/m, (i + 1) n/m) touches."""
    n = image.shape[-1]
    m = math.ceil(n / factor)
    areas = [range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
    return np.array([[[channel[np.ix_(r, c)].mean() for c in areas] for r in areas] for channel in image])


def convolve_loops(image, weight, bias):
    """8x8 of stride 4, then ReLU; what lies outside the image counts as zero."""
    n = image.shape[-1]
    count = math.ceil(n / 4)
    before = max((count - 1) * 4 + 8 - n, 0) // 2
    out = np.zeros((len(weight), count, count))
    for r in range(count):
        for c in range(count):
            total = bias.copy()
            for y in range(8):
                for x in range(8):
                    py, px = r * 4 - before + y, c * 4 - before + x
                    if 0 <= py < n and 0 <= px < n:
                        total += weight[:, :, y, x] @ image[:, py, px]
            out[:, r, c] = np.maximum(total, 0)
    return out


def max_pool_loops(maps, kernel, stride):
    windows = same_windows(maps.shape[-1], kernel, stride)
    return np.array([[[m[np.ix_(r, c)].max() for c in windows] for r in windows] for m in maps])


def path_loops(path, image, factor, kernel, stride):
    weight, bias = (p.detach().double().numpy() for p in path.convolution.parameters())
    return max_pool_loops(convolve_loops(subsample_loops(image, factor), weight, bias), kernel, stride)


def trunk_loops(trunk, image, pool_strides=(4, 2)):
    with torch.no_grad():
        features = trunk.convnet(image[None]).double().numpy()[0]
    parts = [features / math.sqrt((features**2).sum())]
    if len(trunk.low_resolution):
        pixels = image.double().numpy()
        maps = [
            path_loops(path, pixels, *sizes).ravel()
            for path, sizes in zip(
                trunk.low_resolution, [(4, 3, pool_strides[0]), (8, 7, pool_strides[1])], strict=True
            )
        ]
        joint = np.concatenate(maps)
        parts.append(joint / math.sqrt((joint**2).sum()))
    weight = trunk.embedding.weight.detach().double().numpy()
    embedding = weight @ np.concatenate(parts) + trunk.embedding.bias.detach().double().numpy()
    return embedding / math.sqrt((embedding**2).sum())


@pytest.mark.parametrize("input_size", [24, 37, 96])
@pytest.mark.parametrize("arguments", [{}, {"pool_strides": (2, 4)}, {"low_resolution": False}])
def test_forward_equals_loops(input_size, arguments):
    trunk = small_trunk(input_size, **arguments).double().eval()
    nn.init.normal_(trunk.embedding.bias, std=0.1)
    image = torch.randn(3, input_size, input_size, dtype=torch.float64)
    expected = trunk_loops(trunk, image, arguments.get("pool_strides", (4, 2)))
    np.testing.assert_allclose(trunk(image[None])[0].detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("factor", "kernel", "stride"), [(4, 3, 4), (8, 7, 2)])
def test_low_resolution_path_equals_loops_at_225(factor, kernel, stride):
    path = LowResolutionPath(factor, kernel, stride, channels=2).double()
    image = torch.randn(3, 225, 225, dtype=torch.float64)
    expected = path_loops(path, image.numpy(), factor, kernel, stride)
    assert expected.shape == (2, 4, 4)
    np.testing.assert_allclose(path(image[None])[0].detach().numpy(), expected, atol=1e-12)


# --- sizes -------------------------------------------------------------------------------------------------


def seen_sizes(path, input_size, monkeypatch):
    """Sides of: the subsampled image, the convolution's maps, the pooled maps."""
    sizes = []
    average, convolve = deep_ranking.F.adaptive_avg_pool2d, path.convolution.forward

    def watch(function):
        def watched(*args):
            out = function(*args)
            sizes.append(out.shape[-1])
            return out

        return watched

    monkeypatch.setattr(deep_ranking.F, "adaptive_avg_pool2d", watch(average))
    monkeypatch.setattr(path.convolution, "forward", watch(convolve))
    out = path(torch.zeros(1, 3, input_size, input_size))
    assert out.shape == (1, 96, out.shape[-1], out.shape[-1])
    return [*sizes, out.shape[-1]]


@pytest.mark.parametrize(
    ("input_size", "pool_strides", "expected"),
    [
        (225, (4, 2), ([57, 15, 4], [29, 8, 4])),  # the sizes that Fig. 3 prints
        (225, (2, 4), ([57, 15, 8], [29, 8, 2])),  # the strides that Fig. 3 prints
        (64, (4, 2), ([16, 4, 1], [8, 2, 1])),
        (8, (4, 2), ([2, 1, 1], [1, 1, 1])),
    ],
)
def test_sizes_are_those_of_the_paper_and_follow_the_input(input_size, pool_strides, expected, monkeypatch):
    trunk = small_trunk(input_size, pool_strides=pool_strides)
    for path, sizes in zip(trunk.low_resolution, expected, strict=True):
        assert seen_sizes(path, input_size, monkeypatch) == sizes
    assert trunk.embedding.in_features == 8 + 96 * sum(sizes[-1] ** 2 for sizes in expected)


def test_alexnet_at_225_is_the_papers_network():
    with torch.device("meta"):
        trunk = DeepRankingTrunk()
    assert (trunk.input_size, trunk.convnet_features, trunk.embedding_size) == (225, 4096, 4096)
    assert trunk.embedding.weight.shape == (4096, 7168)
    dropouts = [module.p for module in trunk.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.4, 0.4, 0.4]  # keep 0.6, in front of fc6, fc7 and the embedding
    embeddings = trunk(torch.zeros(2, 3, 225, 225, device="meta"))
    assert embeddings.shape == (2, 4096)


def test_alexnet_at_225_runs():
    trunk = DeepRankingTrunk(embedding_size=16).eval()
    with torch.no_grad():
        embedding = trunk(torch.randn(1, 3, 225, 225))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(1))


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 70), pool_stride=st.integers(1, 5), factor=st.sampled_from([4, 8]))
def test_output_size_is_the_size_of_the_output(size, pool_stride, factor):
    path = LowResolutionPath(factor, 3, pool_stride, channels=1)
    side = path.output_size(size)
    assert path(torch.rand(1, 3, size, size)).shape == (1, 1, side, side)


# --- closed forms and degenerate input ---------------------------------------------------------------------


def test_low_resolution_outputs_share_one_normalisation():
    trunk = small_trunk(32).eval()
    seen = []
    trunk.embedding.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    images = torch.randn(3, 3, 32, 32)
    trunk(images)
    (joined,) = seen
    assert joined.shape == (3, 8 + 2 * 96)
    torch.testing.assert_close(joined[:, :8].norm(dim=1), torch.ones(3))
    torch.testing.assert_close(joined[:, 8:].norm(dim=1), torch.ones(3))
    raw = [path(images).flatten(1).norm(dim=1) for path in trunk.low_resolution]
    torch.testing.assert_close(joined[:, 8:104].norm(dim=1) / joined[:, 104:].norm(dim=1), raw[0] / raw[1])


def test_constant_image_stays_constant_through_subsampling():
    path = LowResolutionPath(4, 3, 4, channels=1)
    nn.init.zeros_(path.convolution.bias)
    nn.init.ones_(path.convolution.weight)
    maps = path(torch.full((1, 3, 225, 225), 0.5))
    assert maps.max().item() == pytest.approx(0.5 * 3 * 64)  # a full 8x8 window of the small image


@pytest.mark.parametrize("batch", [1, 4])
def test_black_image_without_bias_gives_zero_and_finite_gradients(batch):
    trunk = small_trunk().eval()
    for path in trunk.low_resolution:
        nn.init.zeros_(path.convolution.bias)
    embeddings = trunk(torch.zeros(batch, 3, 24, 24))
    assert torch.equal(embeddings, torch.zeros(batch, 6))
    embeddings.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in trunk.parameters())


def test_empty_batch_gives_no_embeddings():
    assert small_trunk().eval()(torch.zeros(0, 3, 24, 24)).shape == (0, 6)


def test_embedding_is_the_same_in_any_batch():
    trunk = small_trunk().eval()
    images = torch.randn(5, 3, 24, 24)
    torch.testing.assert_close(trunk(images)[2:3], trunk(images[2:3]))


def test_dropout_acts_on_the_input_of_the_embedding():
    trunk = small_trunk(dropout=0.5).eval()
    images = torch.randn(4, 3, 24, 24)
    seen = []
    trunk.embedding.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    trunk(images)
    trunk.dropout.train()
    trunk(images)
    kept = seen[1] != 0
    torch.testing.assert_close(seen[1][kept], 2 * seen[0][kept])
    assert 0.35 < (seen[0][~kept] != 0).sum() / (seen[0] != 0).sum() < 0.65


# --- ways to run it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_float32_unit_vectors(dtype):
    trunk = small_trunk().eval()
    images = torch.randn(2, 3, 24, 24)
    with torch.autocast("cpu", dtype=dtype):
        embeddings = trunk(images)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(embeddings, trunk(images), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_cast_trunk_normalises_in_float32_or_wider(dtype, expected):
    trunk = small_trunk().to(dtype).eval()
    embeddings = trunk(torch.randn(2, 3, 24, 24, dtype=dtype))
    assert embeddings.dtype == expected
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, dtype=expected), rtol=0, atol=1e-6)


def test_channels_last_gives_the_same_embeddings():
    trunk = small_trunk().eval()
    images = torch.randn(2, 3, 24, 24)
    expected = trunk(images)
    trunk.to(memory_format=torch.channels_last)
    torch.testing.assert_close(trunk(images.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_graph_breaks(backend, autocast):
    trunk = small_trunk()
    compiled = torch.compile(copy.deepcopy(trunk), backend=backend, fullgraph=True)
    images = torch.randn(3, 3, 24, 24)
    results = []
    for module in (trunk, compiled):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            embeddings = module(images)
        embeddings[:, 0].sum().backward()
        results.append([embeddings, *(p.grad for p in module.parameters())])
    tolerance = {"rtol": 0.05, "atol": 0.05} if autocast else {}
    torch.testing.assert_close(results[1], results[0], **tolerance)


def test_exports_with_a_dynamic_batch():
    trunk = small_trunk().eval()
    exported = torch.export.export(
        trunk, (torch.randn(2, 3, 24, 24),), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}
    )
    images = torch.randn(5, 3, 24, 24)
    torch.testing.assert_close(exported.module()(images), trunk(images))


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda trunk: pickle.loads(pickle.dumps(trunk))])
def test_copies_and_pickles(copy_of):
    trunk = small_trunk().eval()
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(copy_of(trunk)(images), trunk(images))


def test_state_dict_round_trip():
    trunk, other = small_trunk().eval(), small_trunk().eval()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(trunk.state_dict())
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(other(images), trunk(images))


def test_every_parameter_gets_a_gradient():
    trunk = small_trunk()
    trunk(torch.randn(4, 3, 24, 24))[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trunk.parameters())


def test_first_filters_are_named_by_path():
    trunk = small_trunk()
    shapes = {name: tuple(filters.shape) for name, filters in trunk.first_filters().items()}
    assert shapes == {
        "convnet": (4, 3, 3, 3),
        "low_resolution_1": (96, 3, 8, 8),
        "low_resolution_2": (96, 3, 8, 8),
    }
    assert torch.equal(trunk.first_filters()["low_resolution_2"], trunk.low_resolution[1].convolution.weight)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Flatten(), nn.Linear(3 * 8 * 8, 4)],
        [nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3), nn.Flatten()],  # sees 12 channels
    ],
)
def test_first_filters_that_are_no_pictures_are_left_out(layers):
    convnet = nn.Sequential(*layers)
    trunk = DeepRankingTrunk(convnet, embedding_size=2, input_size=8, low_resolution=False)
    assert trunk.first_filters() == {}


# PML's trainer formats the loss with its gradient, and its progress bar is hard-wired.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
def test_trains_and_embeds_in_plain_pytorch_metric_learning():
    trunk = small_trunk()
    before = trunk.embedding.weight.detach().clone()
    dataset = TensorDataset(torch.randn(8, 3, 24, 24), torch.arange(8) // 2)
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=8,
        loss_funcs={"metric_loss": TripletMarginLoss()},
        dataset=dataset,
        dataloader_num_workers=0,
        data_device="cpu",
    )
    trainer.train(num_epochs=1)
    assert not torch.equal(trunk.embedding.weight, before)
    embeddings, _ = GlobalEmbeddingSpaceTester(
        data_device="cpu", dataloader_num_workers=0
    ).get_all_embeddings(dataset, trunk)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(8))
    model = InferenceModel(trunk.eval(), data_device="cpu")
    model.train_knn(dataset)
    _, indices = model.get_nearest_neighbors(dataset.tensors[0], k=1)
    assert indices.flatten().tolist() == list(range(8))


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 24, 24),
        torch.zeros(2, 3, 24, 23),
        torch.zeros(2, 3, 32, 32),
        torch.zeros(3, 24, 24),
        torch.zeros(2, 3, 24, 24, dtype=torch.uint8),
    ],
)
@pytest.mark.parametrize("low_resolution", [True, False])
def test_forward_refuses_other_images(images, low_resolution):
    trunk = small_trunk(low_resolution=low_resolution)
    with pytest.raises(ValueError, match=r"images: got \(.*expected \(B, 3, 24, 24\) float"):
        trunk(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_size": 0}, "embedding_size: got 0, expected a whole number, at least 1"),
        ({"embedding_size": 2.5}, "embedding_size: got 2.5"),
        ({"embedding_size": True}, "embedding_size: got True"),
        ({"input_size": -1}, "input_size: got -1"),
        ({"input_size": "64"}, "input_size: got '64'"),
        ({"dropout": 1.0}, r"dropout: got 1.0, expected a probability to drop in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout: got -0.1"),
        ({"dropout": math.nan}, "dropout: got nan"),
        ({"dropout": "0.4"}, "dropout: got '0.4'"),
        ({"pool_strides": (4,)}, r"pool_strides: got \(4,\), expected two integers"),
        ({"pool_strides": (4, 0)}, "pool_strides: got 0"),
        ({"pool_strides": 4}, "pool_strides: got 4, expected two integers"),
        ({"convnet_stem": "tiny"}, "convnet_stem: got 'tiny', expected one of standard, small"),
        ({"convnet": "resnet19"}, r"convnet: got 'resnet19'.*did you mean 'resnet1"),
        ({"convnet": "AlexNet"}, "did you mean 'alexnet'"),
        ({"convnet": "fcn_resnet50"}, "convnet: got 'fcn_resnet50', expected .* classification model"),
        (
            {"convnet": SmallConvNet},
            "convnet: got <class .*expected a torchvision model's name or an nn.Module",
        ),
        ({"convnet": None}, "convnet: got None"),
        ({"convnet": "alexnet", "input_size": 40}, "AlexNet failed on a .* input.*change input_size"),
        ({"convnet": "vit_b_32", "input_size": 65}, "'vit_b_32' cannot be built for input_size=65"),
        ({"convnet": nn.Conv2d(3, 4, 3)}, r"Conv2d: got \(1, 4, 22, 22\) for one image.*pool and flatten"),
        ({"convnet": nn.Linear(7, 4)}, "Linear failed on a"),
        ({"convnet": SmallConvNet(), "convnet_stem": "small"}, "convnet_stem: got 'small' with an nn.Module"),
        ({"convnet": SmallConvNet(), "weights": "imagenet"}, "weights: got 'imagenet' with an nn.Module"),
        ({"convnet": "alexnet", "weights": "no/such.pt"}, "weights: got 'no/such.pt', which is no file"),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    arguments = {"convnet": SmallConvNet((2,)), "embedding_size": 4, "input_size": 24} | arguments
    with pytest.raises(ValueError, match=message):
        DeepRankingTrunk(**arguments)


def test_examples_in_docstrings():
    result = doctest.testmod(deep_ranking)
    assert result.attempted == 2
    assert result.failed == 0
