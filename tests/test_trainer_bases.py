"""FocalTrainer mixed with other subclasses of Trainer."""

import pytest
import torch
from datasets import Dataset
from exactness import tiny_dataset, tiny_model
from test_trainer import drift, make_trainer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    set_seed,
)

from hf_focal import FocalTrainer, focal_loss


class AdapterTrainer(Trainer):
    """Trains the head only, and keeps a file of its own beside the model, as trainers of adapters do."""

    def create_optimizer(self, model=None):
        self.model.bert.requires_grad_(False)
        return super().create_optimizer()

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        torch.save(self.model.classifier.state_dict(), f"{output_dir or self.args.output_dir}/head.pt")


class FocalAdapterTrainer(FocalTrainer, AdapterTrainer):
    pass


def test_another_subclass_keeps_its_meaning(tmp_path):
    trained = []
    for trainer_class, settings in ((AdapterTrainer, {}), (FocalAdapterTrainer, {"gamma": 0})):
        folder = tmp_path / trainer_class.__name__
        trainer = make_trainer(folder, trainer_class=trainer_class, save_strategy="steps", save_steps=2, **settings)
        trainer.train()
        weights, start = trainer.model.state_dict(), tiny_model().state_dict()
        assert {name for name in weights if (weights[name] != start[name]).any()} == {
            "classifier.weight",
            "classifier.bias",
        }
        assert (folder / "checkpoint-2" / "head.pt").exists()
        trained.append(weights)
    assert drift(*trained) < 1e-6


class FocalSeq2SeqTrainer(FocalTrainer, Seq2SeqTrainer):
    pass


class TestSeq2SeqTrainer:
    @pytest.fixture
    def model(self):
        set_seed(0)
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
        config = BartConfig(
            vocab_size=30,
            d_model=16,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=16,
            dropout=0.0,
            **sizes,
            **tokens,
        )
        return BartForConditionalGeneration(config)

    def data(self):
        ids = tiny_dataset(num_examples=11)["input_ids"][:]
        return Dataset.from_dict({"input_ids": ids, "labels": [[token % 27 + 3 for token in row] for row in ids]})

    @pytest.mark.parametrize("weighted", [False, True])
    def test_the_loss_beside_generated_texts_is_focal(self, tmp_path, model, weighted):
        data, seen = self.data(), []
        settings = {"sample_weight_column": "importance"} if weighted else {}
        if weighted:
            data = data.add_column("importance", [1.0, 2.0] * 5 + [3.0])
        trainer = make_trainer(
            tmp_path,
            model=model,
            train_dataset=data,
            trainer_class=FocalSeq2SeqTrainer,
            args_class=Seq2SeqTrainingArguments,
            predict_with_generate=True,
            generation_max_length=8,
            per_device_eval_batch_size=4,
            compute_metrics=lambda prediction: seen.append(prediction.predictions) or {},
            gamma=5.0,
            **settings,
        )
        loss = trainer.evaluate(data)["eval_loss"]
        assert seen[0].ndim == 2 and seen[0].dtype.kind == "i"  # generated texts, not logits
        labels, ids = torch.tensor(data["labels"][:]), torch.tensor(data["input_ids"][:])
        logits = model.eval()(ids, labels=labels).logits
        each = focal_loss(logits.transpose(1, 2), labels, gamma=5.0, reduction="none").mean(1)
        weights = torch.tensor(data["importance"][:] if weighted else [1.0] * 11)
        assert loss == pytest.approx(((each * weights).sum() / weights.sum()).item(), rel=1e-5)


class OwnLossTrainer(Trainer):
    """As sentence-transformers' trainers, whose loss is an argument."""

    def __init__(self, model=None, args=None, train_dataset=None, loss=None):
        super().__init__(model=model, args=args, train_dataset=train_dataset)


class SilentlyOwnLossTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs["logits"].square().mean(), outputs) if return_outputs else outputs["logits"].square().mean()


class TestBasesThatDoNotMix:
    def test_the_other_order(self):
        with pytest.raises(ValueError, match=r"class Mixed\(FocalTrainer, Seq2SeqTrainer\)"):

            class Mixed(Seq2SeqTrainer, FocalTrainer):
                pass

    def test_a_base_that_takes_no_loss_function(self):
        with pytest.raises(ValueError, match="OwnLossTrainer takes no compute_loss_func"):

            class Mixed(FocalTrainer, OwnLossTrainer):
                pass

    def test_a_base_whose_loss_is_its_own(self, tmp_path):
        class Mixed(FocalTrainer, SilentlyOwnLossTrainer):
            pass

        trainer = make_trainer(tmp_path, trainer_class=Mixed)
        before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
        with pytest.raises(ValueError, match="computes its own loss"):
            trainer.train()
        assert drift(trainer.model.state_dict(), before) == 0
