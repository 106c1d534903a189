"""How long PDDM's similarity unit stays on its plateau, by what is mined for it.

    python benchmarks/pddm_plateau.py

A small network on scikit-learn's digits, batches of 64, network and unit by Adam at 0.001. On the plateau all pairs
have one similarity (`similarity_std` near 0); the table says after how many steps its mean over 50 steps first passes
0.1, and what the unit and the distance are worth on images not trained on afterwards. Some minutes on one core.
"""

import argparse
from statistics import fmean

import torch
from _harness import machine_line, table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from dr_plugin.losses import PDDMLoss
from dr_plugin.miners import HardQuadrupletMiner, UniformTripletMiner

TRAINED_ON, BATCH, SIZE, WINDOW = 1000, 64, 32, 50
MINERS = {
    "one quadruplet": lambda unit, seed: HardQuadrupletMiner(unit),
    "16 quadruplets": lambda unit, seed: HardQuadrupletMiner(unit, quadruplets=16),
    "hard triplets": lambda unit, seed: HardQuadrupletMiner(unit, kind="triplet"),
    "uniform triplets": lambda unit, seed: UniformTripletMiner(1, seed=seed),
}


def digits() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 64) in 0..1 and labels, shuffled."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def batches(steps: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(TRAINED_ON, (BATCH,), generator=generator)


def network(pixels: Tensor, labels: Tensor, seed: int, *, pretrained: bool) -> nn.Module:
    """Random weights, or those after 300 steps of a softmax classifier."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, SIZE))
    head = nn.Linear(SIZE, 10)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=1e-3)
    for batch in batches(300 if pretrained else 0, seed + 10):
        optimizer.zero_grad()
        cross_entropy(head(net(pixels[batch])), labels[batch]).backward()
        optimizer.step()
    return net


def recall_at_1(similarities: Tensor, labels: Tensor) -> float:
    nearest = similarities.clone().fill_diagonal_(-torch.inf).argmax(dim=1)
    return (labels[nearest] == labels).double().mean().item()


def run(mined: str, pretrained: bool, seed: int, steps: int) -> tuple[int | None, float, float]:
    """The step that left the plateau (None: not in these steps), R@1 by the unit and by distance."""
    pixels, labels = digits()
    net = network(pixels, labels, seed, pretrained=pretrained)
    loss_func = PDDMLoss(SIZE, collect_stats=True)
    miner = MINERS[mined](loss_func.unit, seed)
    optimizer = torch.optim.Adam([*net.parameters(), *loss_func.parameters()], lr=1e-3)
    spread: list[float] = []
    for batch in batches(steps, seed + 20):
        embeddings = net(pixels[batch])
        loss = loss_func(embeddings, labels[batch], miner(embeddings, labels[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        spread.append(loss_func.similarity_std)
    left = (step for step in range(WINDOW, steps) if fmean(spread[step - WINDOW : step]) > 0.1)
    with torch.no_grad():
        unseen, own = net(pixels[TRAINED_ON:]), labels[TRAINED_ON:]
        by_distance = normalize(unseen) @ normalize(unseen).T
        return (
            next(left, None),
            recall_at_1(loss_func.unit.matrix(unseen), own),
            recall_at_1(by_distance, own),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for mined in MINERS:
        for start in ("softmax", "random"):
            runs = [run(mined, start == "softmax", seed, arguments.steps) for seed in range(arguments.seeds)]
            left = ", ".join("not left" if step is None else f"{step:,}" for step, *_ in runs)
            rows.append([mined, start, left, *(f"{fmean(one[k] for one in runs):.3f}" for k in (1, 2))])
    print(machine_line())
    print(table(rows, ["mined", "start", "left the plateau at step", "R@1 by the unit", "R@1 by distance"]))


if __name__ == "__main__":
    main()
