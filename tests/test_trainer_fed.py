"""What the trainer is fed is what it counts and trains on, with the stock class or a number made by hand beside it."""

import gc
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset
from exactness import tiny_dataset, tiny_model
from test_trainer import batch_of, drift, make_trainer
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    WhisperConfig,
    WhisperForConditionalGeneration,
    default_data_collator,
)

from hf_focal import (
    FocalSettings,
    FocalTrainer,
    FocalTrainingArguments,
    LabelDistribution,
    compute_alpha,
    compute_metrics,
    focal_loss,
)


IDS = {"spam": 0, "ham": 1}


def spam(**config):
    """Four of spam and twenty of ham, as strings, for a model whose ids are not in the order of the alphabet."""
    model = tiny_model(num_labels=2, label2id=IDS, id2label={0: "spam", 1: "ham"}, **config)
    names = ["spam"] * 4 + ["ham"] * 20
    return model, Dataset.from_dict({"input_ids": tiny_dataset(num_examples=24)["input_ids"][:], "label": names})


def collate(examples):
    return default_data_collator([{**example, "label": IDS[example["label"]]} for example in examples])


class TestStrings:
    def test_a_collator_makes_ids_of_them(self, tmp_path):
        model, data = spam()
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, data_collator=collate, alpha="inverse")
        assert trainer.alpha.tolist() == pytest.approx([3.0, 0.6])
        trainer.train()
        settings = FocalSettings.from_config(model.config)
        assert settings.label_counts == [4, 20] and settings.class_prior == pytest.approx([4 / 24, 20 / 24])

    def test_of_which_the_model_knows_nothing(self, tmp_path):
        _, data = spam()
        trainer = make_trainer(tmp_path, model=tiny_model(num_labels=2), train_dataset=data, data_collator=collate)
        trainer.train()
        assert FocalSettings.from_config(trainer.model.config).label_counts is None
        with pytest.raises(ValueError, match="labels: the training data hold strings.*class_encode_column"):
            make_trainer(
                tmp_path, model=tiny_model(num_labels=2), train_dataset=data, data_collator=collate, alpha="inverse"
            )

    def test_that_nobody_maps_are_refused_when_the_trainer_is_made(self, tmp_path):
        model, data = spam()
        for alpha in (None, "inverse"):
            with pytest.raises(
                ValueError, match=r"holds strings, which the model cannot use.*class_encode_column\('label'\)"
            ):
                make_trainer(tmp_path, model=model, train_dataset=data, alpha=alpha)

    def test_lists_of_them_are_to_become_rows(self, tmp_path):
        """`class_encode_column` takes no lists."""
        model, data = spam()
        lists = data.map(lambda row: {"label": [row["label"]]})
        with pytest.raises(ValueError, match="holds strings.* per token, or for several labels .* rows of 0 and 1$"):
            make_trainer(tmp_path, model=model, train_dataset=lists)

    def test_class_encoded_ones_follow_their_class_label(self, tmp_path):
        model, data = spam()
        encoded = data.class_encode_column("label")
        assert isinstance(encoded.features["label"], ClassLabel)
        trainer = make_trainer(tmp_path, model=model, train_dataset=encoded, alpha="inverse")
        assert trainer.alpha.tolist() == pytest.approx([0.6, 3.0])  # the ids that are fed are those of the alphabet

    @pytest.mark.parametrize("kind", ["a stream", "a list"])
    def test_that_nobody_maps_are_refused_wherever_they_can_be_seen(self, tmp_path, kind):
        model, data = spam()
        data = data.to_iterable_dataset() if kind == "a stream" else [*data]
        with pytest.raises(ValueError, match="column 'label' of train_dataset holds strings.*class_encode_column"):
            make_trainer(tmp_path, model=model, train_dataset=data, max_steps=1)
        make_trainer(tmp_path, model=model, train_dataset=data, max_steps=1, data_collator=collate).train()


class TestTransforms:
    def flipped(self):
        data = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 24, "label": [0] * 4 + [1] * 20})
        data.set_transform(lambda batch: {**batch, "label": [1 - label for label in batch["label"]]})
        return data

    def test_what_the_dataset_hands_out_is_counted(self, tmp_path):
        trainer = make_trainer(
            tmp_path,
            model=tiny_model(num_labels=2),
            train_dataset=self.flipped(),
            alpha="inverse",
            remove_unused_columns=False,
        )
        assert trainer.label_distribution().counts.tolist() == [20, 4]
        trainer.train()
        assert FocalSettings.from_config(trainer.model.config).label_counts == [20, 4]

    def test_by_the_function_too(self):
        assert LabelDistribution.from_dataset(self.flipped()).counts.tolist() == [20, 4]


class TestKindsOfLabels:
    def test_booleans_are_two_classes(self, tmp_path):
        ids = tiny_dataset(num_examples=12)["input_ids"][:]
        is_rare = [k % 4 == 0 for k in range(12)]
        losses = []
        for labels in (is_rare, list(map(int, is_rare))):
            data = Dataset.from_dict({"input_ids": ids, "labels": labels})
            model = tiny_model(num_labels=2)
            trainer = make_trainer(tmp_path, model=model, train_dataset=data, alpha="inverse")
            losses.append(trainer.train().training_loss)
            assert FocalSettings.from_config(model.config).label_counts == [9, 3]
        assert losses[0] == losses[1]

    @pytest.mark.parametrize("dtype", ["int64", "float32"])
    def test_one_hot_rows_are_class_ids(self, tmp_path, dtype):
        data = tiny_dataset(num_examples=12)
        ids = [-100 if k % 5 == 0 else label for k, label in enumerate(data["labels"][:])]
        rows = [[-100] * 3 if label == -100 else [int(label == k) for k in range(3)] for label in ids]
        columns = data.remove_columns("labels").to_dict()
        outcomes = []
        for labels in (ids, np.array(rows, dtype).tolist()):
            model = tiny_model(problem_type="single_label_classification")
            trainer = make_trainer(
                tmp_path,
                model=model,
                train_dataset=Dataset.from_dict({**columns, "labels": labels}),
                eval_dataset=Dataset.from_dict({**columns, "labels": labels}),
                compute_metrics=compute_metrics,
                label_smoothing_factor=0.1,
            )
            trainer.train()
            found = {name: value for name, value in trainer.evaluate().items() if "_time" not in name}
            found |= {"temperature": trainer.calibrate()["temperature"]}
            outcomes.append({name: found[name] for name in found if not name.endswith(("runtime", "second"))})
        assert outcomes[1] == pytest.approx(outcomes[0], rel=1e-5)

    def test_another_name(self, tmp_path):
        class Named(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = tiny_model()

            def forward(self, input_ids, target=None):
                logits = self.model(input_ids).logits
                return (
                    {"logits": logits}
                    if target is None
                    else {"loss": F.cross_entropy(logits, target), "logits": logits}
                )

        data = tiny_dataset().rename_column("labels", "target")
        trained = []
        for trainer_class, settings in ((Trainer, {}), (FocalTrainer, {"gamma": 0})):
            trainer = make_trainer(
                tmp_path,
                model=Named(),
                train_dataset=data,
                eval_dataset=data,
                trainer_class=trainer_class,
                label_names=["target"],
                **settings,
            )
            trainer.train()
            trained.append((trainer.model.state_dict(), trainer.evaluate()["eval_loss"]))
        assert drift(trained[1][0], trained[0][0]) < 1e-6
        assert trained[1][1] == pytest.approx(trained[0][1], rel=1e-5)

    @pytest.mark.parametrize("other", ["label", "label_mask"])
    def test_another_argument_with_label_in_its_name_changes_nothing(self, tmp_path, other):
        class Masked(type(tiny_model())):
            def forward(self, input_ids, label=None, label_mask=None, labels=None):
                return super().forward(input_ids)

        class Label(type(tiny_model())):
            def forward(self, input_ids, label=None):
                return super().forward(input_ids)

        model = (Masked if other == "label_mask" else Label)(tiny_model().config)
        trainer = make_trainer(tmp_path, model=model)
        assert trainer.label_names[0] == "label"
        assert trainer.label_distribution().total == len(tiny_dataset())
        batches = [{name: torch.tensor(tiny_dataset()[name][:4]) for name in ("input_ids", "labels")}] * 2
        _, num_targets = trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
        assert num_targets == 8
        expected = focal_loss(model(batches[0]["input_ids"]).logits, batches[0]["labels"])
        torch.testing.assert_close(trainer.compute_loss(model, batches[0]), expected)

    def test_the_column_of_that_name_is_counted(self, tmp_path):
        data = Dataset.from_dict({"input_ids": [[1, 2]] * 4, "target": [0, 0, 0, 1], "label": [1, 1, 1, 0]})
        model = tiny_model(num_labels=2)
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, label_names=["target"], alpha="inverse")
        assert trainer.label_distribution().counts.tolist() == [3, 1]
        assert trainer.alpha.tolist() == pytest.approx([4 / 6, 2])

    def test_two_names_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="label_names: expected one name"):
            make_trainer(tmp_path, label_names=["start_labels", "end_labels"])

    def test_an_evaluation_without_a_known_label_is_not_perfect(self, tmp_path):
        data = tiny_dataset("tokens", 4).map(lambda row: {"labels": [-100] * len(row["labels"])})
        loss = make_trainer(tmp_path, task="tokens").evaluate(data)["eval_loss"]
        assert loss != loss


class TestAlpha:
    def test_by_class_name(self, tmp_path):
        model, data = spam()
        data = data.map(lambda row: {"label": IDS[row["label"]]})
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, alpha={"ham": 1.0, "spam": 5.0})
        assert trainer.alpha == [5.0, 1.0]
        with pytest.raises(ValueError, match=r"alpha: expected a weight for each of \['spam', 'ham'\]"):
            make_trainer(tmp_path, model=model, train_dataset=data, alpha={"spam": 5.0})

    def test_balanced_is_another_name_of_inverse(self):
        labels = [0] * 20 + [1] * 4
        assert compute_alpha(labels, "balanced").tolist() == compute_alpha(labels, "inverse").tolist()
        FocalTrainingArguments("folder", focal_alpha="balanced", use_cpu=True)

    def test_a_weight_of_0_is_warned_about(self, tmp_path):
        data = Dataset.from_dict({"input_ids": [[1, 2], [3, 4]], "labels": [0, 1]})
        with pytest.warns(UserWarning, match=r"alpha: 1 with two classes means the weights \[0.0, 1.0\]"):
            make_trainer(tmp_path, model=tiny_model(num_labels=2), train_dataset=data, alpha=1)

    def test_a_beta_that_does_nothing_is_warned_about(self):
        distribution = LabelDistribution([900_000, 700_000, 60_000])
        with pytest.warns(
            UserWarning, match=r"beta: with 0.999 the weights of all classes are equal.*beta=0.99999889"
        ):
            distribution.alpha("effective_number")
        alpha = distribution.alpha("effective_number", beta=0.99999889)
        assert alpha.max() / alpha.min() > 5

    @pytest.mark.parametrize("by", ["keyword", "flag"])
    def test_a_class_without_examples_and_a_cap(self, tmp_path, by):
        data = tiny_dataset().filter(lambda row: row["labels"] != 1)
        settings = {"alpha": "inverse", "alpha_empty_weight": 1.0, "alpha_max_ratio": 2.0}
        with pytest.raises(
            ValueError, match=r"^train_dataset: no examples of class 1, .*the flag --focal_alpha_empty_weight"
        ):
            make_trainer(tmp_path, train_dataset=data, alpha="inverse")
        if by == "flag":
            flags = {f"focal_{name}": value for name, value in settings.items()}
            trainer = make_trainer(tmp_path, train_dataset=data, args_class=FocalTrainingArguments, **flags)
        else:
            trainer = make_trainer(tmp_path, train_dataset=data, **settings)
        expected = compute_alpha(data, num_labels=3, empty_weight=1.0, max_ratio=2.0)
        assert trainer.alpha.tolist() == expected.tolist()
        assert expected[2] == pytest.approx(2 * expected[0].item())

    def test_a_ratio_to_a_weight_of_0_is_refused(self):
        with pytest.raises(ValueError, match=r"max_ratio: expected weights above 0, .* but got \[0.0, 1.0\]"):
            compute_alpha([0, 0, 1], lambda counts: [0.0, 1.0], max_ratio=2)

    def test_one_id_in_each_row(self):
        assert LabelDistribution.from_dataset([[0], [1], [1]], multi_label=True).counts.tolist() == [1, 2]
        with pytest.raises(ValueError, match="num_labels: expected a positive integer, but got True"):
            LabelDistribution.from_dataset([0, 1], num_labels=True)


class TestLossesThatWereLost:
    def test_an_encoder_decoder_is_shown_its_own_targets(self, tmp_path):
        config = BartConfig(
            vocab_size=30,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=16,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
        )
        torch.manual_seed(0)
        weights = BartForConditionalGeneration(config).state_dict()
        ids = tiny_dataset()["input_ids"][:]
        data = Dataset.from_dict({"input_ids": ids, "labels": [[(k + 3) % 27 + 3 for k in row] for row in ids]})
        trained = []
        for trainer_class, settings in ((Trainer, {}), (FocalTrainer, {"gamma": 0})):
            model = BartForConditionalGeneration(config)
            model.load_state_dict(weights)
            arguments = {"max_steps": 4, "optim": "sgd", "learning_rate": 1.0, "per_device_train_batch_size": 8}
            trainer = make_trainer(
                tmp_path, model=model, train_dataset=data, trainer_class=trainer_class, **arguments, **settings
            )
            trainer.train()
            trained.append((model.state_dict(), trainer.evaluate(data)["eval_loss"]))
        assert drift(trained[1][0], trained[0][0]) < 1e-5
        assert trained[1][1] == pytest.approx(trained[0][1], rel=1e-4)

    def test_the_loss_of_a_router_is_refused(self, tmp_path):
        model = tiny_model(output_router_logits=True, router_aux_loss_coef=0.01)
        with pytest.raises(ValueError, match="load-balancing loss for its router.*output_router_logits = False"):
            make_trainer(tmp_path, model=model)

    @pytest.mark.parametrize(
        "config, advice",
        [
            ({"output_router_logits": True, "aux_loss_coef": 0.01}, "output_router_logits = False"),  # JetMoe
            ({"z_loss_coefficient": 0.1}, "z_loss_coefficient = 0"),  # Bamba
            ({"ngram": 2, "disable_ngram_loss": False}, "disable_ngram_loss = True"),  # ProphetNet
        ],
    )
    def test_so_are_others_that_the_config_shows(self, tmp_path, config, advice):
        with pytest.raises(ValueError, match=advice):
            make_trainer(tmp_path, model=tiny_model(**config))

    def test_a_second_kind_of_labels_is_refused(self, tmp_path):
        class TwoHeads(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = tiny_model()

            def forward(self, input_ids, labels=None, other_labels=None):
                return {"logits": self.model(input_ids).logits}

        data = tiny_dataset()
        data = data.add_column("other_labels", data["labels"][:])
        with pytest.raises(ValueError, match="label_names: the batch holds labels and other_labels"):
            make_trainer(tmp_path, model=TwoHeads(), train_dataset=data).train()

    def test_parameters_without_a_gradient_are_warned_about(self, tmp_path):
        class WithTerm(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model, self.term = tiny_model(), torch.nn.Linear(1, 1)

            def forward(self, input_ids, labels=None):
                logits = self.model(input_ids).logits
                if labels is None:
                    return {"logits": logits}
                term = self.term(logits[:, :1]).pow(2).mean()
                return {"loss": F.cross_entropy(logits, labels) + term, "logits": logits}

        with pytest.warns(
            UserWarning, match="no gradient to 2 trainable parameters, among them term.weight, term.bias"
        ):
            make_trainer(tmp_path, model=WithTerm(), max_steps=1).train()

    def test_shifted_labels_of_the_batch_are_used(self, tmp_path):
        model = BertLMHeadModel(BertConfig(**{**tiny_model().config.to_dict(), "is_decoder": True}))
        ids = torch.tensor(tiny_dataset()["input_ids"][:4])
        shifted = F.pad(ids[:, 1:], (0, 1), value=-100)
        taker = TakesShiftedLabels(model.config)
        taker.load_state_dict(model.state_dict())
        trainer = make_trainer(tmp_path, model=taker, train_dataset=None)
        batch = {"input_ids": ids, "labels": ids.flip(0), "shift_labels": shifted}
        loss = trainer.compute_loss(taker.eval(), batch)
        expected = focal_loss(model.eval()(ids).logits.transpose(1, 2), shifted)
        torch.testing.assert_close(loss, expected)
        _, num_targets = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
        assert num_targets == (shifted != -100).sum()

    def test_infinity_at_the_true_class_is_a_divergence(self):
        for num_classes in (3, 70):
            logits = torch.zeros(2, num_classes)
            logits[0, 1] = torch.inf
            logits.requires_grad_()
            assert F.cross_entropy(logits, torch.tensor([1, 0])).isnan()
            loss = focal_loss(logits, torch.tensor([1, 0]))
            loss.backward()
            assert loss.isnan() and logits.grad[0].isnan().any() and logits.grad[1].isfinite().all()


class TestTuples:
    @pytest.mark.parametrize("extra", ["hidden states", "a number"])
    def test_the_logits_are_those_of_the_classes(self, tmp_path, extra):
        class Tuples(type(tiny_model())):
            def forward(self, input_ids, labels=None):
                logits = super().forward(input_ids).logits
                return (0.0 if extra == "a number" else torch.zeros(len(input_ids), 16), logits)

        model = Tuples(tiny_model().config)
        batch = {name: torch.tensor(tiny_dataset()[name][:4]) for name in ("input_ids", "labels")}
        trainer = make_trainer(tmp_path, model=model)
        expected = focal_loss(model(batch["input_ids"])[1], batch["labels"])
        torch.testing.assert_close(trainer.compute_loss(model, batch), expected)

    @pytest.mark.parametrize("loss", [None, 0.0, torch.tensor(1.0)])
    def test_what_stands_in_the_place_of_the_loss_is_no_prediction(self, tmp_path, loss):
        class Tuples(type(tiny_model())):
            def forward(self, input_ids, labels=None):
                return (loss, super().forward(input_ids).logits)

        trainer = make_trainer(tmp_path, model=Tuples(tiny_model().config))
        data = tiny_dataset()
        expected = trainer.model.eval()(torch.tensor(data["input_ids"][:]))[1].detach()
        np.testing.assert_allclose(trainer.predict(data).predictions, expected, rtol=1e-5, atol=1e-6)

    def test_logits_without_a_dimension_of_classes_are_shown(self, tmp_path):
        class Squeezed(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = tiny_model()

            def forward(self, input_ids, labels=None):
                return {"logits": self.model(input_ids).logits[:, 0]}

        with pytest.raises(ValueError, match=r"\(batch, ..., classes\), but got torch.float32 of shape \(8,\)"):
            make_trainer(tmp_path, model=Squeezed()).train()

    def test_a_module_of_any_class_says_in_its_config_how_many_classes_it_has(self, tmp_path):
        class Any(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.classifier = tiny_model()
                self.config = self.classifier.config

            def forward(self, input_ids, labels=None):
                return (torch.zeros(*input_ids.shape, 16), self.classifier(input_ids).logits)

        trainer, batch = make_trainer(tmp_path, model=Any()), batch_of("single_label")
        expected = focal_loss(trainer.model(batch["input_ids"])[1], batch["labels"])
        torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)

    def test_two_that_fit_are_refused_and_no_tensor_is_printed(self, tmp_path):
        class Twice(type(tiny_model())):
            def forward(self, input_ids, labels=None):
                logits = super().forward(input_ids).logits
                return (logits, logits)

        with pytest.raises(
            ValueError, match=r"torch.float32 of shape \(8, 3\) and torch.float32 of shape \(8, 3\)"
        ) as error:
            make_trainer(tmp_path, model=Twice(tiny_model().config)).train()
        assert "tensor(" not in str(error.value)


class TestModelsThatNeedTheirLabels:
    @pytest.mark.parametrize("form", ["keyword", "loss", "shape"])
    def test_are_told_before_the_first_step(self, tmp_path, form):
        class Needs(type(tiny_model())):
            def forward(self, input_ids, labels=None, **kwargs):
                logits = super().forward(input_ids).logits
                if form == "keyword":
                    labels = {}["labels"]
                if form == "shape":
                    return {"logits": logits, "loss": F.cross_entropy(logits, labels.view(-1))}
                return {"logits": logits, "loss": F.cross_entropy(logits, labels)}

        model = Needs(tiny_model().config)
        start = {name: weight.clone() for name, weight in model.state_dict().items()}
        with pytest.raises(ValueError, match="model: Needs.forward needs labels.*if labels is None"):
            make_trainer(tmp_path, model=model).train()
        assert drift(model.state_dict(), start) == 0

    def test_errors_of_another_kind_are_the_models_own(self, tmp_path):
        class Broken(type(tiny_model())):
            def forward(self, input_ids, labels=None):
                raise KeyError("token_type_ids")

        with pytest.raises(KeyError, match="token_type_ids"):
            make_trainer(tmp_path, model=Broken(tiny_model().config)).train()

    def test_outputs_that_are_no_dict(self, tmp_path):
        @dataclass
        class Output:
            logits: torch.Tensor

        class Dataclasses(type(tiny_model())):
            def forward(self, input_ids, labels=None):
                return Output(super().forward(input_ids).logits)

        with pytest.raises(
            ValueError, match="model: returned a Output, from which Trainer cannot take a loss; .*ModelOutput"
        ):
            make_trainer(tmp_path, model=Dataclasses(tiny_model().config)).train()


class TestLanguageModels:
    def test_record_log_and_perplexity(self, tmp_path):
        model = BertLMHeadModel(BertConfig(**{**tiny_model().config.to_dict(), "is_decoder": True}))
        ids = tiny_dataset()["input_ids"][:]
        data = Dataset.from_dict({"input_ids": ids, "labels": ids})
        arguments = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 1, "learning_rate": 0.0}
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, gamma=5, **arguments)
        trainer.train()
        settings = FocalSettings.from_config(model.config)
        assert settings.label_counts is None and settings.class_prior is None
        assert not any("loss_share_head" in log for log in trainer.state.log_history)
        metrics = trainer.evaluate(data)
        logits = model(torch.tensor(ids)).logits[:, :-1].transpose(1, 2)
        targets = torch.tensor(ids)[:, 1:]
        assert metrics["eval_loss"] == pytest.approx(focal_loss(logits, targets, gamma=5).item(), rel=1e-5)
        assert metrics["eval_cross_entropy"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)


BART = {"vocab_size": 30, "d_model": 16, "max_position_embeddings": 16, "dropout": 0.0, "decoder_start_token_id": 2}
BART |= {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 2))}
BART |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VISION = {**LLAMA, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16}
AUDIO = {"num_mel_bins": 4, "max_source_positions": 6, "max_target_positions": 16}


class TestLanguageModelsAreFedAsTheirOwnLossFeedsThem:
    """Their loss, in float64, of the one batch of a step, and the first that is logged."""

    MODELS = {
        "an encoder-decoder that has no method for it": lambda: BlenderbotForConditionalGeneration(
            BlenderbotConfig(**BART)
        ),
        "one that listens": lambda: WhisperForConditionalGeneration(WhisperConfig(**BART, **AUDIO)),
        "a causal one that sees": lambda: LlavaForConditionalGeneration(
            LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**LLAMA), image_token_id=29)
        ),
        "a decoder that does not shift": lambda: BartForCausalLM(BartConfig(**BART)),
    }

    @pytest.mark.parametrize("kind", MODELS)
    def test_as_in_the_model(self, tmp_path, kind):
        torch.manual_seed(0)
        model = self.MODELS[kind]()
        labels = torch.randint(3, 29, (8, 6))
        labels[::2, 3:] = -100
        inputs = {"input_ids": torch.randint(3, 29, (8, 6))}
        if "listens" in kind:
            inputs = {"input_features": torch.randn(8, 4, 12)}
        with torch.no_grad():
            expected = (
                model.eval()
                .double()(
                    **{name: value.double() if value.is_floating_point() else value for name, value in inputs.items()},
                    labels=labels,
                )
                .loss.item()
            )
        model.float()
        data = Dataset.from_dict({**{k: v.tolist() for k, v in inputs.items()}, "labels": labels.tolist()})
        arguments = {"per_device_train_batch_size": 8, "max_steps": 1, "logging_strategy": "steps", "logging_steps": 1}
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, gamma=0, **arguments)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)

    def test_without_a_start_there_is_advice(self, tmp_path):
        model = BlenderbotForConditionalGeneration(BlenderbotConfig(**{**BART, "pad_token_id": None}))
        data = Dataset.from_dict({"input_ids": [[3, 4]] * 8, "labels": [[3, 4]] * 8})
        with pytest.raises(ValueError, match="decoder_input_ids: missing from the batch.*let the collator add them"):
            make_trainer(tmp_path, model=model, train_dataset=data).train()


class TakesShiftedLabels(BertLMHeadModel):
    """Whose signature names both kinds of labels, as those of the models that train without padding do."""

    def forward(self, input_ids=None, shift_labels=None, labels=None, **kwargs):
        return super().forward(input_ids, labels=labels, **kwargs)


class TestWhatOthersSee:
    def test_the_record_is_there_before_any_callback(self, tmp_path):
        seen = []

        class Looks(TrainerCallback):
            def on_train_begin(self, args, state, control, model=None, **kwargs):
                seen.append(FocalSettings.from_config(model.config).gamma)

        make_trainer(tmp_path, gamma=3, max_steps=1, callbacks=[Looks()]).train()
        assert seen == [3]

    def test_no_callback_is_added(self, tmp_path):
        trainers = [make_trainer(tmp_path, trainer_class=trainer_class) for trainer_class in (Trainer, FocalTrainer)]
        stock, ours = ([type(callback) for callback in t.callback_handler.callbacks] for t in trainers)
        assert ours == stock

    def test_the_model_is_freed_with_the_trainer(self, tmp_path):
        trainer = make_trainer(tmp_path, max_steps=1)
        trainer.train()
        gc.collect()
        gc.disable()
        try:
            model = weakref.ref(trainer.model)
            del trainer
            assert model() is None
        finally:
            gc.enable()

    def test_eight_positional_arguments(self, tmp_path):
        args = TrainingArguments(str(tmp_path), use_cpu=True)
        trainer = FocalTrainer(tiny_model(), args, None, tiny_dataset(), None, None, None, None, gamma=1)
        assert trainer.gamma == 1
        with pytest.raises(ValueError, match="compute_loss_func: FocalTrainer computes the loss itself"):
            FocalTrainer(tiny_model(), args, None, tiny_dataset(), None, None, None, lambda *args: 0)

    def test_a_search_over_names_without_prefix_is_refused(self, tmp_path):
        pytest.importorskip("optuna")
        trainer = FocalTrainer(
            args=FocalTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True),
            model_init=lambda: tiny_model(),
            train_dataset=tiny_dataset(),
            eval_dataset=tiny_dataset(),
        )
        with pytest.raises(ValueError, match="hp_space: expected names of FocalTrainingArguments, focal_gamma"):
            trainer.hyperparameter_search(lambda trial: {"gamma": trial.suggest_float("gamma", 0, 2)}, n_trials=1)


def with_labels(labels, column="labels", **others):
    return Dataset.from_dict({"input_ids": [[1, 2]] * len(labels), column: labels, **others})


SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"
ONE_HOT = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]


class TestOneHotRows:
    @pytest.mark.parametrize("number", [int, float])
    def test_count_as_the_class_that_is_trained_on(self, tmp_path, number):
        data = with_labels([[number(entry) for entry in row] for row in ONE_HOT])
        model = tiny_model(problem_type=SINGLE)
        trainer = make_trainer(tmp_path, model=model, train_dataset=data, alpha="inverse")
        assert trainer.label_distribution().counts.tolist() == [3, 2, 1]
        assert trainer.label_distribution().negatives is None
        assert trainer.alpha.tolist() == pytest.approx([6 / 9, 6 / 6, 6 / 3])
        if number is float:  # integers have to be made class probabilities by a collator
            trainer.train()
            assert FocalSettings.from_config(model.config).label_counts == [3, 2, 1]

    def test_class_probabilities_have_no_counts(self, tmp_path):
        data = with_labels([[0.5, 0.3, 0.2]] * 6)
        model = tiny_model(problem_type=SINGLE)
        make_trainer(tmp_path, model=model, train_dataset=data).train()
        assert FocalSettings.from_config(model.config).label_counts is None
        with pytest.raises(
            ValueError, match="train_dataset: expected .* one-hot rows of 3 .* float64 values in rows of 3"
        ):
            make_trainer(tmp_path, model=tiny_model(problem_type=SINGLE), train_dataset=data, alpha="inverse")

    def test_labels_of_tokens_are_none(self, tmp_path):
        data = with_labels([[0, 1]] * 4)
        model = tiny_model("tokens", num_labels=2, problem_type=SINGLE)
        trainer = make_trainer(tmp_path, model=model, train_dataset=data)
        assert trainer.label_distribution().counts.tolist() == [4, 4]


def test_strings_may_lack_a_class_that_the_model_knows(tmp_path):
    model = tiny_model(label2id={"b": 0, "c": 1, "a": 2}, id2label={0: "b", 1: "c", 2: "a"})
    data = with_labels(["b", "a", "b", "b"])
    trainer = make_trainer(tmp_path, model=model, train_dataset=data, data_collator=lambda rows: rows)
    assert trainer.label_distribution().counts.tolist() == [3, 0, 1]


class TestErrorsAreInTheWordsOfTheTrainer:
    """The functions behind it have `column`, `multi_label`, `num_labels`, `max_ratio` and `empty_weight`; it has not."""

    @pytest.mark.parametrize(
        "message, data, config",
        [
            (
                r"args.label_names: expected exactly one of 'label' and 'labels' in the data, whose columns are .*'y'\]; "
                r"name the column with TrainingArguments\(label_names=\[...\]\) ",
                with_labels([0, 1, 2], "y"),
                {},
            ),
            ("args.label_names: expected exactly one of", with_labels([0, 1, 2], label=[0, 1, 2]), {}),
            (
                "train_dataset: column 'labels' holds rows of labels, .*; set model.config.problem_type to "
                '"multi_label_classification" or, for token labels, to "single_label_classification"',
                with_labels([[0, 2], [1]]),
                {},
            ),
            (
                "model.config.problem_type: expected rows of labels, but column 'labels' holds one label per row",
                with_labels([0, 1, 2]),
                {"problem_type": SEVERAL},
            ),
            ("train_dataset: expected integer class ids, .* float64 values; cast", with_labels([0.5, 1.5]), {}),
            (
                r"train_dataset: expected class ids from 0 to 2 .* also holds \[3\]; map the labels to 0..C-1, or create the "
                "model with that many num_labels",
                with_labels([0, 1, 2, 3]),
                {},
            ),
            (r"train_dataset: expected class ids .* also holds \[-1\]; map the labels", with_labels([0, 1, -1]), {}),
            ("train_dataset: 1 labels are missing .null.*; filter those rows out", with_labels([0, 1, None]), {}),
            ("train_dataset: column 'labels' holds no labels", with_labels([-100, -100]), {}),
        ],
    )
    def test_of_counting(self, tmp_path, message, data, config):
        with pytest.raises(ValueError, match=message) as raised:
            make_trainer(tmp_path, model=tiny_model(**config), train_dataset=data, alpha="inverse")
        assert not any(word in str(raised.value) for word in ("column=", "multi_label=", "num_labels="))

    def test_of_counting_what_is_not_there(self, tmp_path):
        with pytest.raises(ValueError, match="train_dataset: expected a datasets.Dataset, .* but got NoneType"):
            make_trainer(tmp_path, train_dataset=None).label_distribution()

    def test_of_a_name_of_ones_own(self, tmp_path):
        with pytest.raises(ValueError, match="args.label_names: expected 'target' in the data, whose columns are"):
            make_trainer(tmp_path, label_names=["target"], alpha="inverse")

    @pytest.mark.parametrize(
        "message, settings",
        [
            (r"alpha_max_ratio \(the flag --focal_alpha_max_ratio\): .* >= 1, but got 0.5", {"alpha_max_ratio": 0.5}),
            (
                r"alpha_max_ratio \(the flag --focal_alpha_max_ratio\): .* but got nan",
                {"alpha_max_ratio": float("nan")},
            ),
            (r"alpha_empty_weight \(the flag --focal_alpha_empty_weight\): .* but got -1", {"alpha_empty_weight": -1}),
            (
                r"alpha_max_ratio .*: expected weights above 0, .* but got \[0.0, 1.0, 1.0\]",
                {"alpha": lambda counts: [0, 1, 1], "alpha_max_ratio": 2},
            ),
            ("alpha: expected a function that returns one number >= 0 per class", {"alpha": lambda counts: [1]}),
            (r"gamma: expected a function that returns one number per target", {"gamma": lambda p: None}),
        ],
    )
    def test_of_settings(self, tmp_path, message, settings):
        with pytest.raises(ValueError, match="^" + message):
            make_trainer(tmp_path, **{"alpha": "inverse", "max_steps": 1, **settings}).train()

    @pytest.mark.parametrize("name", ["alpha_max_ratio", "alpha_empty_weight"])
    @pytest.mark.parametrize("alpha", [None, [1.0, 1.0, 2.0]])
    def test_settings_of_a_method_without_one(self, tmp_path, name, alpha):
        with pytest.raises(ValueError, match=f"{name} .*: expected an alpha method"):
            make_trainer(tmp_path, alpha=alpha, **{name: 2.0})

    @pytest.mark.parametrize("flag", ["alpha_max_ratio", "alpha_empty_weight"])
    def test_of_flags(self, tmp_path, flag):
        flags = {"focal_alpha": "inverse", f"focal_{flag}": -1.0}
        with pytest.raises(ValueError, match=rf"^{flag} \(the flag --focal_{flag}\): expected .* but got -1.0$"):
            make_trainer(tmp_path, args_class=FocalTrainingArguments, **flags)


@pytest.mark.parametrize("name", ["alpha", "gamma"])
@pytest.mark.parametrize("make", [torch.tensor, np.array, list])
def test_what_the_caller_changes_afterwards_changes_nothing(tmp_path, name, make):
    given = make([0.5, 1.0, 2.0])
    trainer = make_trainer(tmp_path, **{name: given})
    batch = {name: torch.tensor(tiny_dataset()[name][:4]) for name in ("input_ids", "labels")}
    before = trainer.compute_loss(trainer.model, dict(batch)).item()
    given[0] = 7.0
    trainer._kernel = None  # what a search does to a loss that has been made
    assert trainer.compute_loss(trainer.model, dict(batch)).item() == before
    assert getattr(trainer.recorded_settings(), name) == [0.5, 1.0, 2.0]
