"""Comparisons of losses in minutes: the lower layers of a BERT are frozen, and each text passes them only once.

Their output is cached on disk; the layers above are trained as usual, with dropout. In the last layer only the first
row is computed, as the head reads no other. This is for comparing losses, not for the best model, which needs all
layers.
"""

import hashlib
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertForSequenceClassification, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


def freeze_layers(
    model: nn.Module, frozen_layers: int, cache_dir: Path, dtype: torch.dtype = torch.float16
) -> nn.Module:
    """Freezes the embeddings and this many layers of a BERT, in place, and caches their output in a folder.

    Args:
        model (`BertForSequenceClassification`): The names of its weights do not change, also when it is saved.
        frozen_layers (`int`): At least 1, and fewer than the model has.
        cache_dir (`Path`): May be shared by all models: entries are found by the frozen weights and the tokens.
        dtype (`torch.dtype`, defaults to `torch.float16`): Of the cached values, which are read as float32.

    Raises:
        `ValueError`: For other models, decoders, other than absolute position embeddings, or an invalid number of
            layers.
    """
    if type(model) is not BertForSequenceClassification or model.config.is_decoder:
        raise ValueError(f"--frozen_layers: expected a BERT for texts, but got {type(model).__name__}")
    if getattr(model.config, "position_embedding_type", "absolute") != "absolute":
        raise ValueError("--frozen_layers: expected absolute position embeddings")
    if not 0 < frozen_layers < model.config.num_hidden_layers:
        raise ValueError(
            f"--frozen_layers: expected a number from 1 to {model.config.num_hidden_layers - 1}, but got {frozen_layers}"
        )
    model.bert = _PartlyFrozenBert(model.bert, frozen_layers, cache_dir, dtype)
    return model


class _PartlyFrozenBert(BertModel):
    def __init__(self, bert: BertModel, frozen_layers: int, cache_dir: Path, dtype: torch.dtype):
        super().__init__(bert.config)
        self.embeddings, self.encoder, self.pooler = bert.embeddings, bert.encoder, bert.pooler
        self.num_frozen, self.dtype_kept = frozen_layers, dtype
        digest = hashlib.sha256(f"{dtype} {bert.config.num_attention_heads} {bert.config.hidden_act}".encode())
        for module in self._frozen():
            module.requires_grad_(False)
            for weight in module.state_dict().values():
                digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        self.folder = cache_dir / digest.hexdigest()[:32]
        self.folder.mkdir(parents=True, exist_ok=True)

    def _frozen(self) -> list[nn.Module]:
        return [self.embeddings, *self.encoder.layer[: self.num_frozen]]

    def train(self, mode: bool = True) -> "_PartlyFrozenBert":
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **options: object,
    ) -> BaseModelOutputWithPooling:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        tokens = zip(input_ids.cpu(), types.cpu(), mask.cpu().bool())
        texts = [self._hidden_states(ids[is_real], type_ids[is_real]) for ids, type_ids, is_real in tokens]
        hidden = pad_sequence(texts, batch_first=True).to(input_ids.device, torch.float32)
        lengths = torch.tensor([len(text) for text in texts], device=hidden.device)
        is_token = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        *layers, last = self.encoder.layer[self.num_frozen :]
        for layer in layers:
            hidden = _through(layer, hidden, is_token)
        hidden = _first_row(last, hidden, is_token)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self.pooler(hidden))

    def _hidden_states(self, ids: Tensor, types: Tensor) -> Tensor:
        """The output of the frozen layers for a text, computed separately so that it is the same in every batch."""
        tokens = torch.stack([ids, types]).numpy().astype(np.int32)
        file = self.folder / f"{hashlib.sha256(tokens.tobytes()).hexdigest()[:32]}"
        if file.exists():
            return torch.from_file(str(file), size=len(ids) * self.config.hidden_size, dtype=self.dtype_kept).view(
                len(ids), -1
            )
        device = self.embeddings.word_embeddings.weight.device
        with torch.no_grad():
            hidden = self.embeddings(input_ids=ids[None].to(device), token_type_ids=types[None].to(device))
            is_token = torch.ones(hidden.shape[:2], dtype=torch.bool, device=device)
            for layer in self.encoder.layer[: self.num_frozen]:
                hidden = _through(layer, hidden, is_token)
        cached = hidden[0].to(self.dtype_kept).cpu()
        with NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
            part.write(cached.numpy().tobytes())
        os.replace(part.name, file)  # atomic, as other trainings read and write the same folder
        return cached


def _through(layer: nn.Module, hidden: Tensor, is_token: Tensor) -> Tensor:
    """The output of a BERT layer for all rows, (N, L, H)."""
    attention = layer.attention.self

    def by_head(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        by_head(attention.query(hidden)),
        by_head(attention.key(hidden)),
        by_head(attention.value(hidden)),
        attn_mask=is_token[:, None, None, :],
        dropout_p=attention.dropout.p if attention.training else 0.0,
    )
    attended = layer.attention.output(mixed.transpose(1, 2).flatten(2), hidden)
    return layer.output(layer.intermediate(attended), attended)


def _first_row(layer: nn.Module, hidden: Tensor, is_token: Tensor) -> Tensor:
    """The first row of the layer's output, (N, 1, H).

    For a row q that attends to K = h W + b, the keys need not be computed for each token: q K = (q W) h + q b, and
    likewise for the values. The softmax does not depend on q b, which is the same for all tokens, but with it the key
    biases get a gradient, as DDP expects.
    """
    attention, row = layer.attention.self, hidden[:, :1]
    num_heads = attention.num_attention_heads
    query = attention.query(row)[:, 0].unflatten(-1, (num_heads, -1))  # (N, heads, H / heads)
    key_weight, value_weight = (part.weight.unflatten(0, (num_heads, -1)) for part in (attention.key, attention.value))
    key_bias, value_bias = (part.bias.unflatten(0, (num_heads, -1)) for part in (attention.key, attention.value))
    scores = torch.einsum("nhd,hdk->nhk", query, key_weight) @ hidden.transpose(1, 2)
    scores = (scores + (query * key_bias).sum(-1, keepdim=True)) / query.shape[-1] ** 0.5
    shares = attention.dropout(scores.masked_fill(~is_token[:, None], -torch.inf).softmax(-1))
    values = torch.einsum("nhk,hdk->nhd", shares @ hidden, value_weight) + shares.sum(-1, keepdim=True) * value_bias
    attended = layer.attention.output(values.flatten(1)[:, None], row)
    return layer.output(layer.intermediate(attended), attended)
