"""RankingAccuracyCalculator where PML calls it: testers, trainers' hooks, and other search functions."""

import warnings

import pytest
import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils.logging_presets import HookContainer

from dr_plugin.metrics import ApproximateKNN, RankingAccuracyCalculator, nearest, precision_at_k, recall_at_k


def evaluated(split, calculator, splits_to_eval, tmp_path):
    query, query_labels, reference, reference_labels = split
    data = {
        "train": torch.utils.data.TensorDataset(reference, reference_labels),
        "val": torch.utils.data.TensorDataset(query, query_labels),
    }
    tester = GlobalEmbeddingSpaceTester(
        normalize_embeddings=False,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        accuracy_calculator=calculator,
    )
    # What PML's hooks ask before training starts: is the metric that chooses the best epoch there?
    HookContainer(None, primary_metric="precision_at_9").end_of_epoch_hook(tester, data, str(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")  # PML pins memory where there is no GPU
        return tester.test(data, 0, torch.nn.Identity(), splits_to_eval=splits_to_eval)


def test_tester_gives_the_figures(split, tmp_path):
    query, query_labels, reference, reference_labels = split
    calculator = RankingAccuracyCalculator(k=9, recall_at=(1,), device="cpu")
    figures = evaluated(split, calculator, [("val", ["train"]), ("train", ["train"])], tmp_path)
    on_val = reference_labels[nearest(query, reference, 9)[1]]
    on_train = reference_labels[nearest(reference, reference, 9, exclude_self=True)[1]]
    assert figures["val"]["precision_at_9_level0"] == precision_at_k(on_val, query_labels, 9).item()
    assert figures["val"]["recall_at_1_level0"] == recall_at_k(on_val, query_labels, 1).item()
    assert figures["train"]["precision_at_9_level0"] == precision_at_k(on_train, reference_labels, 9).item()


def test_tester_with_a_gallery_smaller_than_k_fails_loudly(split, tmp_path):
    query, query_labels, reference, reference_labels = split
    small = (query, query_labels, reference[:8], reference_labels[:8])
    with pytest.raises(ValueError, match="k=9 neighbours, expected at most the 8 images"):
        evaluated(small, RankingAccuracyCalculator(k=9, device="cpu"), [("val", ["train"])], tmp_path)


class Records:
    """What HookContainer asks of a record keeper, without its data base: every epoch is then a new best."""

    def __init__(self):
        self.hash_map = {}
        self.seen = []

    def update_records(self, record, epoch, parent_name):
        self.seen.append((epoch, parent_name, dict(record)))

    def table_exists(self, name):
        return False

    def save_records(self):
        pass


def test_trainers_hooks_get_the_figures_after_each_epoch(split, tmp_path):
    query, query_labels, reference, reference_labels = split
    data = {
        "train": torch.utils.data.TensorDataset(reference, reference_labels),
        "val": torch.utils.data.TensorDataset(query, query_labels),
    }
    records = Records()
    hooks = HookContainer(records, primary_metric="mean_average_precision_at_9")
    tester = GlobalEmbeddingSpaceTester(
        normalize_embeddings=False,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        accuracy_calculator=RankingAccuracyCalculator(k=9, recall_at=(1, 2), map_at=(9,), device="cpu"),
        end_of_testing_hook=hooks.end_of_testing_hook,
    )
    trunk = torch.nn.Linear(8, 8)
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.01)},
        batch_size=20,
        loss_funcs={"metric_loss": TripletMarginLoss()},
        dataset=data["train"],
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        end_of_epoch_hook=hooks.end_of_epoch_hook(
            tester, data, str(tmp_path), splits_to_eval=[("val", ["train"])]
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PML's own: pinned memory without a GPU, its progress bar's loss
        trainer.train(num_epochs=2)
    figures = [(epoch, record) for epoch, _, record in records.seen if "epoch" in record]
    assert [epoch for epoch, _ in figures] == [1, 2]
    names = {"precision_at_9", "recall_at_1", "recall_at_2", "mean_average_precision_at_9"}
    assert figures[-1][1].keys() == {"epoch", *(f"{name}_level0" for name in names)}
    assert (tmp_path / "trunk_best2.pth").exists()
    with torch.no_grad():
        neighbor_labels = reference_labels[nearest(trunk(query), trunk(reference), 9)[1]]
    expected = precision_at_k(neighbor_labels, query_labels, 9).item()
    assert figures[-1][1]["precision_at_9_level0"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_approximate_neighbours_work(split, kind):
    knn = ApproximateKNN(kind)
    figures = RankingAccuracyCalculator(k=5, knn_func=knn, device="cpu").get_accuracy(*split)
    assert knn.recall_ == 1.0  # a reference of 120: all three find everything
    assert figures == RankingAccuracyCalculator(k=5, device="cpu").get_accuracy(*split)
