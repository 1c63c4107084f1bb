"""A text classification pipeline whose scores can be trusted after focal loss."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import TextClassificationPipeline

from ._model_kinds import is_multi_label
from .operating_points import decide, decision_scores, posterior_from_config
from .settings import FocalSettings


__all__ = ["FocalTextClassificationPipeline"]


class FocalTextClassificationPipeline(TextClassificationPipeline):
    r"""[`~transformers.TextClassificationPipeline`] that decides as the model was scored, and shows class posteriors.

    `pipeline("text-classification", model=folder, pipeline_class=FocalTextClassificationPipeline)` reads from the model's
    `config.json` what [`FocalTrainer`] has stored there. It decides by the operating point in force, as [`decide`] does. The
    ``score`` of a label is its probability, the calibrated posterior, whatever decides: where classes occur as in training, or
    with `prior` if that is given. Of one class per example the decision is the first result, which need not be the one of
    the largest score.

    Of several labels per example, all that are decided are returned, maybe none. With `top_k` as many are as it says, by how
    far they are from their thresholds, and ``decided`` tells which ones are.

    Args:
        operating_point (`str`, *optional*): As in [`decide`]; here or in a call.
        prior (sequence or dict by label, *optional*): Frequencies of the classes where the model is used, in place of an
            operating point; here or in a call.
        costs (sequence of C sequences, *optional*): As in [`decide`]; here or in a call.
        min_confidence (`float`, *optional*): Where the decision of one class per example is less probable than this, its
            label is None; of several labels, none that are less probable than this are decided. Here or in a call.
        kwargs: For [`~transformers.TextClassificationPipeline`], except `function_to_apply`; `top_k`, `batch_size`,
            `truncation` and the rest mean what they mean there.

    Raises:
        `ValueError`: If the model's config has no settings of focal loss, or an argument is wrong.

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

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # Refuses a model, a tokenizer or settings that it could not use before any text is classified.
        config, names = self.model.config, self._names()
        FocalSettings.from_config(config).check_fits(len(names), bool(is_multi_label(config)))
        posterior_from_config(torch.zeros(1, len(names)), config)
        chosen = {name: kwargs.get(name) for name in ("operating_point", "prior", "costs", "min_confidence")}
        self._decide(
            torch.zeros(1, len(names)), **{name: value for name, value in chosen.items() if value is not None}
        )
        _check_tokenizer(self.tokenizer, self.model)
        if names == [f"LABEL_{k}" for k in range(len(names))]:
            warnings.warn(
                "The config of the model does not name its classes, so they are LABEL_0, LABEL_1, ...: in the order of the "
                "class ids in training. model.config.id2label = {0: ..., 1: ...} names them",
                stacklevel=3,
            )

    def _sanitize_parameters(  # type: ignore[override]
        self,
        operating_point: str | None = None,
        prior: Sequence[float] | Mapping[str, float] | None = None,
        costs: Sequence[Sequence[float]] | None = None,
        min_confidence: float | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        if kwargs.pop("function_to_apply", None) is not None:
            raise ValueError(
                "function_to_apply: the scores are posteriors; for another function use pipeline() without it"
            )
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        chosen = {
            "operating_point": operating_point,
            "prior": prior,
            "costs": costs,
            "min_confidence": min_confidence,
        }
        return preprocess, forward, postprocess | {name: value for name, value in chosen.items() if value is not None}

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:  # type: ignore[override]
        """As in the stock pipeline, but a text that is longer than the model takes is cut."""
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
        names = self._names()
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

    def _decide(
        self,
        logits: torch.Tensor,
        operating_point: str | None = None,
        prior: Sequence[float] | Mapping[str, float] | None = None,
        costs: Sequence[Sequence[float]] | None = None,
        min_confidence: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decisions, what decides, and probabilities."""
        if isinstance(prior, Mapping):
            names = self._names()
            if prior.keys() != set(names):
                raise ValueError(f"prior: expected a frequency for each of {names}, but got {dict(prior)}")
            prior = [prior[name] for name in names]
        config = self.model.config
        decided = decide(logits, config, operating_point, prior=prior, costs=costs, min_confidence=min_confidence)
        return decided, *decision_scores(logits, config, operating_point, prior=prior, costs=costs)

    def _names(self) -> list[str]:
        names: dict[Any, str] = cast(Any, self.model.config.id2label) or {}
        return [names[k] for k in sorted(names)]  # a file may hold them in another order


def _check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Whether it can be that of the model. A folder without one gets, from transformers 5, one that knows no words."""
    num_words = len(tokenizer) - len(set(tokenizer.all_special_ids))
    try:
        num_embeddings = getattr(model.get_input_embeddings(), "num_embeddings", math.inf)
    except NotImplementedError:  # of a model that embeds in a way of its own
        num_embeddings = math.inf
    if num_words <= 0:
        raise ValueError(
            f"tokenizer: it knows {len(tokenizer)} tokens, all special, so every text would be the same; save the model's own "
            "into its folder (tokenizer.save_pretrained(folder), or FocalTrainer(processing_class=tokenizer)), or pass it"
        )
    if len(tokenizer) > num_embeddings and max(tokenizer.get_vocab().values()) >= num_embeddings:
        raise ValueError(
            f"tokenizer: it has {len(tokenizer)} tokens, but the model only {num_embeddings}: it is another model's"
        )


def _num_positions(model: Any) -> int | None:
    """How many tokens the model has positions for, if that is limited."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # Those of RoBERTa begin behind the padding.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)
