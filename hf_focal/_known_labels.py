"""Labels in every form used for training: which of them are known, one row for each example or token."""

from collections.abc import Sequence

from torch import Tensor

from ._checks import check_distributions


__all__ = ["known_labels"]


def known_labels(
    logits_shape: Sequence[int], labels: Tensor, multi_label: bool, name: str = "labels"
) -> tuple[Tensor, Tensor]:
    """Which examples have a label, and these labels: class ids, class probabilities, or rows of several labels.

    Args:
        logits_shape (sequence of `int`): (..., C).
        labels (`Tensor`): Class ids of shape (...) or (..., 1), where -100 is "not known"; or rows of shape (..., C), where
            a row of -100 is "not known": one-hot or class probabilities of any dtype or, for multi-label, any numbers.
            With one logit, the last dimension may be missing.
        multi_label (`bool`): Whether an example has several labels, or one logit for two classes.
        name (`str`): Name of the labels in error messages.

    Returns:
        `tuple[Tensor, Tensor]`: Whether each of the N examples has a label, shape (N); and the labels of those that
        have one: for multi-label, the rows unchanged; otherwise class ids, also for one-hot rows, or class
        probabilities in float64.

    Raises:
        `ValueError`: For labels of any other shape, and for single-label rows that are not probabilities.

    Example:

    ```python
    >>> import torch
    >>> from hf_focal._known_labels import known_labels
    >>> known_labels((3, 2), torch.tensor([[0.0, 1.0], [-100.0, -100.0], [1.0, 0.0]]), multi_label=False)
    (tensor([ True, False,  True]), tensor([1, 0]))

    ```
    """
    shape = tuple(logits_shape)
    shapes_of_ids, num_classes = (shape[:-1], (*shape[:-1], 1)), shape[-1]
    if not multi_label and labels.shape in shapes_of_ids:
        labels = labels.reshape(-1)
        is_known = labels != -100
        return is_known, labels[is_known]
    if labels.shape != shape and not (num_classes == 1 and labels.shape in shapes_of_ids):
        expected = shape if multi_label else f"{shape[:-1]} or {shape}"
        raise ValueError(f"{name}: expected shape {expected}, but got {tuple(labels.shape)}")
    rows = labels.detach().reshape(-1, num_classes)
    is_known = (rows != -100).any(-1)
    rows = rows[is_known]
    if multi_label:
        return is_known, rows
    check_distributions(name, rows)
    is_one_hot = bool(((rows == 0) | (rows == 1)).all())
    return is_known, rows.double().argmax(-1) if is_one_hot else rows.double()
