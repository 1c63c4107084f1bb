"""Two classes with one logit: a sigmoid decision, in whatever form its labels come."""

import pytest
import torch
from datasets import Dataset
from exactness import tiny_dataset, tiny_model
from test_trainer import drift, make_trainer

from hf_focal import FocalSettings, posterior_from_config, sigmoid_focal_loss


IS_RARE = [k % 4 == 0 for k in range(24)]
FORMS = {
    "integers": [int(label) for label in IS_RARE],
    "booleans": IS_RARE,
    "floats": [float(label) for label in IS_RARE],
    "rows of one float": [[float(label)] for label in IS_RARE],
    "rows of one integer": [[int(label)] for label in IS_RARE],
}


def data_of(labels):
    return Dataset.from_dict({"input_ids": tiny_dataset(num_examples=24)["input_ids"][:], "labels": labels})


def one_logit_model(**config):
    return tiny_model(num_labels=1, problem_type="multi_label_classification", **config)


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_labels(tmp_path, form):
    data = data_of(FORMS[form])
    trainer = make_trainer(tmp_path, model=one_logit_model(), train_dataset=data, gamma=1.0, alpha="inverse")
    assert trainer.alpha.tolist() == [[pytest.approx(24 / 36)], [2.0]]  # 18 of one class and 6 of the other
    trainer.train()
    settings = FocalSettings.from_config(trainer.model.config)
    assert (settings.label_counts, settings.class_prior) == ([6], [0.25])
    logits = trainer.model.eval()(torch.tensor(data["input_ids"][:])).logits
    targets = torch.tensor(FORMS["floats"])[:, None]
    expected = sigmoid_focal_loss(logits, targets, gamma=1.0, alpha=[[24 / 36], [2.0]])
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert posterior_from_config(logits, trainer.model.config).shape == (24, 1)


@pytest.mark.parametrize("form", FORMS)
def test_of_a_module_without_a_config_too(tmp_path, form):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = one_logit_model()

        def forward(self, input_ids, labels=None):
            return {"logits": self.model(input_ids).logits}

    arguments = {"train_dataset": data_of(FORMS[form]), "logging_strategy": "steps", "logging_steps": 1}
    trainer = make_trainer(tmp_path, model=Module(), **arguments)
    trainer.train()
    assert 0.4 < trainer.state.log_history[0]["mean_p_t"] < 0.6


def test_trained_as_two_logits_whose_first_is_0(tmp_path):
    """The softmax of (0, z) is the sigmoid of z, so that alpha and gamma do the same."""

    class TwoLogits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, labels=None):
            logits = self.model(input_ids).logits
            return {"logits": torch.cat([torch.zeros_like(logits), logits], 1)}

    one, two = one_logit_model(), TwoLogits(one_logit_model())
    for model in (one, two):
        make_trainer(
            tmp_path,
            model=model,
            train_dataset=data_of(FORMS["integers"]),
            alpha=0.75,
            prior_bias=False,
            optim="sgd",
            learning_rate=1.0,
        ).train()
    assert drift(one.state_dict(), two.model.state_dict()) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_of_a_module_without_a_config(tmp_path, form):
    class Scorer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(30, 4), torch.nn.Linear(4, 1)

        def forward(self, input_ids, labels=None):
            return {"logits": self.head(self.embedding(input_ids).mean(1))}

    trainer = make_trainer(tmp_path, model=Scorer(), train_dataset=data_of(FORMS[form]))
    ids, labels = torch.tensor(data_of(FORMS[form])["input_ids"][:]), torch.tensor(FORMS[form])
    loss = trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": labels})
    expected = sigmoid_focal_loss(trainer.model(ids)["logits"][:, 0], torch.tensor(FORMS["floats"]))
    torch.testing.assert_close(loss, expected)
    trainer.train()


def test_a_regression_head_is_told_both_ways(tmp_path):
    with pytest.raises(ValueError, match="num_labels=2, or with num_labels=1 and problem_type=.multi_label_class"):
        make_trainer(tmp_path, model=tiny_model(num_labels=1), train_dataset=data_of(FORMS["integers"]))


def test_labels_that_are_no_class_are_refused(tmp_path):
    data = data_of([k % 3 for k in range(24)])
    with pytest.raises(ValueError, match="labels: expected .*0.* but got"):
        make_trainer(tmp_path, model=one_logit_model(), train_dataset=data).train()
