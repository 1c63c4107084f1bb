"""Exports model and posterior as one graph, for runtimes without this package: ONNX, or an exported torch program."""

import inspect
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .folding import check_folded_weights
from .operating_points import decision_scores
from .settings import FocalSettings


__all__ = ["export_posterior"]

FORMATS = {"onnx": "model.onnx", "torch": "model.pt2"}
_OUTPUTS = ["probabilities", "scores"]


def export_posterior(
    model: nn.Module,
    folder: str | Path,
    format: str = "onnx",
    *,
    tokenizer: Any = None,
    operating_point: str | None = None,
    prior: Any = None,
) -> Path:
    r"""Saves a graph that computes class posteriors and decisions from tokens, for any batch size and sequence length.

    The inputs have the tokenizer's names. The outputs are ``probabilities``, the calibrated posterior, and ``scores``,
    of which the largest, or for several labels each of 0.5 or more, is the decision of [`decide`].

    Args:
        model (`PreTrainedModel`): A model trained by [`FocalTrainer`], for texts or for tokens.
        folder (`str` or `Path`): The output folder; the config, and the tokenizer if given, are saved next to the
            graph.
        format (`str`): ``"onnx"``, a `model.onnx`, which requires ``pip install 'hf_focal[export]'`` (if
            `model.onnx.data` is written too, keep the two files together); or ``"torch"``, a `model.pt2` for
            `torch.export.load`.
        tokenizer (*optional*): The model's tokenizer. Without it, the inputs are ``input_ids`` and ``attention_mask``.
        operating_point, prior (*optional*): As in [`decide`]; by default the operating point recorded in the config.

    Returns:
        `Path`: The path of the graph.

    Raises:
        `ValueError`: For an unknown format, a model without focal loss settings or, for ONNX, in bfloat16, a folder
            that is a file, or as [`decide`] does.
        `ImportError`: If packages that the format requires are not installed.

    Example:

    ```python
    >>> from transformers import AutoModelForSequenceClassification, AutoTokenizer
    >>> from hf_focal import export_posterior
    >>> model = AutoModelForSequenceClassification.from_pretrained("my_model")  # doctest: +SKIP
    >>> export_posterior(model, "exported", tokenizer=AutoTokenizer.from_pretrained("my_model"))  # doctest: +SKIP
    PosixPath('exported/model.onnx')

    ```
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, but got {format!r}")
    if format == "onnx" and (missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]):
        raise ImportError(
            f"format: 'onnx' requires {', '.join(missing)}; pip install 'hf_focal[export]', or use format='torch'"
        )
    if format == "onnx" and (dtype := next(model.parameters()).dtype) == torch.bfloat16:
        raise ValueError(f"model: ONNX runtimes do not support {dtype}; export model.float(), or use format='torch'")
    if Path(folder).is_file():
        raise ValueError(f"folder: expected a folder, but {folder} is a file")
    config: Any = model.config
    FocalSettings.from_config(config)
    check_folded_weights(model)
    chosen = {"operating_point": operating_point, "prior": prior}
    decision_scores(torch.zeros(1, config.num_labels), config, **chosen)  # so that errors are raised before the export

    names = ["input_ids", "attention_mask"] if tokenizer is None else list(tokenizer.model_input_names)
    accepted = inspect.signature(model.forward).parameters
    names = [name for name in names if name in accepted]
    device = next(model.parameters()).device
    # Sizes that are unlikely to coincide with a fixed dimension of the model.
    inputs = {name: torch.ones(2, 7, dtype=torch.long, device=device) for name in names}
    if (last := getattr(config, "eos_token_id", None)) is not None and isinstance(last, int):
        inputs["input_ids"][:, -1] = last
    shapes = [{0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in names]
    path = Path(folder, FORMATS[format])
    path.parent.mkdir(parents=True, exist_ok=True)
    was_training, graph = model.training, _WithPosterior(model, names, chosen)
    graph.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            program = torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=(tuple(shapes),), strict=False)
            if format == "torch":
                torch.export.save(program, path)
            else:
                torch.onnx.export(
                    program, (), path, input_names=names, output_names=_OUTPUTS, dynamo=True, verbose=False
                )
    finally:
        model.train(was_training)
    config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return path


class _WithPosterior(nn.Module):
    def __init__(self, model: nn.Module, names: list[str], chosen: dict[str, Any]):
        super().__init__()
        self.model, self.names, self.chosen = model, names, chosen

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(**dict(zip(self.names, inputs)), return_dict=True).logits
        scores, probabilities = decision_scores(logits, self.model.config, **self.chosen)
        return probabilities, scores.to(probabilities.dtype)
