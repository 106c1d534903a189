"""Folders of finished runs that nobody trained, for what only reads them."""

import torch

from dr_plugin.evaluation.trained import new_trunk
from dr_plugin.experiments import checkpoint
from dr_plugin.experiments.recipe import load_recipe


def finished(folder, *settings):
    """Write what a finished run of the quickstart leaves, its weights and its statistics unlike those it began with."""
    recipe = load_recipe("quickstart", list(settings))
    trunk = new_trunk(recipe)
    generator = torch.Generator().manual_seed(1)
    for name, value in trunk.state_dict().items():
        if value.is_floating_point():
            lowest = 0 if name.endswith("running_var") else -0.5
            value.add_(0.4 * (lowest + torch.rand(value.shape, generator=generator)))
    checkpoint.save(folder / "checkpoint" / "best.pt", {"models": {"trunk": trunk.state_dict()}})
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "metrics.json").write_text("{}")
    return folder


def by_hand(folder, images):
    """The embeddings of images of the run's size, normalised in float64 as the definition says."""
    recipe = load_recipe(folder / "recipe.yaml")
    trunk = new_trunk(recipe)
    trunk.load_state_dict(torch.load(folder / "checkpoint" / "best.pt", weights_only=True)["models"]["trunk"])
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (recipe.data.normalize.mean, recipe.data.normalize.std)
    )
    prepared = (images.double() / 255 - mean) / std
    with torch.no_grad():
        return torch.cat([trunk.eval()(image[None].float()) for image in prepared])


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
