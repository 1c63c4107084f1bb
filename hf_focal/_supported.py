"""What FocalTrainer can train, and errors for what it cannot."""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from ._checks import describe
from ._model_kinds import num_classes_of, unsupported_task_of


SUPPORTED = (
    "FocalTrainer supports single-label, multi-label and token classification and language modelling: the batch holds "
    "`labels`, the model returns `logits` with one entry per class in the last dimension (the first entry of a tuple)."
)


def check_bases(trainer_class: type, focal_trainer: type) -> None:
    """Rejects a subclass of FocalTrainer whose other base classes would replace its loss.

    Raises:
        `ValueError`: With an order of the base classes that works, if there is one.
    """
    order = trainer_class.__mro__
    for base in order[: order.index(focal_trainer)]:
        if issubclass(base, Trainer) and not issubclass(base, focal_trainer):
            raise ValueError(
                f"{trainer_class.__name__}: FocalTrainer must come before {base.__name__}, which does not use focal "
                f"loss: class {trainer_class.__name__}(FocalTrainer, {base.__name__})"
            )
    for base in order[order.index(focal_trainer) + 1 : order.index(Trainer)]:
        if "__init__" not in vars(base) or not issubclass(base, Trainer):
            continue
        parameters = inspect.signature(base).parameters
        takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        if "compute_loss_func" not in parameters and not takes_any:
            raise ValueError(
                f"{trainer_class.__name__}: {base.__name__} takes no compute_loss_func because it computes its own "
                "loss, so it cannot use FocalTrainer's"
            )


def check_model(model: nn.Module, args: TrainingArguments) -> None:
    """Rejects an (unwrapped) model or arguments whose loss would not be FocalTrainer's.

    Raises:
        `ValueError`: The message says what to do instead.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    problem_type = getattr(config, "problem_type", None)
    if problem_type == "regression" or (problem_type is None and num_classes_of(model) == 1):
        raise ValueError(
            f"model: {name} is a regression head (num_labels={getattr(config, 'num_labels', 1)}, problem_type={problem_type!r}), "
            "which has no classes to weight. For two classes create the model with num_labels=2, or with num_labels=1 "
            'and problem_type="multi_label_classification", so that its one logit is that of class 1. '
            f"{SUPPORTED}"
        )
    task = unsupported_task_of(model)
    if task is not None:
        raise ValueError(f"model: {name} is made for {task}, whose targets are not classes. {SUPPORTED}")
    if len({*(args.label_names or [])} - {"shift_labels"}) > 1:
        raise ValueError(
            f"label_names: expected one name, as FocalTrainer trains on one kind of label, but got {args.label_names}"
        )
    router_loss = max(getattr(config, key, 0) or 0 for key in ("router_aux_loss_coef", "aux_loss_coef"))  # JetMoe's
    if getattr(config, "output_router_logits", False) and router_loss:
        raise ValueError(
            f"model: {name} adds a load-balancing loss for its router only if it gets the labels, so FocalTrainer "
            "would leave it out; set config.output_router_logits = False to train without it"
        )
    if getattr(config, "z_loss_coefficient", 0):  # Bamba's
        raise ValueError(
            f"model: {name} adds a loss on the size of its logits only if it gets the labels, so FocalTrainer would "
            "leave it out; set config.z_loss_coefficient = 0 to train without it"
        )
    ngram = getattr(config, "ngram", 1)
    if ngram > 1 and not getattr(config, "disable_ngram_loss", True):  # ProphetNet's
        raise ValueError(
            f"model: {name} predicts {ngram} tokens at once, but FocalTrainer would train only the first; set "
            "config.disable_ngram_loss = True to accept that"
        )
    parameter = inspect.signature(model.forward).parameters.get("labels")
    if parameter is not None and parameter.default is not None:
        needs = "requires labels" if parameter.default is parameter.empty else "uses default labels if it gets none"
        raise ValueError(
            f"model: {name}.forward {needs}, but FocalTrainer keeps the labels for its own loss; give the argument "
            "the default labels=None, and return logits without labels"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"args: {args.n_gpu} GPUs in one process (nn.DataParallel) are not supported; start one process "
            "per GPU with `accelerate launch` or `torchrun`, or choose one with CUDA_VISIBLE_DEVICES"
        )


def find_logits(outputs: Any, num_classes: int | None) -> Tensor:
    """The logits in the outputs of a model.

    Raises:
        `ValueError`: If there are none, or if several tensors could be the logits.
    """
    if isinstance(outputs, dict):
        if "logits" not in outputs:
            raise ValueError(f"model: returned {', '.join(outputs)} but no logits. {SUPPORTED}")
        logits = outputs["logits"]
    else:
        # Without labels a model may return None or a scalar in place of the loss.
        entries = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        tensors = [entry for entry in entries if isinstance(entry, Tensor) and entry.dim() > 1]
        fitting = [tensor for tensor in tensors if tensor.shape[-1] == num_classes]
        if len(fitting) > 1:
            raise ValueError(
                f"model: returned {' and '.join(map(describe, fitting))} in a tuple, any of which could be the logits "
                f"of {num_classes} classes; return a dict with `logits`. {SUPPORTED}"
            )
        logits = next(iter(fitting or tensors), None)
    if hasattr(outputs, "logits") and not isinstance(outputs, (dict, tuple)):
        raise ValueError(
            f"model: returned a {type(outputs).__name__}, from which Trainer cannot take a loss; return a dict, a "
            "tuple or a transformers.utils.ModelOutput"
        )
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        returned = logits if isinstance(outputs, dict) else outputs
        outline = ", ".join(map(shown, returned)) if isinstance(returned, (tuple, list)) else shown(returned)
        raise ValueError(f"model: expected logits of shape (batch, ..., classes), but got {outline}. {SUPPORTED}")
    return logits


def shown(value: Any) -> str:
    """A short description of a value for a message, never the contents of a tensor."""
    return describe(value) if isinstance(value, Tensor) else type(value).__name__
