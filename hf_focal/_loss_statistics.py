"""Statistics of the targets since the last log: their mean probability, and the shares of the classes in the loss."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._kernels import SigmoidFocal, SoftmaxFocal, evaluate
from .metrics import class_groups


class LossStatistics:
    """Sums over the micro-batches between two logs, on their device and without waiting for it."""

    def __init__(self) -> None:
        self._totals: Tensor | None = None
        self._label_counts: Sequence[int] | None = None
        self._group_of_class: Tensor | None = None

    @torch.no_grad()
    def add(
        self,
        logits: Tensor,
        labels: Tensor,
        losses: Tensor,
        is_target: Tensor,
        label_counts: Sequence[int] | None,
    ) -> None:
        """Adds the targets of a micro-batch.

        Args:
            logits (`Tensor`): Of shape (..., C).
            labels (`Tensor`): Class ids of shape (...), or rows of 0 and 1, (..., C).
            losses (`Tensor`): The loss of each target, of the shape of `labels`.
            is_target (`Tensor`): Which of the labels count, bool, of the shape of `labels`.
            label_counts (sequence, *optional*): Training examples of each class, which define the groups.
        """
        num_classes = logits.shape[-1]
        rows, targets = logits.reshape(-1, num_classes), labels.masked_fill(~is_target, 0)
        if labels.shape == logits.shape:
            cross_entropy = evaluate(
                SigmoidFocal(gamma=0.0, has_soft_targets=False), rows, targets.reshape(rows.shape), 1, "none"
            )
            classes = torch.arange(num_classes, device=labels.device).expand_as(labels)
        else:
            cross_entropy = evaluate(SoftmaxFocal(gamma=0.0), rows, targets.reshape(-1, 1), 1, "none")
            classes = targets
        p_t = cross_entropy.neg().exp().reshape(labels.shape)
        totals = [is_target.sum()[None], p_t.where(is_target, 0).sum()[None]]
        if label_counts is not None:
            groups = self._groups(label_counts, num_classes, labels.device)[classes].flatten()
            target_losses = losses.where(is_target, 0).float().flatten()
            totals.append(torch.zeros(3, device=labels.device).index_add_(0, groups, target_losses))
        added = torch.cat([total.float() for total in totals])
        added = added.where(added.isfinite().all(), 0)  # drops a batch that overflows, as Trainer does with its loss
        self._totals = added if self._totals is None else self._totals + added

    def logs(self, summed_over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The entries of the log; resets the statistics. Empty if nothing was added."""
        if self._totals is None:
            return {}
        num_targets, p_t, *losses = summed_over_processes(self._totals).tolist()
        self._totals = None
        logs = {"mean_p_t": p_t / num_targets} if num_targets else {}
        if sum(losses) > 0:
            shares = zip(("head", "mid", "tail"), losses)
            logs |= {f"loss_share_{group}": loss / sum(losses) for group, loss in shares}
        return logs

    def _groups(self, label_counts: Sequence[int], num_classes: int, device: torch.device) -> Tensor:
        """The group index of each class, cached on the device because copying takes time."""
        if self._group_of_class is None or self._label_counts != label_counts:
            group_of_class = torch.zeros(num_classes, dtype=torch.long)
            for group, members in enumerate(class_groups(label_counts).values()):
                group_of_class[members] = group
            self._label_counts, self._group_of_class = label_counts, group_of_class.to(device)
        return self._group_of_class
