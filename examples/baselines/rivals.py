"""The rivals to focal loss, each as exact as FocalTrainer: `RIVALS[name]` is the trainer class.

They are cross entropy with one change (the caller sets gamma 0 and no alpha). For one class per example:

- ``balanced_sampling`` draws the training examples so that each class is equally likely;
- ``logit_adjustment`` adds the logarithm of the class prior to the logits (Menon et al. 2021);

and for several labels per example:

- ``positive_weights`` weights the positives of a label by its negatives over its positives, the `pos_weight` proposed
  in the documentation of `BCEWithLogitsLoss`.

Weighted cross entropy, and for several labels the asymmetric loss (Ridnik et al. 2021, https://arxiv.org/abs/2009.14119),
are settings of focal loss.

A model always returns its own logits, also after `logit_adjustment`. The evaluation loss is the training loss, as for
[`FocalTrainer`], and like training it needs the trainer's `train_dataset`.
"""

from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, WeightedRandomSampler

from hf_focal import FocalSettings, FocalTrainer, LabelDistribution


class BalancedSampler(WeightedRandomSampler):
    """Draws N of the N examples with replacement: first a random class, then one of its examples.

    The draw depends only on seed and epoch: all processes, each of which takes its share of the batches, and a
    training resumed at an epoch draw the same list. Accelerate sets the epoch.
    """

    def __init__(self, labels: Tensor, seed: int):
        super().__init__((1 / labels.bincount().double())[labels], len(labels), generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class _ClassBalancedTrainer(FocalTrainer):
    """Its logits correspond to the posterior with equally likely classes, so it records a uniform prior."""

    def recorded_settings(self) -> FocalSettings:
        settings = super().recorded_settings()
        counts = settings.label_counts
        uniform = counts and [(n > 0) / sum(n > 0 for n in counts) for n in counts]
        return replace(settings, class_prior=uniform)


class BalancedSamplingTrainer(_ClassBalancedTrainer):
    """Draws each class of `train_dataset`, a `Dataset` with one class id per example, with equal probability."""

    def get_train_dataloader(self) -> DataLoader:
        dataset = self.train_dataset
        labels = torch.as_tensor(dataset["labels" if "labels" in dataset.column_names else "label"][:])
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                f"balanced_sampling: expected one class id per example, but got {labels.dtype} labels of shape "
                f"{tuple(labels.shape)}"
            )
        loader = super().get_train_dataloader()
        loader.set_sampler(
            BalancedSampler(labels, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        )
        return loader


class LogitAdjustmentTrainer(_ClassBalancedTrainer):
    """The loss of ``logits + tau log(prior)``, with the class shares in `train_dataset` as the prior.

    Equation 10 of Menon et al. 2021 (https://arxiv.org/abs/2007.07314): with tau 1 the softmax of the adjusted logits
    learns the posterior of the training data, so that the largest logit of the model is the Bayes-optimal decision for
    balanced error.
    """

    tau = 1.0

    def target_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        distribution = self.label_distribution()
        missing = (distribution.counts == 0).nonzero()[0].tolist()
        if missing or distribution.negatives is not None:
            actual = f"no training examples of classes {missing}" if missing else "several labels per example"
            raise ValueError(
                f"logit_adjustment: expected one class per example and examples of each class, but got {actual}"
            )
        log_prior = torch.from_numpy(distribution.shares).log().to(logits.device, torch.float32)
        return super().target_losses(logits + self.tau * log_prior, labels)


class PositiveWeightsTrainer(FocalTrainer):
    """Binary cross entropy in which the positives of a label have the same total weight as its negatives."""

    def __init__(self, *args: Any, train_dataset: Dataset, **kwargs: Any):
        distribution = LabelDistribution.from_dataset(train_dataset)
        if distribution.negatives is None or not distribution.counts.all():
            raise ValueError("positive_weights: expected several labels per example, and positives of each label")
        pair = [[1.0] * distribution.num_labels, (distribution.negatives / distribution.counts).tolist()]
        super().__init__(*args, train_dataset=train_dataset, **kwargs | {"alpha": pair})


RIVALS: dict[str, type[FocalTrainer]] = {
    "focal": FocalTrainer,
    "balanced_sampling": BalancedSamplingTrainer,
    "logit_adjustment": LogitAdjustmentTrainer,
    "positive_weights": PositiveWeightsTrainer,
}
