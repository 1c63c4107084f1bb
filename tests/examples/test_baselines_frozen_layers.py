"""A BERT whose lower layers are kept on disk: the same model as one whose lower layers are frozen in memory."""

from functools import partial

import pytest
import torch
from baselines.cell import Cell
from baselines.frozen_layers import freeze_layers
from exactness import tiny_model
from test_baselines_cell import cell_flags
from toy_texts import save_toy_model, single_label_data
from transformers import BertConfig, BertForSequenceClassification


NUM_LABELS = 3


def bert(seed=0, **config):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings = {"num_hidden_layers": 3, "num_labels": NUM_LABELS, **sizes, **no_dropout, **config}
    return BertForSequenceClassification(BertConfig(**settings))


def texts(num=12):
    """Of different lengths, with token types, in batches of different widths."""
    torch.manual_seed(1)
    lengths = torch.randint(2, 9, (num,))
    for i in range(0, num, 4):
        width = lengths[i : i + 4].max()
        mask = (torch.arange(width) < lengths[i : i + 4, None]).long()
        types = torch.arange(width).expand_as(mask) // 3 * mask
        labels = torch.randint(NUM_LABELS, (4,))
        yield (
            {
                "input_ids": torch.randint(1, 50, mask.shape) * mask,
                "attention_mask": mask,
                "token_type_ids": types.clamp(max=1),
            },
            labels,
        )


def trained(model, epochs=3):
    # Adam would divide the gradient of the biases of keys, which is rounding, by itself.
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.5)
    model.train()
    for _ in range(epochs):
        for inputs, labels in texts():
            torch.nn.functional.cross_entropy(model(**inputs).logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("frozen_layers", [1, 2])
def test_trains_to_the_weights_of_the_model_in_memory(tmp_path, frozen_layers):
    in_memory = bert()
    for module in (in_memory.bert.embeddings, *in_memory.bert.encoder.layer[:frozen_layers]):
        module.requires_grad_(False)
    kept = freeze_layers(bert(), frozen_layers, tmp_path, torch.float32)
    expected, found = trained(in_memory).state_dict(), trained(kept).state_dict()
    assert expected.keys() == found.keys()
    assert all((found[name] - value).abs().max() < 1e-6 for name, value in expected.items())
    # They were trained, and what was to be frozen was not.
    moved = {name for name, value in bert().state_dict().items() if (found[name] - value).abs().max() > 1e-3}
    assert "classifier.weight" in moved and f"bert.encoder.layer.{frozen_layers}.output.dense.weight" in moved
    assert not any(f"layer.{frozen_layers - 1}." in name or "embeddings" in name for name in moved)


def test_each_text_passes_the_frozen_layers_once(tmp_path, monkeypatch):
    from baselines import frozen_layers

    model = trained(freeze_layers(bert(), 2, tmp_path))
    before = [model(**inputs).logits for inputs, _ in texts()]
    assert len([*tmp_path.glob("*/*")]) == 12

    def refuse(embeddings, *inputs, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(frozen_layers.nn.Embedding, "forward", refuse)
    again = trained(freeze_layers(bert(), 2, tmp_path))
    assert all((again(**inputs).logits == logits).all() for (inputs, _), logits in zip(texts(), before))
    # Other weights make something else of the same texts.
    with pytest.raises(AssertionError, match="computed again"):
        trained(freeze_layers(bert(seed=1), 2, tmp_path))


def test_dropout_is_that_of_the_trained_layers_alone(tmp_path):
    model = freeze_layers(bert(hidden_dropout_prob=0.5), 2, tmp_path).train()
    ((inputs, _), *_) = texts()
    kept = [model.bert._hidden_states(ids[:4], ids[:4] * 0) for ids in inputs["input_ids"]]
    for file in tmp_path.glob("*/*"):
        file.unlink()
    assert all(
        (model.bert._hidden_states(ids[:4], ids[:4] * 0) == before).all()
        for ids, before in zip(inputs["input_ids"], kept)
    )
    assert (model(**inputs).logits != model(**inputs).logits).any()


def test_what_cannot_be_frozen_is_refused(tmp_path):
    refused = partial(pytest.raises, ValueError, match="--frozen_layers")
    for number in (0, 3, -1):
        with refused():
            freeze_layers(bert(), number, tmp_path)
    with refused():
        freeze_layers(tiny_model("single_label"), 1, tmp_path)


def test_a_cell_with_frozen_layers_is_the_same_again(tmp_path, monkeypatch):
    model_folder = save_toy_model(tmp_path / "model", num_hidden_layers=2)
    monkeypatch.setattr("baselines.cell.FROZEN_LAYERS_CACHE", tmp_path)
    flags = cell_flags(model_folder, single_label_data(), frozen_layers=1, seed=1)
    first, second = (Cell(flags, tmp_path / name).test() for name in ("one", "two"))
    assert first["metrics"] == second["metrics"] and [*tmp_path.glob("*/*")]
