"""UniformTripletMiner against PML's get_random_triplet_indices: as many triplets of the same batch."""

import argparse
import statistics

import torch
from _harness import machine_line, median_ratio, paired, table
from pytorch_metric_learning.utils.loss_and_miner_utils import get_random_triplet_indices

from dr_plugin.miners import UniformTripletMiner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--images-per-class", type=int, default=4, help="images of each class in a batch")
    parser.add_argument("--triplets-per-query", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()

    rows = []
    for batch_size in arguments.batch_sizes:
        labels = torch.arange(batch_size, device=arguments.device) // arguments.images_per_class
        labels = labels[torch.randperm(batch_size, device=arguments.device)]
        embeddings = torch.zeros(batch_size, 1, device=arguments.device)
        miner = UniformTripletMiner(arguments.triplets_per_query)
        seconds = paired(
            {
                "ours": lambda miner=miner, embeddings=embeddings, labels=labels: miner(embeddings, labels),
                "pml": lambda labels=labels: get_random_triplet_indices(
                    labels, t_per_anchor=arguments.triplets_per_query
                ),
            },
            repeats=arguments.repeats,
        )
        rows.append(
            (
                batch_size,
                batch_size * arguments.triplets_per_query,
                f"{statistics.median(seconds['ours']) * 1e3:.2f}",
                f"{statistics.median(seconds['pml']) * 1e3:.2f}",
                f"{median_ratio(seconds['pml'], seconds['ours']):.1f}",
            )
        )
    print(machine_line())
    print(table(rows, ["batch", "triplets", "ours, ms", "PML, ms", "PML / ours"]))


if __name__ == "__main__":
    main()
