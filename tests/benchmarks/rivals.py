"""Focal losses from the package index, each as a function of logits and class indices (or 0/1 labels), gamma 2, mean."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_focal import focal_loss, sigmoid_focal_loss


GAMMA = 2.0


def tutorial_loss(input: Tensor, target: Tensor) -> Tensor:
    cross_entropy = F.cross_entropy(input, target, reduction="none")
    return ((1 - torch.exp(-cross_entropy)) ** GAMMA * cross_entropy).mean()


def with_alpha(input: Tensor, target: Tensor) -> Tensor:
    return focal_loss(input, target, alpha=_alpha(input.shape[1]))


@cache
def _alpha(num_classes: int) -> Tensor:
    return torch.linspace(0.5, 2, num_classes)


def _kornia() -> Callable:
    losses = pytest.importorskip("kornia.losses")
    return lambda input, target: losses.focal_loss(input, target, alpha=None, gamma=GAMMA, reduction="mean")


def _kornia_sigmoid() -> Callable:
    losses = pytest.importorskip("kornia.losses")
    return lambda input, target: losses.binary_focal_loss_with_logits(
        input, target, alpha=None, gamma=GAMMA, reduction="mean"
    )


def _monai() -> Callable:
    loss = pytest.importorskip("monai.losses").FocalLoss(to_onehot_y=True, use_softmax=True, gamma=GAMMA)
    return lambda input, target: loss(input, target.unsqueeze(1))


def _focal_loss_torch() -> Callable:
    loss = pytest.importorskip("focal_loss").FocalLoss(gamma=GAMMA)
    return lambda input, target: loss(input.softmax(1), target)  # it takes probabilities


def _autogluon() -> Callable:
    # One file: to import the package would take all its dependencies.
    spec = importlib.util.find_spec("autogluon")
    if spec is None:
        pytest.skip("autogluon.multimodal is not installed")
    file = Path(spec.submodule_search_locations[0]) / "multimodal/optim/losses/focal_loss.py"
    spec = importlib.util.spec_from_file_location("autogluon_focal_loss", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FocalLoss(gamma=GAMMA)


SOFTMAX = {
    "hf_focal": lambda: focal_loss,
    "hf_focal with alpha": lambda: with_alpha,
    "the tutorial's form": lambda: tutorial_loss,
    "kornia": _kornia,
    "pytorch-focalloss": lambda: pytest.importorskip("torch_focalloss").MultiClassFocalLoss(gamma=GAMMA),
    "imbalanced-losses": lambda: pytest.importorskip("imbalanced_losses").SoftmaxFocalLoss(gamma=GAMMA),
    "autogluon.multimodal": _autogluon,
    "simpletransformers": lambda: pytest.importorskip("simpletransformers.losses").FocalLoss(gamma=GAMMA),
    "focal-loss-torch": _focal_loss_torch,
    "balanced-loss": lambda: pytest.importorskip("balanced_loss").Loss("focal_loss", fl_gamma=GAMMA),
    "monai": _monai,
}
SIGMOID = {
    "hf_focal": lambda: sigmoid_focal_loss,
    "hf_focal with alpha": lambda: lambda input, target: sigmoid_focal_loss(input, target, alpha=0.25),
    "kornia": _kornia_sigmoid,
    "pytorch-focalloss": lambda: pytest.importorskip("torch_focalloss").BinaryFocalLoss(gamma=GAMMA),
    "imbalanced-losses": lambda: pytest.importorskip("imbalanced_losses").SigmoidFocalLoss(gamma=GAMMA),
    "monai": lambda: pytest.importorskip("monai.losses").FocalLoss(gamma=GAMMA),
}
