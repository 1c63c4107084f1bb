"""examples/migration.md: what other code computes, and what it is here, have the same values and gradients."""

from pathlib import Path
from types import SimpleNamespace

import kornia.losses
import pytest
import torch
import torch.nn.functional as F
from exactness import tiny_dataset, tiny_model
from markdown_it import MarkdownIt
from test_trainer import drift
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_focal import FocalTrainer, focal_loss, sigmoid_focal_loss


N, C, L = 12, 4, 5
GUIDE = Path(__file__).parents[1] / "examples/migration.md"


def table_rows():
    """The cells of the body of the first table: a name, and the code on both sides."""
    tokens = MarkdownIt().enable("table").parse(GUIDE.read_text())
    body = tokens[next(k for k, token in enumerate(tokens) if token.type == "tbody_open") :]
    cells = [
        token for token in body[: next(k for k, t in enumerate(body) if t.type == "tbody_close")] if token.children
    ]
    code = [next((child.content for child in cell.children if child.type == "code_inline"), None) for cell in cells]
    names = ["".join(child.content for child in cell.children) for cell in cells[::3]]
    return list(zip(names, code[1::3], code[2::3]))


def torchvision_sigmoid_focal_loss(logits, rows, alpha, gamma, reduction):
    """Lin et al. 2017, with alpha for the positives and 1 - alpha for the negatives; the mean over all decisions."""
    p_t = torch.where(rows == 1, logits.sigmoid(), 1 - logits.sigmoid())
    each = -torch.where(rows == 1, alpha, 1 - alpha) * (1 - p_t) ** gamma * p_t.log()
    return getattr(each, reduction)()


class AsymmetricLoss:
    """Ridnik et al. 2021, equations 4 to 6: the sum over all decisions."""

    def __init__(self, gamma_neg, gamma_pos, clip, disable_torch_grad_focal_loss):
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip
        self.detached = disable_torch_grad_focal_loss

    def __call__(self, logits, rows):
        p = logits.sigmoid()
        shifted = (p - self.clip).clamp_min(0)
        focus = torch.where(rows == 1, (1 - p) ** self.gamma_pos, shifted**self.gamma_neg)
        focus = focus.detach() if self.detached else focus
        return -(focus * torch.where(rows == 1, p.log(), (1 - shifted).log())).sum()


def namespace():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = torch.randint(C, (N,), generator=generator)
    logits = {"target": 2 * random(N, C), "rows": 2 * random(N, L)}
    batch = {
        "target": target,
        "rows": (random(N, L) > 0).double(),
        "weight": random(C).exp(),
        "pos_weight": random(L).exp(),
    }

    def keras_fit(texts, target, class_weight):
        """Keras weighs the loss of each example by its class, and divides by their number."""
        each = F.cross_entropy(variables["logits"], target, reduction="none")
        return (torch.stack([class_weight[k] for k in target.tolist()]) * each).mean()

    def classification_model(model_type, model_name, num_labels, weight=None, args=None):
        """simpletransformers: the weights of `CrossEntropyLoss`, or a focal loss whose alpha is the weight of class 0."""
        logits = variables["logits"]
        if weight is not None:
            return F.cross_entropy(logits, target, weight=torch.tensor(weight, dtype=logits.dtype))
        gamma, alpha = args["loss_args"]["gamma"], args["loss_args"]["alpha"]
        p_t = logits.softmax(-1)[torch.arange(N), target]
        return (torch.where(target > 0, 1 - alpha, alpha) * (1 - p_t) ** gamma * -p_t.log()).mean()

    variables = {
        **batch,
        **{"N": N, "C": C, "L": L, "F": F, "nn": nn, "torch": torch, "kornia": kornia, "name": "", "texts": None},
        "focal_loss": focal_loss,
        "sigmoid_focal_loss": sigmoid_focal_loss,
        "torchvision": SimpleNamespace(ops=SimpleNamespace(sigmoid_focal_loss=torchvision_sigmoid_focal_loss)),
        "AsymmetricLoss": AsymmetricLoss,
        "model": SimpleNamespace(fit=keras_fit),
        "ClassificationModel": classification_model,
    }
    return variables, logits


def value_and_gradient(code, has_rows):
    variables, logits = namespace()
    variables["logits"] = logits["rows" if has_rows else "target"].requires_grad_()
    value = eval(code, variables)
    return value.detach(), *torch.autograd.grad(value, variables["logits"])


ROWS = table_rows()


@pytest.mark.parametrize("there, here", [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_both_sides_are_equal(there, here):
    has_rows = "rows" in here
    for expected, found in zip(value_and_gradient(there, has_rows), value_and_gradient(here, has_rows)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_each_row_has_weights_that_matter():
    """What is not plain cross entropy is far from it, so no row holds by chance."""
    for name, there, here in ROWS[1:]:
        plain = (
            "sigmoid_focal_loss(logits, rows, gamma=0)" if "rows" in here else "focal_loss(logits, target, gamma=0)"
        )
        value, _ = value_and_gradient(there, "rows" in here)
        assert abs(value - value_and_gradient(plain, "rows" in here)[0]) > 0.01, name


def test_the_default_of_asymmetric_loss_has_another_gradient():
    there = next(row[1] for row in ROWS if "asymmetric" in row[0])
    value, gradient = value_and_gradient(there, has_rows=True)
    other, detached = value_and_gradient(there.replace("focal_loss=False", "focal_loss=True"), has_rows=True)
    assert other == value and (gradient - detached).abs().max() > 0.01


def python_blocks():
    return [token.content for token in MarkdownIt().parse(GUIDE.read_text()) if token.info == "python"]


@pytest.mark.parametrize("average, is_equal", [(1, True), (3, False)])
def test_trainers_make_the_same_step(tmp_path, average, is_equal):
    override, ours = python_blocks()
    data = tiny_dataset()
    labels = torch.tensor(data["labels"][:])
    weight = torch.tensor([0.5, 1.0, 4.0])
    weight *= average / weight[labels].mean()
    states = []
    for code in (override, ours):
        args = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=len(data),
            max_steps=1,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0,
            lr_scheduler_type="constant",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        variables = {"model": tiny_model(), "args": args, "train_dataset": data, "weight": weight, "nn": nn}
        exec(code, variables | {"Trainer": Trainer, "FocalTrainer": FocalTrainer} | {"__name__": "guide"}, variables)
        variables["trainer"].train()
        states.append(variables["model"].state_dict())
    assert drift(states[0], tiny_model().state_dict()) > 1e-3
    assert (drift(*states) < 1e-6) is is_equal
