"""Text and token classification pipelines whose scores are probabilities even after training with focal loss."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn
from transformers import TextClassificationPipeline, TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from ._checks import as_number
from ._model_kinds import class_names, is_multi_label
from .folding import check_folded_weights
from .operating_points import decide, decision_scores, posterior_from_config
from .settings import FocalSettings


__all__ = ["FocalTextClassificationPipeline", "FocalTokenClassificationPipeline"]

# Arguments of our pipelines, at construction or in a call, besides those of the stock ones.
_CHOICES = ("operating_point", "prior", "costs", "min_confidence")


class FocalTextClassificationPipeline(TextClassificationPipeline):
    r"""[`~transformers.TextClassificationPipeline`] that decides by operating point, and shows class posteriors.

    `pipeline("text-classification", model=folder, pipeline_class=FocalTextClassificationPipeline)` reads the settings
    that [`FocalTrainer`] has stored in the model's `config.json`. It decides at the operating point in force, as
    [`decide`] does. The ``score`` of a label is always its probability, the calibrated posterior, at the class
    frequencies of the training data or at `prior` if given. With one class per example the decision is the first
    result, which need not have the largest score.

    With several labels per example, all positive labels are returned, possibly none. With `top_k` it returns that many
    labels, ordered by their distance from their thresholds, and ``decided`` marks the positive ones.

    Args:
        operating_point (`str`, *optional*): As in [`decide`]; here or in a call.
        prior (sequence or dict by label, *optional*): Frequencies of the classes where the model is used, instead of
            an operating point; here or in a call.
        costs (sequence of C sequences, *optional*): As in [`decide`]; here or in a call.
        min_confidence (`float`, *optional*): With one class per example, the label is None if the decision is less
            probable than this; with several labels, those that are less probable are not decided. Here or in a call.
        adapter (`str` or `Path`, *optional*): For a PEFT model, the folder or Hub id of its adapter, whose
            `focal_loss.json` holds the settings: `pipeline(..., model=folder, adapter=folder)`. They take precedence
            over those in the config, which belong to the base model unless the adapter was trained in this process.
        kwargs: For [`~transformers.TextClassificationPipeline`], except `function_to_apply`; `top_k`, `batch_size`,
            `truncation` etc. have the same meaning as there.

    Raises:
        `ValueError`: If the model's config has no settings of focal loss, or an argument is invalid.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> from hf_focal import FocalTextClassificationPipeline
    >>> classify = pipeline(
    ...     "text-classification", model="my_model", pipeline_class=FocalTextClassificationPipeline
    ... )  # doctest: +SKIP
    >>> classify("Profits doubled.", prior={"business": 0.5, "sport": 0.5})  # doctest: +SKIP
    [{'label': 'business', 'score': 0.93}]

    ```
    """

    def __init__(self, adapter: str | Path | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        _check_model(self, adapter)
        chosen, _ = _chosen(kwargs)
        self._decide(torch.zeros(1, len(class_names(self.model.config))), **chosen)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:  # type: ignore[override]
        chosen, kwargs = _chosen(kwargs)
        if kwargs.pop("function_to_apply", None) is not None:
            raise ValueError(
                "function_to_apply: the scores are posteriors; for another function use the stock pipeline"
            )
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, forward, postprocess | chosen

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:  # type: ignore[override]
        """As in the stock pipeline, but truncates texts that are too long for the model."""
        if "truncation" not in tokenizer_kwargs:
            tokenizer_kwargs["truncation"] = True
            longest = _num_positions(self.model)
            if longest is not None and longest < cast(Any, self.tokenizer).model_max_length:
                tokenizer_kwargs.setdefault("max_length", longest)
        return super().preprocess(inputs, **tokenizer_kwargs)

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        top_k: int | None = 1,
        _legacy: bool = True,
        **chosen: Any,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        decided, scores, probabilities = self._decide(model_outputs["logits"], **chosen)
        names = class_names(self.model.config)
        order = scores[0].argsort(descending=True, stable=True).tolist()
        results: list[dict[str, Any]] = [{"label": names[k], "score": probabilities[0, k].item()} for k in order]
        if not is_multi_label(self.model.config):
            if (decided == -1).item():
                results[0]["label"] = None
            return results[0] if top_k == 1 and _legacy else results[:top_k]
        are_decided = [decided[0, k].item() == 1 for k in order]
        if _legacy:
            return [result for result, is_decided in zip(results, are_decided) if is_decided]
        return [{**result, "decided": is_decided} for result, is_decided in zip(results, are_decided)][:top_k]

    def _decide(self, logits: Tensor, min_confidence: float = 0.0, **chosen: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Decisions, the scores that they are made by, and probabilities."""
        config, chosen = self.model.config, _by_class_id(chosen, self.model.config)
        decided = decide(logits, config, **chosen, min_confidence=min_confidence)
        return decided, *decision_scores(logits, config, **chosen)


class FocalTokenClassificationPipeline(TokenClassificationPipeline):
    r"""[`~transformers.TokenClassificationPipeline`] that decides by operating point, and shows class posteriors.

    `pipeline("token-classification", model=folder, pipeline_class=FocalTokenClassificationPipeline)` reads the
    settings that [`FocalTrainer`] has stored in the model's `config.json`. It decides at the operating point in force,
    as [`decide`] does: ``"as_trained"`` finds the entities that the stock pipeline finds. The ``score`` of a token is
    always the probability of its label, the calibrated posterior.

    The aggregation strategies are those of the stock pipeline. A word has the decision and the probability of its first
    token (``"first"``), of the token with the clearest decision (``"max"``), or of the mean over its tokens
    (``"average"``); the score of an entity is the mean over its tokens (``"simple"``) or its words.

    A text that is too long for the model is truncated or, with `stride`, split into overlapping parts.

    Args:
        operating_point (`str`, *optional*): As in [`decide`]; here or in a call.
        prior (sequence or dict by label, *optional*): Frequencies of the token labels where the model is used, instead
            of an operating point; here or in a call.
        costs (sequence of C sequences, *optional*): As in [`decide`]; here or in a call.
        min_confidence (`float`, *optional*): Tokens, or with an aggregation strategy entities, with a score below this
            are not reported. [`fit_min_confidence`] finds it for a wanted precision or recall. Here or in a call.
        adapter (`str` or `Path`, *optional*): As in [`FocalTextClassificationPipeline`].
        kwargs: For [`~transformers.TokenClassificationPipeline`]; `aggregation_strategy`, `ignore_labels`, `stride`
            etc. have the same meaning as there.

    Raises:
        `ValueError`: If the model's config has no settings of focal loss, its tokens have several labels each, or an
        argument is invalid.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> from hf_focal import FocalTokenClassificationPipeline
    >>> find = pipeline(
    ...     "token-classification",
    ...     model="my_model",
    ...     pipeline_class=FocalTokenClassificationPipeline,
    ...     aggregation_strategy="first",
    ... )  # doctest: +SKIP
    >>> find("Ms Noon flew to Oslo.", min_confidence=0.8)  # doctest: +SKIP
    [{'entity_group': 'LOC', 'score': 0.97, 'word': 'oslo', 'start': 16, 'end': 20}]

    ```
    """

    def __init__(self, adapter: str | Path | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if is_multi_label(self.model.config):
            raise ValueError(
                "model: expected one label per token, but its tokens have several each, which do not form entities; "
                "use decide() with its logits"
            )
        _check_model(self, adapter)
        chosen, _ = _chosen(kwargs)
        chosen.pop("min_confidence", None)
        self._scores(torch.zeros(1, len(class_names(self.model.config))), **chosen)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:  # type: ignore[override]
        chosen, kwargs = _chosen(kwargs)
        as_number("min_confidence", chosen.get("min_confidence", 0), 1)
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, forward, postprocess | chosen

    def preprocess(  # type: ignore[override]
        self, sentence: Any, offset_mapping: Any = None, **preprocess_params: Any
    ) -> Iterator[dict[str, Any]]:
        """As in the stock pipeline, but limits texts, or their parts, to the length that the model takes."""
        tokenizer_params = dict(preprocess_params.pop("tokenizer_params", {}))
        longest = _num_positions(self.model)
        if longest is not None and longest < cast(Any, self.tokenizer).model_max_length:
            tokenizer_params["max_length"] = longest
        yield from super().preprocess(sentence, offset_mapping, tokenizer_params=tokenizer_params, **preprocess_params)

    def postprocess(  # type: ignore[override]
        self,
        all_outputs: list[dict[str, Any]],
        aggregation_strategy: AggregationStrategy = AggregationStrategy.NONE,
        ignore_labels: Sequence[str] | None = None,
        min_confidence: float = 0.0,
        **chosen: Any,
    ) -> list[dict[str, Any]]:
        """As in the stock pipeline, but each token has decision scores besides its probabilities."""
        ignored = {"O"} if ignore_labels is None else {*ignore_labels}
        reported: list[dict[str, Any]] = []
        for outputs in all_outputs:
            offsets = outputs["offset_mapping"]
            scores, probabilities = self._scores(outputs["logits"][0], **chosen)
            tokens = self.gather_pre_entities(
                all_outputs[0]["sentence"],
                outputs["input_ids"][0],
                scores,
                None if offsets is None else offsets[0],
                outputs["special_tokens_mask"][0].numpy(),
                aggregation_strategy,
                word_ids=outputs.get("word_ids"),
                word_to_chars_map=all_outputs[0].get("word_to_chars_map"),
            )
            for token in tokens:
                token["probabilities"] = probabilities[token["index"]]
            entities = self.aggregate(tokens, aggregation_strategy)
            reported += [entity for entity in entities if _label(entity) not in ignored]
        if len(all_outputs) > 1:
            reported = self.aggregate_overlapping_entities(reported)
        return [
            {**entity, "score": float(entity["score"])} for entity in reported if entity["score"] >= min_confidence
        ]

    def aggregate(
        self, pre_entities: list[dict[str, Any]], aggregation_strategy: AggregationStrategy
    ) -> list[dict[str, Any]]:
        """As in the stock pipeline; the score is the probability of the decided label."""
        if aggregation_strategy not in (AggregationStrategy.NONE, AggregationStrategy.SIMPLE):
            return super().aggregate(pre_entities, aggregation_strategy)
        copied = ("index", "word", "start", "end")
        entities = [
            {**self._decided(token["scores"], token["probabilities"]), **{name: token[name] for name in copied}}
            for token in pre_entities
        ]
        return entities if aggregation_strategy == AggregationStrategy.NONE else self.group_entities(entities)

    def aggregate_word(
        self, entities: list[dict[str, Any]], aggregation_strategy: AggregationStrategy
    ) -> dict[str, Any]:
        """As in the stock pipeline; the score is the probability of the decided label."""
        if aggregation_strategy == AggregationStrategy.AVERAGE:
            parts = [np.mean([token[name] for token in entities], axis=0) for name in ("scores", "probabilities")]
        elif aggregation_strategy == AggregationStrategy.MAX:
            clearest = max(entities, key=lambda token: token["scores"].max())
            parts = [clearest["scores"], clearest["probabilities"]]
        else:
            parts = [entities[0]["scores"], entities[0]["probabilities"]]
        return {
            **self._decided(*parts),
            "word": cast(Any, self.tokenizer).convert_tokens_to_string([token["word"] for token in entities]),
            "start": entities[0]["start"],
            "end": entities[-1]["end"],
        }

    def _scores(self, logits: Tensor, **chosen: Any) -> tuple[np.ndarray, np.ndarray]:
        """The decision scores and the probabilities of each token, (T, C)."""
        config = self.model.config
        scores, probabilities = decision_scores(logits, config, **_by_class_id(chosen, config))
        has_prior_or_costs = not (chosen.get("prior") is None and chosen.get("costs") is None)
        point = chosen.get("operating_point") or FocalSettings.from_config(config).operating_point
        if point == "as_trained" and not has_prior_or_costs:
            # In the precision of the stock pipeline: there very confident tokens tie, and the first of them decides.
            stock = softmax(logits.float().numpy(), axis=-1)
            is_softmax = np.allclose(probabilities, stock, rtol=1e-6, atol=1e-7)  # as after cross entropy
            return stock, stock if is_softmax else probabilities.numpy()
        return scores.numpy(), probabilities.numpy()

    def _decided(self, scores: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
        k = int(scores.argmax())
        return {"entity": cast(Any, self.model.config.id2label)[k], "score": probabilities[k]}


def _label(entity: dict[str, Any]) -> str:
    """The label of a token, or of a group of tokens."""
    return entity["entity_group"] if "entity_group" in entity else entity["entity"]


def _chosen(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits off the arguments of our pipelines from the others, some of which are for the tokenizer."""
    for name in kwargs:
        if name not in _CHOICES and (near := get_close_matches(name, _CHOICES, 1, 0.75)):
            raise ValueError(f"{name}: there is no such argument; did you mean {near[0]!r}?")
    chosen = {name: kwargs[name] for name in _CHOICES if kwargs.get(name) is not None}
    # The arguments of a call replace those of the constructor.
    if chosen.keys() & {"prior", "costs"}:
        chosen.setdefault("operating_point", None)
    elif "operating_point" in chosen:
        chosen |= {"prior": None, "costs": None}
    return chosen, {name: value for name, value in kwargs.items() if name not in _CHOICES}


def _by_class_id(chosen: dict[str, Any], config: Any) -> dict[str, Any]:
    """The arguments with a prior by class name turned into one in the order of the class ids."""
    prior = chosen.get("prior")
    if not isinstance(prior, Mapping):
        return chosen
    names = class_names(config)
    if prior.keys() != set(names):
        raise ValueError(f"prior: expected a frequency for each of {names}, but got {dict(prior)}")
    return {**chosen, "prior": [prior[name] for name in names]}


def _check_model(pipe: Any, adapter: str | Path | None) -> None:
    """Rejects a model, a tokenizer or settings that could not be used, before any text is classified."""
    config = pipe.model.config
    if adapter is not None:
        FocalSettings.from_pretrained(adapter).store_in(config)
    elif FocalSettings.find_in(config) is None and getattr(pipe.model, "peft_config", None):
        raise ValueError(
            "adapter: expected the folder or the Hub id of the adapter, whose focal_loss.json holds the settings; the "
            "model does not know where its adapter comes from. Pass it like the model: "
            "pipeline(task, model=folder, adapter=folder, pipeline_class=...)"
        )
    names = class_names(config)
    FocalSettings.from_config(config).check_fits(len(names), bool(is_multi_label(config)))
    posterior_from_config(torch.zeros(1, len(names)), config)
    check_folded_weights(pipe.model)
    _check_tokenizer(pipe.tokenizer, pipe.model)
    if names == [f"LABEL_{k}" for k in range(len(names))]:
        warnings.warn(
            "The model's config does not name its classes, so they are LABEL_0, LABEL_1, ..., in the order of the "
            "class ids in training; name them with model.config.id2label = {0: ..., 1: ...}",
            stacklevel=4,
        )


def _check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Whether it can be the model's. For a folder without a tokenizer, transformers 5 makes one without any words."""
    num_words = len(tokenizer) - len(set(tokenizer.all_special_ids))
    try:
        num_embeddings = getattr(model.get_input_embeddings(), "num_embeddings", math.inf)
    except NotImplementedError:  # a model with its own kind of embedding
        num_embeddings = math.inf
    if num_words <= 0:
        raise ValueError(
            f"tokenizer: it knows {len(tokenizer)} tokens, all special, so all texts would look the same; save the "
            "model's own tokenizer in its folder (tokenizer.save_pretrained(folder), or "
            "FocalTrainer(processing_class=tokenizer)), or pass it"
        )
    if len(tokenizer) > num_embeddings and max(tokenizer.get_vocab().values()) >= num_embeddings:
        raise ValueError(
            f"tokenizer: it has {len(tokenizer)} tokens, but the model only {num_embeddings}; it is another model's"
        )


def _num_positions(model: Any) -> int | None:
    """The number of positions that the model has, if that is limited."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # In RoBERTa, positions start after the padding index.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)
