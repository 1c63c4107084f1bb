"""FocalTrainer: transformers' Trainer with focal loss, exact however the global batch is split."""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakMethod

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from datasets import IterableDataset as HubIterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import (
    EvalLoopOutput,
    IntervalStrategy,
    PredictionOutput,
    has_length,
)

from ._checks import ArgumentError, as_gamma, as_margin, as_numbers, check_distributions, checked_gamma, extremes
from ._class_weights import Alpha, sigmoid_weights, softmax_weights
from ._kernels import FocalKernel, GammaOfTargets, SigmoidFocal, SoftmaxFocal, beside, evaluate
from ._loss_statistics import LossStatistics
from ._model_kinds import (
    LANGUAGE_MODELS,
    has_decoder_inputs,
    is_multi_label,
    is_one_of,
    num_classes_of,
    predicts_next_token,
)
from ._prior_bias import find_new_head, prior_logits
from ._sample_weights import USUAL_NAMES, check_sample_weights, sum_weights, weigh_targets, weights_of
from ._supported import SUPPORTED, check_bases, check_model, find_logits, shown
from ._trainer_card import fitted_parts, write_trainer_card
from ._training_labels import (
    as_trainer_error,
    check_strings_are_mapped,
    count_training_labels,
    names_by_id,
    weigh_distribution,
)
from ._upstream import assert_async
from .alpha import AlphaMethod, LabelDistribution, check_alpha_method, check_beta
from .checkpoints import last_whole_checkpoint, saved_whole
from .folding import fold_calibration, needs_held_out_data
from .held_out import calibrate_config
from .losses import Gamma
from .settings import FocalSettings
from .training_args import FocalTrainingArguments, parse_alpha


__all__ = ["FocalTrainer"]

logger = logging.getLogger(__name__)

# The settings of the loss: each is a keyword and, with the prefix focal_, a training argument.
_SEARCHED = ("gamma", "gamma_neg", "margin", "alpha", "beta", "alpha_max_ratio", "alpha_empty_weight", "prior_bias")
_DECODER_INPUTS = {"decoder_input_ids", "decoder_inputs_embeds"}


class FocalTrainer(Trainer):
    r"""[`~transformers.Trainer`] with focal loss: change the class name, everything else keeps its meaning.

    One optimizer step applies the gradient of

    $$-\frac{1}{N} \sum \alpha_y (1 - p_y)^{\gamma} \log p_y$$

    over all N targets of the global batch that are not -100, however it is split into micro-batches and over processes:
    the sum over each micro-batch is divided by ``num_items_in_batch``, and `Trainer` is told that the loss is already
    scaled.

    The form of the labels selects the loss. Class ids, one per example or per token (or class probabilities, with
    ``problem_type="single_label_classification"``), use [`focal_loss`]. Float rows of the shape of the logits (any
    rows, with ``problem_type="multi_label_classification"``), and 0 or 1 for the one logit of a model with
    ``num_labels=1``, use [`sigmoid_focal_loss`]. ``label_smoothing_factor`` is honoured, except for multi-label, where
    `Trainer` disables it too. Logits and labels of causal language models are shifted as in the models' own loss.
    During training the settings of the loss and the label counts are stored in the model's config as ``focal_loss``
    ([`FocalSettings`]), and saved with it; a PEFT adapter has no config, so they are saved beside it as
    ``focal_loss.json``. [`posterior_from_config`] reads them, and [`FocalTrainer.calibrate`] adds to them.

    The evaluation loss is the same mean over all targets of the dataset: it depends neither on the batch size nor on
    the number of processes. Besides ``loss``, the logs hold ``mean_p_t``, the mean probability of the true class, and,
    if the labels of the training data can be counted, ``loss_share_head``, ``loss_share_mid`` and ``loss_share_tail``, the shares of the loss that the groups
    of [`class_groups`] carry. Like the loss, they cover all targets since the last log (``focal_statistics=False``
    turns them off).

    Args:
        args, kwargs: The arguments of [`~transformers.Trainer`], except `compute_loss_func`.
        gamma (`float`, sequence, `Tensor` or callable, *optional*): Focusing parameter, at least 0: one for all
            classes, one per class, or a function of p_t as in [`focal_loss`].
        gamma_neg (like `gamma`, *optional*): For multi-label, the focusing parameter of negatives; default: `gamma`.
        margin (`float`, *optional*): For multi-label, the probability in [0, 1) that is subtracted from the negatives'
            probabilities, as in [`sigmoid_focal_loss`].
        alpha (`float`, sequence, dict, `Tensor`, `str` or callable, *optional*): One weight per class, in the order of
            their ids or by name; one number for two classes or for multi-label; for multi-label also the weights of
            negatives, then of positives, shape (2, L), or both by name; a method of [`compute_alpha`], which the main
            process applies to `train_dataset` on behalf of all (without a dataset, the weights stored in the model's
            config are used); or ``"none"``.
        alpha_max_ratio, alpha_empty_weight (`float`, *optional*): For a method, the cap on the ratio of the largest
            weight to the smallest, and the weight of classes without examples, as in [`LabelDistribution.alpha`].
        prior_bias (`bool`, *optional*): Whether a new head, a last linear layer whose biases are all 0, starts at
            [`focal_logits`] of the class frequencies in `train_dataset`, the constant prediction with the lowest loss;
            for multi-label, at [`sigmoid_focal_logits`]. By default only for multi-label, if the labels can be
            counted. Never when resuming. The frequencies are weighted by the sample weights, if any.
        sample_weight_column (`str`, *optional*): The column of the data that holds a weight for each example. The
            losses of its targets are multiplied by it, and the number of targets is replaced by the sum of their
            weights. An evaluation does the same if its data have the column, and passes the weights to
            `compute_metrics` as ``sample_weight`` if it accepts them, as [`compute_metrics`] does.

    Keyword arguments take precedence over [`FocalTrainingArguments`]; without either, gamma is 2 and there is no
    alpha. ``gamma=0`` without alpha is cross entropy, with the same guarantees.

    Raises:
        `ValueError`: For settings that are out of range and for models or batches that are not supported, before any
        training step.

    Example:

    ```python
    >>> import tempfile
    >>> from datasets import ClassLabel, Dataset
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
        gamma_neg: Gamma | None = None,
        margin: float | None = None,
        alpha: Alpha | Mapping[str, Any] | AlphaMethod = None,
        alpha_max_ratio: float | None = None,
        alpha_empty_weight: float | None = None,
        prior_bias: bool | None = None,
        sample_weight_column: str | None = None,
        **kwargs: Any,
    ):
        position = [*inspect.signature(Trainer).parameters].index("compute_loss_func")
        if (args[position] if len(args) > position else kwargs.get("compute_loss_func")) is not None:
            raise ValueError("compute_loss_func: FocalTrainer computes the loss itself; use Trainer for another loss")
        self._keywords = {
            "gamma": _copy_setting(gamma),
            "gamma_neg": _copy_setting(gamma_neg),
            "margin": margin,
            "alpha": _copy_setting(alpha),
            "alpha_max_ratio": alpha_max_ratio,
            "alpha_empty_weight": alpha_empty_weight,
            "prior_bias": prior_bias,
            "sample_weight_column": sample_weight_column,
        }
        self._counted: tuple[tuple, LabelDistribution | ValueError] | None = None
        self._kernel: _CachedKernel | None = None
        self._checked_form: tuple | None = None
        self._evaluated: list[dict[str, Tensor]] | None = (
            None  # during an evaluation: sums over the targets of each row
        )
        self._evaluated_batch: dict[str, Tensor] | None = None
        self._sample_weights: Tensor | None = None  # of the batch whose loss is computed
        self._has_computed_loss = self._has_trained = self._has_prior_bias = self._is_resumed = False
        self._is_yet_to_prepare = self._is_pushing = False
        self._statistics = LossStatistics()
        self._calibrated: dict[str, Any] = {}  # the result of `calibrate`, for the card
        self._fits: dict[str, tuple[Any, Any]] = {}  # what was fitted on which data, and the value, for the card
        # Since version 4.46, if Trainer has this function, it counts the labels of the whole accumulation window, over
        # all processes, and does not scale the loss.
        loss = _without_cycle(self._scaled_loss)
        if len(args) > position:
            args = (*args[:position], loss, *args[position + 1 :])
        else:
            kwargs["compute_loss_func"] = loss
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            self.args.dataloader_pin_memory = False  # it has no effect on CPU, but torch would warn at each loader
        check_model(self._core_model(), self.args)
        check_strings_are_mapped(self.train_dataset, self.data_collator, self.label_names)
        self._check_sample_weights()
        self._check_settings()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_bases(cls, FocalTrainer)

    @property
    def gamma(self) -> Gamma:
        """The gamma in force."""
        return self._setting("gamma")

    @property
    def alpha(self) -> Alpha:
        """The alpha in force; for a method, the weights it computes."""
        alpha = self._setting("alpha")
        if isinstance(alpha, str):
            alpha = parse_alpha(alpha)
        if isinstance(alpha, Mapping):
            return self._by_class_id(alpha)
        return self._alpha_from_data(alpha) if isinstance(alpha, str) or callable(alpha) else alpha

    @property
    def sample_weight_column(self) -> str | None:
        """The column that holds a weight for each example, if there is one."""
        return self._setting("sample_weight_column")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Focal loss of a micro-batch: the sum over its targets, divided by the number of targets in the global batch.

        Arguments and result as in [`~transformers.Trainer.compute_loss`]; without `num_items_in_batch`, the mean.
        """
        inputs = self._with_targets(self._without_sample_weights(inputs))
        try:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        except (AttributeError, KeyError, TypeError) as error:
            if self._has_computed_loss or not ("labels" in error.args or "NoneType" in str(error)):
                raise
            name = type(self._core_model()).__name__
            raise ValueError(
                f"model: {name}.forward needs labels, which FocalTrainer keeps for its own loss ({error!r}); "
                "make it return logits if labels is None"
            ) from error
        if not self._has_computed_loss:
            raise ValueError(
                f"{type(self).__name__}: one of its base classes other than FocalTrainer computes its own loss, which "
                "is not focal loss"
            )
        if not return_outputs:
            return loss
        if isinstance(outputs, dict):
            return loss, outputs
        # The model has not seen the labels, so its tuple lacks the loss that Trainer expects first, or has None or a
        # scalar in its place.
        entries = (outputs,) if isinstance(outputs, Tensor) else (entry for entry in outputs if not _is_scalar(entry))
        return loss, (loss, *entries)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As [`~transformers.Trainer.train`]; warns if a checkpoint was trained with a different gamma or alpha.

        With ``resume_from_checkpoint=True`` it resumes from the last complete checkpoint in `output_dir`: one that a
        killed process or a full disk left incomplete is skipped with a warning.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_whole_checkpoint()
        self._is_resumed = bool(resume_from_checkpoint)
        if resume_from_checkpoint:
            self._compare_with_checkpoint(resume_from_checkpoint)
        self._is_yet_to_prepare = self.model_init is not None  # the model does not exist yet
        if not self._is_yet_to_prepare:
            self._prepare_model()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any):
        # By now a search has set the arguments of its trial, and `model_init` has made the model. If Trainer drops
        # this private method, the first training step does this instead.
        self._prepare_made_model()
        self._statistics = LossStatistics()  # drops the unlogged steps of an earlier call
        return super()._inner_training_loop(*args, **kwargs)

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """As [`~transformers.Trainer.training_step`]; after the first step, warns of what the loss does not train."""
        self._prepare_made_model()
        loss = super().training_step(model, *args, **kwargs)
        if not self._has_trained:
            self._has_trained = True
            self._warn_of_untrained_parts(model)
        return loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """As [`~transformers.Trainer.prediction_step`]; stores the loss of each row for `evaluation_loop`."""
        self._evaluated_batch = self._sample_weights = None
        inputs = self._without_sample_weights(inputs)
        loss: Any
        loss, predictions, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None and self._evaluated_batch is None:  # the model's own: Seq2SeqTrainer has generated
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
        if self._evaluated is not None and self._evaluated_batch is not None:
            # Drops the rows that only pad the last batch; `self.gather_function` may gather lists of objects.
            sums = self.accelerator.gather_for_metrics(torch.stack([*self._evaluated_batch.values()], 1))
            self._evaluated.append(dict(zip(self._evaluated_batch, sums.unbind(1))))
        return loss, predictions, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As [`~transformers.Trainer.evaluation_loop`]; the loss is the mean over all targets of the dataset."""
        self._evaluated = []
        try:
            with self._extending_metrics_call():
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
            if self._evaluated and output.metrics is not None:
                sums = {
                    name: torch.cat([batch[name] for batch in self._evaluated]).cpu().double().sum()
                    for name in self._evaluated[0]
                }
                for name in ("loss", "cross_entropy"):  # the latter for language models: log of the perplexity
                    if name in sums:  # NaN if no label is known
                        output.metrics[f"{metric_key_prefix}_{name}"] = (sums[name] / sums["targets"]).item()
        finally:
            self._evaluated = None
        return output

    def get_train_dataloader(self) -> DataLoader:
        """As [`~transformers.Trainer.get_train_dataloader`]; keeps the column of sample weights."""
        with self._keeping_sample_weights():
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As [`~transformers.Trainer.get_eval_dataloader`]; keeps the column of sample weights."""
        with self._keeping_sample_weights():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As [`~transformers.Trainer.get_test_dataloader`]; keeps the column of sample weights."""
        with self._keeping_sample_weights():
            return super().get_test_dataloader(test_dataset)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As [`~transformers.Trainer.log`]; adds the statistics since the last log to the loss."""
        if "loss" in logs:
            logs.update(self._statistics.logs(partial(self.accelerator.reduce, reduction="sum")))
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Also writes the settings beside a PEFT adapter, as focal_loss.json."""
        if not self.args.should_save:
            return super()._save(output_dir, state_dict)
        with saved_whole(output_dir or self.args.output_dir or ".") as folder:
            super()._save(str(folder), state_dict)
            settings = FocalSettings.find_in(self._config())
            if settings is not None and hasattr(self.accelerator.unwrap_model(self.model), "get_base_model"):
                # An adapter. Not as config.json, beside which from_pretrained would expect the base model's weights.
                settings.store_in_folder(folder)

    def calibrate(
        self,
        dataset: Dataset | None = None,
        *,
        method: str = "auto",
        positive_label: int | str | None = None,
        f_beta: float = 1.0,
        wanted_precision: float | None = None,
        wanted_recall: float | None = None,
        predictions: PredictionOutput | None = None,
    ) -> dict[str, Any]:
        r"""Fits calibration and thresholds on held-out data and stores them in the model's config.

        [`posterior_from_config`] reads them. This is [`calibrate_config`] with the model's logits for the data, and
        with sample weights if there are any. Call it after `train` and before `save_model`.

        Args:
            dataset (`Dataset`, *optional*): Labelled examples that were not trained on; by default `eval_dataset`.
            method, positive_label, f_beta, wanted_precision, wanted_recall: As in [`calibrate_config`].
            predictions (`PredictionOutput`, *optional*): The output of [`~transformers.Trainer.predict`] for the
                dataset, to avoid predicting it again.

        Returns:
            `dict`: What is stored, such as ``temperature`` and ``thresholds``, and the scores reached on these data.

        Raises:
            `ValueError`: If there are no data or no labels, or as in [`calibrate_config`].
        """
        logits, labels, weights = self._held_out(dataset, predictions)
        self._calibrated = calibrate_config(
            logits,
            labels,
            self._config(),
            method=method,
            positive_label=positive_label,
            f_beta=f_beta,
            wanted_precision=wanted_precision,
            wanted_recall=wanted_recall,
            sample_weight=weights,
        )
        if self._calibrated:
            self._remember_fits(dataset, "the calibration", "the thresholds")
        return self._calibrated

    def fold_calibration(
        self,
        dataset: Dataset | None = None,
        *,
        operating_point: str | None = None,
        prior: float | Sequence[float] | Tensor | None = None,
        predictions: PredictionOutput | None = None,
    ) -> dict[str, Any]:
        r"""Folds the calibration into the weights, so that stock pipelines, servers and exported graphs use it.

        This is [`hf_focal.fold_calibration`] with the model's logits for the data. Call it after `train` and
        `calibrate`, and before `save_model`. A folded model cannot be trained further until [`unfold_calibration`] has
        undone the folding. Its evaluation loss is the negative log-likelihood of the stock probabilities.

        Args:
            dataset (`Dataset`, *optional*): Labelled examples that were not trained on; by default `eval_dataset`. Not
                needed for some losses.
            operating_point, prior: As in [`hf_focal.fold_calibration`].
            predictions (`PredictionOutput`, *optional*): As in `calibrate`.

        Returns:
            `dict`: What was done, and how close the folded model comes.

        Raises:
            `ValueError`: If data are needed and missing, if they have no labels, or as in
                [`hf_focal.fold_calibration`].
        """
        self._record_settings()
        has_data = not isinstance(self.eval_dataset if dataset is None else dataset, dict | None)
        held_out: dict[str, Any] = {}
        if has_data or predictions is not None or needs_held_out_data(self._config()):
            logits, labels, weights = self._held_out(dataset, predictions)
            held_out = {"logits": logits, "labels": labels, "sample_weight": weights}
        folded = fold_calibration(self._core_model(), **held_out, operating_point=operating_point, prior=prior)
        self._remember_fits(dataset, "the fold into the weights")
        return folded

    def _remember_fits(self, dataset: Dataset | None, *names: str) -> None:
        parts = fitted_parts(FocalSettings.from_config(self._config()))
        dataset = self.eval_dataset if dataset is None else dataset
        self._fits |= {name: (dataset, value) for name, value in parts.items() if name in names}

    def _held_out(
        self, dataset: Dataset | None, predictions: PredictionOutput | None
    ) -> tuple[Tensor, Tensor, np.ndarray | None]:
        """Logits, labels and sample weights of held-out data; makes sure that the settings are in the config."""
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError("dataset: expected held-out examples; pass them here, or as eval_dataset of the trainer")
        if isinstance(dataset, dict):
            raise ValueError(f"dataset: expected one dataset of labelled examples, but got {type(dataset).__name__}")
        if has_length(dataset) and len(dataset) == 0:
            raise ValueError("dataset: expected some examples, but there are none")
        self._record_settings()
        output = predictions
        if output is None:
            with self._predicting_logits():
                output = self.predict(dataset)
        elif self.preprocess_logits_for_metrics is not None:
            raise ValueError(
                "predictions: expected logits, but preprocess_logits_for_metrics may have changed them; leave "
                "predictions out"
            )
        if output.label_ids is None:
            raise ValueError("dataset: expected labelled examples, but they have no labels")
        if has_length(dataset) and len(output.label_ids) != len(dataset):
            raise ValueError(
                f"predictions: expected those of the {len(dataset)} examples of the dataset, but got {len(output.label_ids)}"
            )
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        labels = self._aligned(torch.as_tensor(output.label_ids))
        return torch.as_tensor(logits), labels, weights_of(dataset, self.sample_weight_column)

    def _record_settings(self) -> None:
        if FocalSettings.find_in(self._config()) is None:
            self.recorded_settings().store_in(self._config())

    @contextmanager
    def _predicting_logits(self) -> Iterator[None]:
        """Makes `predict` return the logits themselves, not what the user turns them into for the metrics."""
        original = self.preprocess_logits_for_metrics, self.compute_metrics
        self.preprocess_logits_for_metrics = self.compute_metrics = None
        try:
            yield
        finally:
            self.preprocess_logits_for_metrics, self.compute_metrics = original

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        *,
        test_dataset: Dataset | None = None,
        test_split: str | None = None,
        predictions: PredictionOutput | None = None,
    ) -> None:
        """Writes a model card for the model in memory into `output_dir`; `push_to_hub` calls it too.

        With ``load_best_model_at_end`` that is the best model, not the last one. The results are those on
        `test_dataset` or, without one, on `eval_dataset` (of several, the one that selects the best model). They come
        from `predictions` or, without them, from a prediction that leaves the log and the random number generators
        unchanged. The card says what else was fitted on the same data. If it cannot predict, because there are several
        processes (only one writes the card), training is still running or the data are a stream, it takes the results
        of an evaluation in the log, if there is one, without results per class. [`read_model_card`] reads the card;
        its command is that of this process, without tokens. Tags, license and language of an existing README.md are
        kept.

        Language models and untrained models get Trainer's own card. So does, in `push_to_hub` and with a warning, a
        model for which too little is known for a card; if that fails too, the model is pushed without a card.

        Args:
            language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args:
                As in [`~transformers.Trainer.create_model_card`]; `dataset_tags` is the id of the data on the Hub,
                `dataset_args` their configuration. They take precedence over the metadata of the dataset.
            test_dataset (`Dataset`, *optional*): The labelled data for the results, instead of `eval_dataset`.
            test_split (`str`, *optional*): The name of its split; by default that in its metadata.
            predictions (`PredictionOutput`, *optional*): The output of [`~transformers.Trainer.predict`] for it, to
                avoid predicting it again; required with several processes, because only one of them writes the card.

        Raises:
            `ValueError`: If too little is known for a card. Exceptions of the prediction are raised too. `push_to_hub`
            raises neither.
        """
        if not self.is_world_process_zero():
            return
        arguments = (language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args)
        is_classifier = hasattr(self._config(), "id2label") and not is_one_of(self._core_model(), LANGUAGE_MODELS)
        try:
            settings = FocalSettings.find_in(self._config())
            if is_classifier and settings is not None:
                write_trainer_card(
                    self,
                    self._core_model(),
                    settings,
                    *arguments,
                    test_dataset,
                    test_split,
                    predictions,
                    self._calibrated,
                    self._fits,
                )
                return
        except Exception as error:
            if not self._is_pushing:
                raise
            warnings.warn(f"create_model_card: {error}; writing Trainer's own card", stacklevel=2)
        try:
            super().create_model_card(*arguments)
        except Exception as error:
            if not self._is_pushing:
                raise
            warnings.warn(f"create_model_card: {error}; no card is written", stacklevel=2)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As [`~transformers.Trainer.push_to_hub`]; pushes the model even if its card cannot be made."""
        self._is_pushing = True
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            self._is_pushing = False

    def hyperparameter_search(self, hp_space: Callable | None = None, *args: Any, **kwargs: Any):
        """As [`~transformers.Trainer.hyperparameter_search`]; rejects settings that the search could not change."""

        if hp_space is None:
            return super().hyperparameter_search(None, *args, **kwargs)

        def checked_space(trial: Any) -> Any:
            values = hp_space(trial)
            if without_prefix := values.keys() & {*_SEARCHED}:
                names = ", ".join(f"focal_{name}" for name in sorted(without_prefix))
                raise ValueError(f"hp_space: expected names of FocalTrainingArguments, {names}, but got {[*values]}")
            for name in _SEARCHED:
                if f"focal_{name}" not in values:
                    continue
                if self._keywords.get(name) is not None:
                    raise ValueError(
                        f"{name}: a keyword takes precedence over the training arguments, so a search cannot change "
                        f"it; leave it out and set FocalTrainingArguments(focal_{name}=...)"
                    )
                if not hasattr(self.args, f"focal_{name}"):
                    raise ValueError(f"hp_space: focal_{name} needs FocalTrainingArguments as args")
                if getattr(FocalTrainingArguments, f"focal_{name}") is None:
                    # Trainer casts values to the type of the old one: an alpha method would become a list of letters.
                    setattr(self.args, f"focal_{name}", None)
            return values

        return super().hyperparameter_search(checked_space, *args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """As [`~transformers.Trainer.get_batch_samples`]; for language models, counts the predicted tokens."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        name = self._names_of_labels()[0]
        is_counted_otherwise = name != "labels" or is_one_of(self._core_model(), LANGUAGE_MODELS)
        if is_counted_otherwise and batches and all(name in batch for batch in batches):
            # Trainer counts `labels` only, and for some causal models as if the first token were predicted too.
            counted = [{"labels": self._counted_labels(batch, name)} for batch in batches]
            _, num_items = super().get_batch_samples(iter(counted), len(counted), device)
        column = self.sample_weight_column
        if column is not None and num_items is not None:
            num_items = num_items * self._mean_weight(batches, column, name, device)
        return batches, num_items

    def _mean_weight(self, batches: list[dict[str, Any]], column: str, name: str, device: torch.device) -> Tensor:
        """The mean weight of a target of the global batch."""
        missing = next((batch for batch in batches if column not in batch), None)
        if missing is not None:
            raise ValueError(
                f"sample_weight_column: {column!r} is missing from the batch, which holds {', '.join(missing)}; the "
                "collator must keep it"
            )
        batch_sums = [
            sum_weights(self._counted_labels(batch, name if name in batch else "labels"), batch[column]).to(device)
            for batch in batches
        ]
        sums = torch.stack(batch_sums).sum(0)
        if self.args.average_tokens_across_devices:
            sums = self.accelerator.reduce(sums, reduction="sum")
        return sums[0] / sums[1].clamp_min(1)

    def _names_of_labels(self) -> list[str]:
        """`labels` first: Trainer lists every argument of the model with "label" in its name, such as label_mask."""
        names = [name for name in self.label_names or [] if name != "shift_labels"]
        return sorted(names, key=lambda name: name != "labels") or ["labels"]

    def _counted_labels(self, batch: dict[str, Any], name: str) -> Tensor:
        if not is_one_of(self._core_model(), LANGUAGE_MODELS):
            return batch[name]
        is_shifted = self._is_causal() and "shift_labels" in batch
        predicted = batch["shift_labels"] if is_shifted else self._aligned(batch[name])
        return F.pad(predicted, (1, 0), value=-100)  # Trainer may drop the first position

    def target_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        r"""The unreduced loss of each target: the one method to override for a loss of your own.

        The trainer does the rest: it aligns logits and labels, drops ignored targets, sums over the others, divides by
        their number in the global batch, evaluates and collects the statistics. So your own loss is as exact under
        gradient accumulation and on several processes as focal loss is. The config still records gamma and alpha:
        override `recorded_settings` as well, so that no reader of the config inverts a focal loss that was never used.

        Args:
            logits (`Tensor`): Of the model, shape (..., C), of any floating dtype.
            labels (`Tensor`): Class ids of shape (...), -100 to ignore; or, of the shape of the logits, the labels of
                each example as rows (multi-label) or class probabilities.

        Returns:
            `Tensor`: One loss per target, float32 and differentiable: of shape (...) for class ids and class probabilities,
            of the shape of the logits for multi-label. Its values at labels of -100 are ignored.

        Example:

        ```python
        >>> from dataclasses import replace
        >>> import torch.nn.functional as F
        >>> from hf_focal import FocalTrainer
        >>> class PolyLossTrainer(FocalTrainer):  # Leng et al. 2022, https://arxiv.org/abs/2204.12511
        ...     def target_losses(self, logits, labels):
        ...         cross_entropy = F.cross_entropy(logits.float().movedim(-1, 1), labels, reduction="none")
        ...         return cross_entropy + 2.0 * (1 - (-cross_entropy).exp())
        ...
        ...     def recorded_settings(self):
        ...         return replace(super().recorded_settings(), gamma=0.0)

        ```
        """
        has_several_labels = self._has_several_labels(logits, labels)
        kernel, rows = self._kernel_for(logits, labels, has_several_labels), logits.reshape(-1, logits.shape[-1])
        if has_several_labels:
            return evaluate(kernel, rows, labels.reshape(rows.shape), 1, "none").reshape(labels.shape)
        targets = labels.reshape(rows.shape if labels.is_floating_point() else (-1, 1))
        return evaluate(kernel, rows, targets, 1, "none").reshape(logits.shape[:-1])

    def label_distribution(self) -> LabelDistribution:
        """How often each class occurs in `train_dataset`.

        Counted once: by the main process on behalf of all, or by every process if each has a shard of a stream. All
        processes must make this call.

        Raises:
            `ValueError`: If the labels cannot be counted, as in [`LabelDistribution.from_dataset`].
        """
        source = (self.train_dataset, num_classes_of(self._core_model()))
        if self._counted is None or self._counted[0] != source:
            outcome: LabelDistribution | ValueError
            try:
                name = self._names_of_labels()[0]
                column = None if name in ("label", "labels") else name
                outcome = count_training_labels(self.train_dataset, self._core_model(), column)
            except ValueError as error:  # would be raised again next time
                outcome = error
            self._counted = (source, outcome)
        if isinstance(self._counted[1], ValueError):
            raise self._counted[1]
        return self._counted[1]

    def recorded_settings(self) -> FocalSettings:
        """The settings stored in the config when training begins; override it if a subclass has another loss."""
        gamma, alpha, counts = self.gamma, self.alpha, self._counts_for_the_record()
        if is_one_of(self._core_model(), LANGUAGE_MODELS):
            counts = None  # there would be one for each token of the vocabulary
        gamma_neg = self._setting("gamma_neg")
        return FocalSettings(
            gamma=_plain_gamma(gamma),
            gamma_neg=None if gamma_neg is None else _plain_gamma(gamma_neg),
            margin=self._setting("margin"),
            alpha=None if alpha is None else _plain(alpha),
            label_smoothing=self.args.label_smoothing_factor,
            prior_bias=self._has_prior_bias,
            label_counts=None if counts is None else counts.counts.tolist(),
            class_prior=None if counts is None else self._class_prior(counts),
        )

    def _class_prior(self, counted: LabelDistribution) -> list[float] | None:
        """The shares of the classes in the loss, with examples counted by their weights; None if unknown."""
        counts = self._weighted(counted)
        if counts is None:
            return None
        positives, negatives = counts
        with np.errstate(invalid="ignore"):
            shares = positives / (positives.sum() if negatives is None else positives + negatives)
        return shares.tolist() if np.isfinite(shares).all() else None

    def _weighted(self, counted: LabelDistribution) -> tuple[np.ndarray, np.ndarray | None] | None:
        column = self.sample_weight_column
        if column is None:
            return counted.counts, counted.negatives
        weights = weights_of(self.train_dataset, column)
        names = [name for name in self._names_of_labels() if name != "labels"] or ["label", "labels"]
        return None if weights is None else weigh_distribution(counted, self.train_dataset, names, weights)

    def _scaled_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The sum of the losses of all targets, divided by the number of targets in the global batch."""
        self._has_computed_loss = True
        logits = find_logits(
            outputs, num_classes_of(self._core_model()) or getattr(self._config(), "num_labels", None)
        )
        if labels.dtype == torch.bool:
            labels = labels.long()
        has_several_labels = self._has_several_labels(logits, labels)
        if has_several_labels and logits.shape[-1] == 1 and labels.shape == logits.shape[:-1]:
            labels = labels.unsqueeze(-1)
        if not has_several_labels and labels.shape == (*logits.shape[:-1], 1):
            labels = labels.squeeze(-1)
        if not (has_several_labels or labels.is_floating_point()) and labels.shape == logits.shape:
            labels = labels.to(logits.dtype)  # one-hot rows
        is_distribution = labels.is_floating_point() and not has_several_labels
        if labels.shape != (logits.shape if is_distribution or has_several_labels else logits.shape[:-1]):
            raise ValueError(
                f"labels: {labels.dtype} of shape {tuple(labels.shape)} do not fit logits of shape "
                f"{tuple(logits.shape)}. {SUPPORTED}"
            )
        self._check_labels(labels, logits.shape[-1], has_several_labels)
        is_target = labels != -100
        if is_distribution:
            is_target = is_target.any(-1)
            labels = labels.where(is_target.unsqueeze(-1), 0)
        losses = self.target_losses(logits, labels)
        expected = labels.shape if has_several_labels else logits.shape[:-1]
        if not isinstance(losses, Tensor) or losses.shape != expected or not losses.is_floating_point():
            raise ValueError(
                f"target_losses: expected one loss per target, of shape {tuple(expected)}, but got {shown(losses)}"
            )
        if logits.requires_grad and not losses.requires_grad:
            raise ValueError(
                "target_losses: expected losses that are differentiable with respect to the logits, but got constants"
            )
        if losses.dtype != torch.float64:
            losses = losses.float()  # a sum of half-precision numbers loses digits, or overflows
        losses = losses.where(is_target, 0)
        counted = is_target
        weights, self._sample_weights = self._sample_weights, None
        if weights is not None:
            counted = is_target * weigh_targets(weights, losses)
            losses = losses * counted
        is_language_model = is_one_of(self._core_model(), LANGUAGE_MODELS)
        if self._evaluated is not None:
            per_target = {"loss": losses, "targets": counted}
            if is_language_model:
                cross_entropy = _cross_entropy(logits, labels)
                per_target["cross_entropy"] = cross_entropy if weights is None else cross_entropy * counted
            self._evaluated_batch = {
                name: _with_columns(values).flatten(1).float().sum(1) for name, values in per_target.items()
            }
            if weights is not None:
                self._evaluated_batch["weight"] = weights.flatten().float()
        elif self._is_logged() and not is_distribution:
            counts = None if is_language_model else self._counts_for_the_record()
            # With one logit, and no config that says so, the labels were counted as two classes.
            counts_fit_logits = counts is not None and len(counts.counts) <= logits.shape[-1]
            label_counts = counts.counts.tolist() if counts is not None and counts_fit_logits else None
            self._statistics.add(logits.detach(), labels, losses.detach(), is_target, label_counts)
        if num_items_in_batch is None:
            num_targets = counted.sum()
        else:
            entries_per_target = logits.shape[-1] if is_distribution else 1
            num_targets = torch.as_tensor(num_items_in_batch, device=logits.device) / entries_per_target
        return losses.sum() / num_targets.where(num_targets > 0, 1)

    def _kernel_for(self, logits: Tensor, labels: Tensor, has_several_labels: bool) -> FocalKernel:
        """The loss in force; cached until a setting changes, because its checks copy numbers from the GPU."""
        num_classes = logits.shape[-1]
        form = (num_classes, has_several_labels, labels.is_floating_point(), logits.device)
        # The arguments are read at each use, because a hyperparameter search changes their fields between trials.
        made_from = (
            *map(self._setting, _SEARCHED),
            self.args.label_smoothing_factor,
            self.train_dataset,
            self._core_model(),
            getattr(self._config(), "focal_loss", None),
        )
        cached = self._kernel
        if cached is None or not cached.is_of(form, made_from):
            cached = self._kernel = _CachedKernel(form, made_from, self._make_kernel(logits, has_several_labels))
        return cached.kernel

    def _make_kernel(self, logits: Tensor, has_several_labels: bool) -> FocalKernel:
        settings = FocalSettings.find_in(self._config())
        if (
            settings is not None and settings.folded is not None
        ):  # only evaluated: the negative log-likelihood of the folded probabilities
            return SigmoidFocal(0.0, ignore_index=-100) if has_several_labels else SoftmaxFocal(0.0, ignore_index=-100)
        num_classes, alpha = logits.shape[-1], self.alpha
        gamma = beside(checked_gamma("gamma", as_gamma("gamma", self.gamma, num_classes)), logits)
        gamma_neg, margin = self._asymmetry(num_classes, has_several_labels)
        if not has_several_labels:
            weights = beside(softmax_weights(alpha, num_classes), logits)
            return SoftmaxFocal(gamma, weights, -100, self.args.label_smoothing_factor)
        # If the rows were counted, they hold only 0 and 1 and need not be searched for probabilities.
        has_soft_targets = False if self._was_counted_in_rows() else None
        weights = beside(sigmoid_weights(alpha, num_classes), logits)
        return SigmoidFocal(gamma, beside(gamma_neg, logits), margin, weights, -100, has_soft_targets)

    def _asymmetry(
        self, num_classes: int | None, has_several_labels: bool | None
    ) -> tuple[GammaOfTargets | None, float]:
        """The separate gamma of negatives, if there is one, and the margin; an error with one class per example."""
        gamma_neg, margin = self._setting("gamma_neg"), as_margin(self._setting("margin"))
        if has_several_labels is False and (gamma_neg is not None or margin):
            name = "margin" if gamma_neg is None else "gamma_neg"
            raise ValueError(
                f"{name}: only for several labels per example, but this model has one class per example; leave out "
                f"{name} (the flag --focal_{name})"
            )
        if gamma_neg is not None:
            gamma_neg = checked_gamma("gamma_neg", as_gamma("gamma_neg", gamma_neg, num_classes))
        return gamma_neg, margin

    def _was_counted_in_rows(self) -> bool:
        counts = self._counts_for_the_record()
        return counts is not None and counts.negatives is not None

    def _check_labels(self, labels: Tensor, num_classes: int, has_several_labels: bool) -> None:
        """Rejects invalid labels: in the first batch with a full message, later without waiting for the GPU."""
        is_ignored = labels == -100
        if labels.is_floating_point() and not has_several_labels:
            is_ignored = is_ignored.all(-1, keepdim=True).expand_as(labels)  # class probabilities: whole rows only
        if not (has_several_labels or labels.is_floating_point()):
            expected = f"class ids from 0 to {num_classes - 1}, or -100"
            fits = (labels >= 0) & (labels < num_classes) | is_ignored
        elif has_several_labels and self._was_counted_in_rows():
            expected, fits = "0, 1 or -100", (labels == 0) | (labels == 1) | is_ignored
        else:
            expected, fits = "probabilities in [0, 1], or -100", (labels >= 0) & (labels <= 1 + 1e-5) | is_ignored
        form = (num_classes, has_several_labels, labels.dtype)
        if self._checked_form == form:
            assert_async(fits.all(), f"labels: expected {expected}, but got others")
            return
        if not fits.all():
            values = labels[~is_ignored]
            raise ValueError(f"labels: expected {expected}, but got values from {values.min():g} to {values.max():g}")
        if labels.is_floating_point() and not has_several_labels:
            check_distributions("labels", labels[~is_ignored[..., 0]])
        self._checked_form = form

    def _has_several_labels(self, logits: Tensor, labels: Tensor) -> bool:
        """Whether each logit is a separate decision, as is the single logit of two classes.

        Decides as the heads in transformers do, and records the result in the config, which pipelines read.
        """
        config = self._config()
        known = is_multi_label(config)
        if known is not None:
            return known
        is_binary = logits.shape[-1] == 1
        has_row_per_target = labels.shape == logits.shape or is_binary
        if has_row_per_target and not (labels.is_floating_point() or is_binary):
            raise ValueError(
                f"labels: {labels.dtype} of the shape of the logits, {tuple(labels.shape)}; for multi-label "
                'classification convert them to float or set config.problem_type = "multi_label_classification"'
            )
        if config is not None and (logits.dim() == 2 or has_row_per_target):
            config.problem_type = f"{'multi' if has_row_per_target else 'single'}_label_classification"
        if has_row_per_target and self.args.label_smoothing_factor:
            warnings.warn("label_smoothing_factor has no effect on multi-label classification", stacklevel=2)
        return has_row_per_target

    def _is_logged(self) -> bool:
        """Whether the loss being computed goes into the training log."""
        is_wanted = self.is_in_train and self._setting("statistics")
        return is_wanted and self.args.logging_strategy != IntervalStrategy.NO

    def _last_whole_checkpoint(self) -> str | bool:
        """Its folder; without any checkpoint True, for which Trainer raises its own error."""
        complete, incomplete = last_whole_checkpoint(self.args.output_dir or ".")
        if not incomplete:
            return True if complete is None else str(complete)
        names = ", ".join(path.name for path in incomplete)
        if complete is None:
            raise ValueError(
                f"resume_from_checkpoint: no checkpoint in {self.args.output_dir} is complete: files are missing or "
                f"truncated in {names}; remove them and start again"
            )
        warnings.warn(
            f"resume_from_checkpoint: skipped {names} (incomplete); training resumes from {complete.name}",
            stacklevel=3,
        )
        return str(complete)

    def _compare_with_checkpoint(self, folder: str | bool) -> None:
        if not isinstance(folder, str):
            return
        try:
            before = FocalSettings.find_in_folder(folder)
        except ValueError as error:
            warnings.warn(
                f"{folder}: cannot read the settings it was trained with ({error}); resuming with those of this run",
                stacklevel=3,
            )
            return
        now = self.recorded_settings()
        self._has_prior_bias = before is not None and before.prior_bias
        for name in ("gamma", "gamma_neg", "margin", "alpha"):
            if before is not None and getattr(before, name) != getattr(now, name):
                warnings.warn(
                    f"{folder} was trained with {name} {getattr(before, name)}; resuming with {name} "
                    f"{getattr(now, name)}",
                    stacklevel=3,
                )

    def _setting(self, name: str) -> Any:
        keyword = self._keywords.get(name)
        field = f"focal_{name}"
        return getattr(self.args, field, getattr(FocalTrainingArguments, field)) if keyword is None else keyword

    def _alpha_of_counts(self, method: AlphaMethod, beta: float) -> Tensor | None:
        max_ratio, empty_weight = self._setting("alpha_max_ratio"), self._setting("alpha_empty_weight")
        return self.label_distribution().alpha(method, beta=beta, max_ratio=max_ratio, empty_weight=empty_weight)

    def _by_class_id(self, alpha: Mapping[str, Any]) -> list[Any]:
        """Weights by class name, or pairs of them, in the order of the class ids."""
        names = names_by_id(self._config())
        if alpha.keys() != {*names}:
            raise ValueError(f"alpha: expected a weight for each of {names}, but got {dict(alpha)}")
        weights = [alpha[name].tolist() if hasattr(alpha[name], "tolist") else alpha[name] for name in names]
        are_pairs = [isinstance(weight, Sequence) and len(weight) == 2 for weight in weights]
        return [[*side] for side in zip(*weights)] if all(are_pairs) else weights

    def _alpha_from_data(self, method: AlphaMethod) -> Alpha:
        check_alpha_method(method)
        if self.train_dataset is None:
            settings = FocalSettings.find_in(self._config())
            if settings is not None:
                return settings.alpha
            warnings.warn(f"alpha: {method!r} needs a train_dataset; evaluating without alpha", stacklevel=3)
            return None
        if isinstance(self.train_dataset, IterableDataset) and not isinstance(self.train_dataset, HubIterableDataset):
            raise ValueError(
                f"alpha: {method!r} would consume a {type(self.train_dataset).__name__}, which may be readable only "
                "once; pass the weights, for example alpha=compute_alpha(list_of_labels)"
            )
        beta = self._setting("beta")
        try:
            check_beta(beta)
            return self._alpha_of_counts(method, beta)
        except ArgumentError as error:
            raise as_trainer_error(error) from error
        except ValueError as error:
            raise ValueError(f"{error} (or pass the weights to FocalTrainer: alpha=compute_alpha(...))") from error

    def _core_model(self) -> nn.Module:
        """The model inside the wrappers of DDP, FSDP, `torch.compile` and PEFT."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _config(self) -> Any:
        return getattr(self._core_model(), "config", None)

    def _is_causal(self) -> bool:
        return predicts_next_token(self._core_model())

    def _aligned(self, labels: Tensor) -> Tensor:
        """The labels that the logits predict: for causal language models, the next tokens."""
        return F.pad(labels[..., 1:], (0, 1), value=-100) if self._is_causal() else labels

    def _with_targets(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A copy of a batch whose `labels`, which Trainer will pop, are those that the logits are compared with."""
        inputs = dict(inputs)
        names = [name for name in self._names_of_labels() if inputs.get(name) is not None]
        if len(names) > 1:
            raise ValueError(
                f"label_names: the batch holds {' and '.join(names)}, but FocalTrainer trains on one kind of label; "
                "select it with TrainingArguments(label_names=[...]) and remove the others from the data"
            )
        if not names and "labels" in inputs:
            names = ["labels"]  # collators rename a column `label` to this
        if not names:
            raise ValueError(f"labels: missing from the batch, which holds {', '.join(inputs)}. {SUPPORTED}")
        labels = inputs.pop(names[0])
        if self._is_causal():
            labels = inputs["shift_labels"] if "shift_labels" in inputs else self._aligned(labels)
        elif not inputs.keys() & _DECODER_INPUTS and has_decoder_inputs(self._core_model()):
            inputs["decoder_input_ids"] = _decoder_inputs_of(self._core_model(), labels)
        return {**inputs, "labels": labels}

    def _without_sample_weights(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch without its sample weights, which are kept for the loss."""
        column = self.sample_weight_column
        if column in inputs:
            self._sample_weights = inputs[column]
        return {name: value for name, value in inputs.items() if name != column}

    @contextmanager
    def _keeping_sample_weights(self) -> Iterator[None]:
        """Lists the column as a label: Trainer drops columns that are neither arguments of the model nor labels."""
        column, names = self.sample_weight_column, self.label_names
        if column is not None:
            self.label_names = [*names, column]
        try:
            yield
        finally:
            self.label_names = names

    @contextmanager
    def _extending_metrics_call(self) -> Iterator[None]:
        """Passes `compute_metrics` the sample weights and the config's problem type, as far as it accepts them."""
        compute_metrics: Any = self.compute_metrics
        takes = {} if compute_metrics is None else inspect.signature(compute_metrics).parameters

        def extended(prediction: Any, **kwargs: Any) -> dict[str, float]:
            if "problem_type" in takes and takes["problem_type"].default is None:  # not already bound by the user
                kwargs["problem_type"] = getattr(self._config(), "problem_type", None)
            batches = (self._evaluated or [])[-1 if self.args.batch_eval_metrics else 0 :]
            if "sample_weight" in takes and any("weight" in batch for batch in batches):
                kwargs["sample_weight"] = torch.cat([batch["weight"] for batch in batches]).cpu().numpy()
            return compute_metrics(prediction, **kwargs)

        if {"problem_type", "sample_weight"} & {*takes}:
            self.compute_metrics = extended
        try:
            yield
        finally:
            self.compute_metrics = compute_metrics

    def _check_sample_weights(self) -> None:
        column = self.sample_weight_column
        if column is None:
            names = {*(getattr(self.train_dataset, "column_names", None) or [])}
            taken = inspect.signature(self._core_model().forward).parameters.keys() | {*(self.label_names or [])}
            for name in sorted(names & USUAL_NAMES - taken):
                warnings.warn(
                    f"train_dataset: its column {name!r} has no effect; if it holds sample weights, pass "
                    f"sample_weight_column={name!r} (the flag --focal_sample_weight_column {name})",
                    stacklevel=3,
                )
            return
        if self.train_dataset is not None:
            check_sample_weights(self.train_dataset, column)
        if self.compute_metrics is not None and not _takes_weights(self.compute_metrics):
            warnings.warn(
                "compute_metrics: takes no `sample_weight`, so all examples count equally in its metrics",
                stacklevel=3,
            )

    def _prepare_model(self) -> None:
        """Initialises the head's biases, and stores the settings in the config before any callback reads it."""
        earlier = FocalSettings.find_in(self._config())
        if earlier is not None and earlier.folded is not None:
            raise ValueError(
                "model: calibration is folded into its head, so its logits are not those that the loss trains; undo "
                "that with hf_focal.unfold_calibration(model)"
            )
        self._calibrated, self._fits = {}, {}  # fitted for the previous weights
        self._check_settings()  # a search may have changed them since the trainer was made
        if not self._is_resumed:
            was_started = self._has_prior_bias and self.model_init is None  # by an earlier call of `train`
            self._has_prior_bias = self._start_head() or was_started
        settings = self.recorded_settings()
        if not isinstance(settings, FocalSettings):
            raise ValueError(f"recorded_settings: expected FocalSettings, but got {settings!r:.80}")
        if self._config() is not None:
            settings.store_in(self._config())

    def _prepare_made_model(self) -> None:
        if self._is_yet_to_prepare:
            self._is_yet_to_prepare = False
            self._prepare_model()

    def _start_head(self) -> bool:
        """Initialises the head's biases from the class frequencies if it should; returns whether it did."""
        wanted = self._setting("prior_bias")
        model, counts = self._core_model(), self._counts_for_the_record()
        if wanted is False or (wanted is None and (counts is None or counts.negatives is None)):
            return False
        try:
            if type(self).target_losses is not FocalTrainer.target_losses:
                raise ValueError(f"{type(self).__name__} has its own loss, whose minimum is not known")
            if is_one_of(model, LANGUAGE_MODELS):
                raise ValueError(f"{type(model).__name__} predicts tokens of a vocabulary")
            distribution = self.label_distribution()
            head = find_new_head(model, distribution.num_labels)
            weighted = self._weighted(distribution)
            if weighted is None:
                raise ValueError("how much each class counts cannot be told from the weights of the training data")
            biases = prior_logits(*weighted, self.recorded_settings())
        except ValueError as error:
            if wanted:
                raise ValueError(f"prior_bias (the flag --focal_prior_bias): {error}; leave it out") from error
            logger.info("The biases of the head are left as they are: %s.", error)
            return False
        if head.bias is None:
            report = warnings.warn if wanted else logger.info
            report(f"prior_bias: the head of {type(model).__name__} has no biases, so it is left as it is")
            return False
        with torch.no_grad():
            head.bias.copy_(biases)
        logger.info("The biases of the head start from %.3g to %.3g, by the class frequencies.", *extremes(biases))
        return True

    def _warn_of_untrained_parts(self, model: nn.Module) -> None:
        if not self._has_computed_loss:
            warnings.warn(
                f"{type(self).__name__}.compute_loss does not call FocalTrainer's: this is not focal loss, and it "
                "must scale the loss of each micro-batch itself",
                stacklevel=3,
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # they keep gradients elsewhere
            return
        idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if idle:
            warnings.warn(
                f"{type(self._core_model()).__name__}: the loss of its logits gives no gradient to {len(idle)} trainable "
                f"parameters, among them {', '.join(idle[:3])}; FocalTrainer's loss does not include a loss that the "
                "model computes from the labels itself, for example for a second head",
                stacklevel=3,
            )

    def _check_settings(self) -> None:
        """Rejects settings that the loss would reject at the first step."""
        self._check_alpha_has_a_method()
        counts, alpha, num_classes = self._counts_for_the_record(), self.alpha, num_classes_of(self._core_model())
        as_gamma("gamma", self.gamma, num_classes)
        has_several_labels = is_multi_label(self._config())
        if has_several_labels is None and counts is not None:
            has_several_labels = counts.negatives is not None
        self._asymmetry(num_classes, has_several_labels)
        if num_classes is None or has_several_labels is None:
            if alpha is not None:
                as_numbers("alpha", alpha, max_dim=2)  # only the first batch will show whether it fits
        elif has_several_labels:
            sigmoid_weights(alpha, num_classes)
        else:
            weights = softmax_weights(alpha, num_classes)
            if weights is not None and not isinstance(alpha, Sequence) and (weights == 0).any():
                warnings.warn(
                    f"alpha: {alpha} with two classes means the weights {weights.tolist()}, so the class with weight "
                    "0 is not learned; for equal weights leave alpha out",
                    stacklevel=3,
                )

    def _check_alpha_has_a_method(self) -> None:
        """Rejects options of a method if there is none; a search may still set one."""
        alpha = self._setting("alpha")
        if self.model_init is not None or isinstance(alpha, str) or callable(alpha):
            return
        for name in ("alpha_max_ratio", "alpha_empty_weight"):
            if self._setting(name) is not None:
                raise ValueError(
                    f"{name} (the flag --focal_{name}): expected an alpha method with it, such as 'inverse', but got "
                    f"alpha {alpha}"
                )

    def _counts_for_the_record(self) -> LabelDistribution | None:
        """The label distribution, if it has been counted or can be at no cost."""
        if not (isinstance(self.train_dataset, Dataset) or self._counted is not None):
            return None
        try:
            return self.label_distribution()
        except ValueError:  # the counts are optional here; a collator may make the labels
            return None


def _is_scalar(entry: Any) -> bool:
    return entry is None or isinstance(entry, (int, float)) or (isinstance(entry, Tensor) and entry.dim() == 0)


def _takes_weights(compute_metrics: Callable) -> bool:
    return "sample_weight" in inspect.signature(compute_metrics).parameters


def _decoder_inputs_of(model: Any, labels: Tensor) -> Tensor:
    """The decoder inputs, shifted right, that an encoder-decoder would make from the labels if it saw them."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    start, pad = (getattr(model.config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    if start is None or pad is None:
        raise ValueError(
            f"decoder_input_ids: missing from the batch, and the config of {type(model).__name__} has no "
            "decoder_start_token_id and pad_token_id to make them from the labels; let the collator add them"
        )
    shifted = F.pad(labels[..., :-1], (1, 0), value=start)
    return shifted.masked_fill(shifted == -100, pad)


def _without_cycle(method: Callable) -> Callable:
    """The method, without a reference that would keep its object alive: trainers and their models must be freed."""
    reference = WeakMethod(method)

    def call(*args: Any, **kwargs: Any) -> Any:
        alive = reference()
        return None if alive is None else alive(*args, **kwargs)

    return call


class _CachedKernel(NamedTuple):
    form: tuple
    made_from: tuple
    kernel: FocalKernel

    def is_of(self, form: tuple, made_from: tuple) -> bool:
        """Whether it was made from the same objects; compared by identity, as ``==`` of arrays has no truth value."""
        return self.form == form and all(now is before for now, before in zip(made_from, self.made_from))


def _copy_setting(setting: Any) -> Any:
    """A copy, since the caller could change the setting in place."""
    if isinstance(setting, Tensor):
        return setting.detach().clone()
    return setting if callable(setting) else deepcopy(setting)


def _plain_gamma(gamma: Any) -> Any:
    """Gamma as it is recorded: a function by its name."""
    return getattr(gamma, "__name__", type(gamma).__name__) if callable(gamma) else _plain(gamma)


def _plain(numbers: Any) -> Any:
    return as_numbers("alpha", numbers, max_dim=2).double().tolist()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of each label, of the shape of the labels; 0 for -100."""
    kernel, rows = SoftmaxFocal(gamma=0.0, ignore_index=-100), logits.detach().reshape(-1, logits.shape[-1])
    return evaluate(kernel, rows, labels.reshape(-1, 1), 1, "none").reshape(labels.shape)


def _with_columns(rows: Tensor) -> Tensor:
    return rows.unsqueeze(-1) if rows.dim() == 1 else rows
