"""A text classification pipeline whose scores can be trusted after focal loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TextClassificationPipeline

from ._model_kinds import is_multi_label
from .operating_points import operating_point_scores, posterior_from_config
from .settings import FocalSettings


__all__ = ["FocalTextClassificationPipeline"]


class FocalTextClassificationPipeline(TextClassificationPipeline):
    r"""[`~transformers.TextClassificationPipeline`] that returns class posteriors and decides at an operating point.

    `pipeline("text-classification", model=folder, pipeline_class=FocalTextClassificationPipeline)` reads from the model's
    `config.json` what [`FocalTrainer`] has stored there. Beside ``label`` and ``score`` each result holds the
    ``posterior``, the probability of the label where classes occur as in training. The score is that of the operating
    point, by which the results are sorted ([`operating_point_scores`]); a label of a multi-label model is predicted if its
    score is 0.5 or more. At the default, ``"most_likely"``, both are the same.

    Args:
        operating_point (`str`, defaults to ``"most_likely"``): ``"most_likely"``, ``"balanced"`` or ``"f1"``; here or in a
            call.
        prior (sequence or dict by label, *optional*): Frequencies of the classes where the model is used, in place of an
            operating point; here or in a call.
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
    [{'label': 'business', 'score': 0.93, 'posterior': 0.98}]

    ```
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # Refuses a model or settings that it could not use before any text is classified.
        config = self.model.config
        num_labels = len(self._names())
        FocalSettings.from_config(config).check_fits(num_labels, bool(is_multi_label(config)))
        posterior = posterior_from_config(torch.zeros(1, num_labels), config)
        chosen = {name: kwargs.get(name) for name in ("operating_point", "prior")}
        self._scores(posterior, **{name: value for name, value in chosen.items() if value is not None})

    def _sanitize_parameters(  # type: ignore[override]
        self,
        operating_point: str | None = None,
        prior: Sequence[float] | Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        if kwargs.pop("function_to_apply", None) is not None:
            raise ValueError(
                "function_to_apply: the scores are posteriors; for another function use pipeline() without it"
            )
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if operating_point is not None:
            postprocess["operating_point"] = operating_point
        if prior is not None:
            postprocess["prior"] = prior
        return preprocess, forward, postprocess

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        top_k: int | None = 1,
        _legacy: bool = True,
        **operating_point: Any,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        posterior = posterior_from_config(model_outputs["logits"], self.model.config)
        scores = self._scores(posterior, **operating_point)
        names = self._names()
        results = [
            {"label": names[k], "score": scores[0, k].item(), "posterior": posterior[0, k].item()}
            for k in scores[0].argsort(descending=True, stable=True).tolist()
        ]
        return results[0] if top_k == 1 and _legacy else results[:top_k]

    def _scores(
        self,
        posterior: torch.Tensor,
        operating_point: str = "most_likely",
        prior: Sequence[float] | Mapping[str, float] | None = None,
    ) -> torch.Tensor:
        if isinstance(prior, Mapping):
            names = self._names()
            if prior.keys() != set(names):
                raise ValueError(f"prior: expected a frequency for each of {names}, but got {dict(prior)}")
            prior = [prior[name] for name in names]
        return operating_point_scores(posterior, self.model.config, operating_point, prior=prior)

    def _names(self) -> list[str]:
        return list((self.model.config.id2label or {}).values())
