"""FocalTrainer: transformers' Trainer with focal loss, exact however the global batch is cut."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from datasets import IterableDataset as HubIterableDataset
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .alpha import AlphaMethod, LabelDistribution, check_alpha_method, check_beta
from .losses import FocalLoss, Gamma, focal_loss, sigmoid_focal_loss
from .training_args import FocalTrainingArguments, parse_alpha


__all__ = ["FocalTrainer"]

_SUPPORTED = (
    "FocalTrainer supports single-label, multi-label and token classification: the batch holds `labels`, the model "
    "returns `logits` with one entry per class in the last dimension (the first entry of a tuple)."
)


class FocalTrainer(Trainer):
    r"""[`~transformers.Trainer`] with focal loss: change the one word, everything else keeps its meaning.

    One optimizer step applies the gradient of ``(1/N) sum alpha_y (1 - p_y)^gamma (-log p_y)`` over all N targets of
    the global batch that are not -100, however it was cut into micro-batches and processes: the sum over each
    micro-batch is divided by ``num_items_in_batch``, and `Trainer` is told that the loss is already scaled.

    What the labels look like decides the loss: class ids, one per example or per token (or class probabilities, with
    ``problem_type="single_label_classification"``), take [`focal_loss`]; float rows of the shape of the logits (any
    rows, with ``problem_type="multi_label_classification"``) take [`sigmoid_focal_loss`]. ``label_smoothing_factor``
    is honoured, except for multi-label, where `Trainer` disables it too. During training the settings are stored in
    the model's config as ``focal_loss`` (gamma, alpha, label_counts), and saved with it.

    Args:
        *args, **kwargs: What [`~transformers.Trainer`] takes, except `compute_loss_func`.
        gamma (`float`, sequence, `Tensor` or callable, *optional*): Focusing parameter, at least 0; one for all classes,
            one per class, or a function of p_t as in [`focal_loss`].
        alpha (`float`, sequence, `Tensor`, `str` or callable, *optional*): One weight per class; one number for two
            classes or for multi-label; a method of [`compute_alpha`], applied to `train_dataset` by the main process for
            all (without a dataset, the weights stored in the model's config are used); or ``"none"``.

    A keyword that is given wins over [`FocalTrainingArguments`]; without either, gamma is 2 and there is no alpha.
    Cross entropy under the same contract is ``gamma=0`` without alpha.

    Raises:
        `ValueError`: For settings out of their range and for models or batches that are not supported, before any
        training step.

    Example:

    ```python
    >>> import tempfile
    >>> from datasets import Dataset
    >>> from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
    >>> from hf_focal import FocalTrainer
    >>> model = BertForSequenceClassification(
    ...     BertConfig(
    ...         vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=2
    ...     )
    ... )
    >>> train = Dataset.from_dict({"input_ids": [[1, 2], [3, 4], [5, 6], [7, 8]], "label": [0, 0, 0, 1]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     args = TrainingArguments(folder, max_steps=1, disable_tqdm=True, logging_strategy="no", use_cpu=True)
    ...     trainer = FocalTrainer(model, args, train_dataset=train, gamma=2.0, alpha="inverse")
    ...     _ = trainer.train()
    {'train_runtime': ...}
    >>> model.config.focal_loss["label_counts"]
    [3, 1]

    ```
    """

    def __init__(
        self,
        *args: Any,
        gamma: Gamma | None = None,
        alpha: float | Sequence[float] | Tensor | AlphaMethod | None = None,
        **kwargs: Any,
    ):
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func: FocalTrainer computes the loss itself; for another loss use Trainer")
        self._keywords = {"gamma": gamma, "alpha": alpha}
        self._counted: tuple[tuple, LabelDistribution] | None = None
        # In every version of Trainer since 4.46 the presence of this function makes it count the labels of the whole
        # accumulation window, over all processes, and leave the loss as it is.
        kwargs["compute_loss_func"] = self._scaled_focal_loss
        super().__init__(*args, **kwargs)
        self._check_model()
        self._check_settings()
        self.add_callback(_StoreSettings(self))

    @property
    def gamma(self) -> Gamma:
        """The gamma in force."""
        return self._setting("gamma")

    @property
    def alpha(self) -> float | Sequence[float] | Tensor | None:
        """The alpha in force; for a method, the weights that it gives."""
        alpha = self._setting("alpha")
        if isinstance(alpha, str):
            alpha = parse_alpha(alpha)
        return self._alpha_from_data(alpha) if isinstance(alpha, str) or callable(alpha) else alpha

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Focal loss of a micro-batch: its sum over the targets, divided by their number in the global batch.

        Arguments and result as in [`~transformers.Trainer.compute_loss`]; without `num_items_in_batch`, the mean.
        """
        if "labels" not in inputs:
            raise ValueError(f"labels: missing from the batch, which holds {', '.join(inputs)}. {_SUPPORTED}")
        # A copy, because Trainer takes the labels out of it.
        loss, outputs = super().compute_loss(
            model, dict(inputs), return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if not return_outputs:
            return loss
        if isinstance(outputs, Tensor):
            outputs = (outputs,)
        # The model has not seen the labels, so its tuple lacks the loss that Trainer expects at the front.
        return loss, outputs if isinstance(outputs, dict) else (loss, *outputs)

    def _scaled_focal_loss(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        logits = _logits_of(outputs)
        arguments = {
            "gamma": self.gamma,
            "alpha": self.alpha,
            "reduction": "mean" if num_items_in_batch is None else "sum",
        }
        if self._is_multi_label(logits, labels):
            loss = sigmoid_focal_loss(logits, labels, **arguments)
            entries_per_target = 1
        else:
            if labels.shape == (*logits.shape[:-1], 1):
                labels = labels.squeeze(-1)
            is_distribution = labels.is_floating_point()
            if labels.shape != (logits.shape if is_distribution else logits.shape[:-1]):
                raise ValueError(
                    f"labels: {labels.dtype} of shape {tuple(labels.shape)} do not fit logits of shape "
                    f"{tuple(logits.shape)}. {_SUPPORTED}"
                )
            loss = focal_loss(
                logits.movedim(-1, 1),
                labels.movedim(-1, 1) if is_distribution else labels,
                label_smoothing=self.args.label_smoothing_factor,
                **arguments,
            )
            entries_per_target = logits.shape[-1] if is_distribution else 1
        if num_items_in_batch is None:
            return loss
        num_targets = torch.as_tensor(num_items_in_batch, device=loss.device) / entries_per_target
        return loss / num_targets.clamp_min(1)

    def _is_multi_label(self, logits: Tensor, labels: Tensor) -> bool:
        """Decides as the heads in transformers do, and remembers it in the config, which pipelines read."""
        config = self._config()
        problem_type = getattr(config, "problem_type", None)
        if problem_type is not None:
            return problem_type == "multi_label_classification"
        has_row_per_target = labels.shape == logits.shape
        if has_row_per_target and not labels.is_floating_point():
            raise ValueError(
                f"labels: {labels.dtype} of the shape of the logits, {tuple(labels.shape)}; for multi-label "
                'classification make them float or set config.problem_type = "multi_label_classification"'
            )
        if config is not None and logits.dim() == 2:
            config.problem_type = f"{'multi' if has_row_per_target else 'single'}_label_classification"
        if has_row_per_target and self.args.label_smoothing_factor:
            warnings.warn("label_smoothing_factor has no effect on multi-label classification", stacklevel=2)
        return has_row_per_target

    def _setting(self, name: str) -> Any:
        # The arguments are read at each use, because a hyperparameter search changes their fields between trials.
        keyword = self._keywords.get(name)
        field = f"focal_{name}"
        return getattr(self.args, field, getattr(FocalTrainingArguments, field)) if keyword is None else keyword

    def _alpha_from_data(self, method: AlphaMethod) -> Sequence[float] | Tensor:
        if self.train_dataset is None and getattr(self._config(), "focal_loss", None) is not None:
            return self._config().focal_loss["alpha"]
        if isinstance(self.train_dataset, IterableDataset) and not isinstance(self.train_dataset, HubIterableDataset):
            raise ValueError(
                f"alpha: {method!r} would use up a {type(self.train_dataset).__name__}, which may be readable only once; "
                "pass the weights, for example alpha=compute_alpha(list_of_labels)"
            )
        if self.train_dataset is None:
            raise ValueError(f"alpha: {method!r} needs a train_dataset")
        check_alpha_method(method)
        beta = self._setting("beta")
        check_beta(beta)
        return self._label_distribution().alpha(method, beta=beta)

    def _label_distribution(self) -> LabelDistribution:
        """Counted once: by the main process for all of them, or by all where each has a shard of a stream."""
        num_labels = getattr(self._config(), "num_labels", None)
        source = (self.train_dataset, num_labels)
        if self._counted is None or self._counted[0] != source:
            problem_type = getattr(self._config(), "problem_type", None)
            count = partial(
                LabelDistribution.from_dataset,
                self.train_dataset,
                num_labels=num_labels,
                multi_label=None if problem_type is None else problem_type == "multi_label_classification",
            )
            is_shard = getattr(self.train_dataset, "_distributed", None) is not None
            self._counted = (source, count() if is_shard else _on_main_process(count))
        return self._counted[1]

    def _core_model(self) -> nn.Module:
        """The model inside the wrappers of DDP, FSDP, `torch.compile` and PEFT."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _config(self) -> Any:
        return getattr(self._core_model(), "config", None)

    def _check_model(self) -> None:
        name, config = type(self._core_model()).__name__, self._config()
        problem_type = getattr(config, "problem_type", None)
        if problem_type == "regression" or (problem_type is None and getattr(config, "num_labels", None) == 1):
            raise ValueError(
                f"model: {name} is a regression head (num_labels={config.num_labels}, problem_type={problem_type!r}), "
                f"where there are no classes to weigh. {_SUPPORTED}"
            )
        if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            raise ValueError(
                f"model: {name} is a causal language model, whose labels would need shifting. {_SUPPORTED}"
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"args: {self.args.n_gpu} GPUs in one process (nn.DataParallel) are not supported; start one process "
                "per GPU with `accelerate launch` or `torchrun`, or choose one with CUDA_VISIBLE_DEVICES"
            )

    def _check_settings(self) -> None:
        """Lets the loss refuse, on an empty batch, the settings that it would refuse at the first step."""
        config, counts, alpha = self._config(), self._counts_for_the_record(), self.alpha
        problem_type, num_labels = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
        if num_labels is None:
            FocalLoss(self.gamma, alpha)
            return
        if problem_type is None and counts is None:
            alpha = None  # only the first batch can tell whether it fits
        empty = torch.zeros(0, num_labels)
        if problem_type == "multi_label_classification" or (counts is not None and counts.negatives is not None):
            sigmoid_focal_loss(empty, empty, gamma=self.gamma, alpha=alpha)
        else:
            focal_loss(empty, empty.argmax(1), gamma=self.gamma, alpha=alpha)

    def _counts_for_the_record(self) -> LabelDistribution | None:
        """The label distribution, if it has been counted or that costs nothing."""
        if not (isinstance(self.train_dataset, Dataset) or self._counted is not None):
            return None
        try:
            return self._label_distribution()
        except ValueError:  # labels that a collator makes, say, need not be counted
            return None


def _on_main_process(function: Callable[[], Any]) -> Any:
    """What `function` returns or raises on the main process, on every process."""
    outcome: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            outcome = [function()]
        except Exception as error:  # the other processes wait for it
            outcome = [error]
    (result,) = broadcast_object_list(outcome)
    if isinstance(result, Exception):
        raise result
    return result


class _StoreSettings(TrainerCallback):
    """Writes the settings that train a model into its config, from where they are saved with it."""

    def __init__(self, trainer: FocalTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        config = self.trainer._config()
        if config is None:
            return
        gamma, alpha, counts = self.trainer.gamma, self.trainer.alpha, self.trainer._counts_for_the_record()
        config.focal_loss = {
            "gamma": getattr(gamma, "__name__", repr(gamma)) if callable(gamma) else _as_json(gamma),
            "alpha": None if alpha is None else _as_json(alpha),
            "label_counts": None if counts is None else counts.counts.tolist(),
        }


def _as_json(numbers: float | Sequence[float] | Tensor) -> float | list[float]:
    return torch.as_tensor(numbers, dtype=torch.float64).tolist()


def _logits_of(outputs: Any) -> Tensor:
    if isinstance(outputs, dict):
        if "logits" not in outputs:
            raise ValueError(f"model: returned {', '.join(outputs)} but no logits. {_SUPPORTED}")
        logits = outputs["logits"]
    else:
        logits = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        raise ValueError(f"model: expected logits of shape (batch, ..., classes), but got {logits!r}. {_SUPPORTED}")
    return logits
