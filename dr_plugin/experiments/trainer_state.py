"""What a trainer needs to go on from where it stood: a plain dictionary for a checkpoint."""

from typing import TYPE_CHECKING, Any

from dr_plugin import distributed

from . import checkpoint

if TYPE_CHECKING:
    from .trainer import StageTrainer

_POSITION = ("epochs_done", "batches_done", "steps_done", "images_seen", "loss_count")


def state_of(trainer: "StageTrainer") -> dict[str, Any]:
    """The trainer's state; of several processes all must ask for it, and theirs are alike."""
    stateful = hasattr(trainer.sampler, "state_dict")
    return {
        "models": {key: module.state_dict() for key, module in trainer.models.items()},
        "averaged": trainer.averaged.state_dict() if trainer.averaged is not None else None,
        "optimizers": {key: value.state_dict() for key, value in trainer.optimizers.items()},
        "lr_schedulers": {key: value.state_dict() for key, value in trainer.lr_schedulers.items()},
        "scaler": trainer.scaler.state_dict(),
        "loss_funcs": {key: checkpoint.module_state(value) for key, value in trainer.loss_funcs.items()},
        "mining_funcs": {key: checkpoint.module_state(value) for key, value in trainer.mining_funcs.items()},
        "sampler": trainer.sampler.state_dict() if stateful else None,
        "generators": {
            "global": checkpoint.generators_state(trainer.data_device),
            "order": trainer.order.generator.get_state(),
            "augment": trainer.augment_generator.get_state(),
        },
        "position": {key: getattr(trainer, key) for key in _POSITION},
        "batches": list(trainer.batches),
        "loss_sum": distributed.averaged(trainer.loss_sum).clone(),
    }


def restore(trainer: "StageTrainer", state: dict[str, Any]) -> None:
    """Put the trainer where it stood when `state_of` was asked."""
    for family in ("models", "optimizers", "lr_schedulers"):
        for key, value in getattr(trainer, family).items():
            value.load_state_dict(state[family][key])
    for family in ("loss_funcs", "mining_funcs"):
        for key, value in getattr(trainer, family).items():
            checkpoint.load_module_state(value, state[family][key])
    if trainer.averaged is not None:
        trainer.averaged.load_state_dict(state["averaged"])
    trainer.scaler.load_state_dict(state["scaler"])
    if state["sampler"] is not None:
        trainer.sampler.load_state_dict(state["sampler"])
    for key in _POSITION:
        setattr(trainer, key, state["position"][key])
    trainer.batches = list(state["batches"])
    trainer.loss_sum = state["loss_sum"].to(trainer.data_device)
    trainer.order.generator.set_state(state["generators"]["order"])
    trainer.augment_generator.set_state(state["generators"]["augment"])
    checkpoint.restore_generators(state["generators"]["global"], trainer.data_device)
