"""The settings of focal loss as training arguments: for command lines, config files and hyperparameter searches."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ._checks import as_gamma, as_margin, as_number, as_numbers
from .alpha import ALPHA_METHODS, check_beta


__all__ = ["FocalTrainingArguments", "parse_alpha"]


@dataclass
class FocalTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] with the settings of [`FocalTrainer`].

    The trainer reads them each time it computes a loss, so `hyperparameter_search` can vary them.

    Args:
        focal_gamma (`float`, defaults to 2.0): Focusing parameter, at least 0; 0 is cross entropy.
        focal_gamma_neg (`float`, *optional*): For several labels, the focusing parameter of negatives; default:
            `focal_gamma`.
        focal_margin (`float`, defaults to 0.0): For several labels, the probability in [0, 1) that is subtracted from
            the negatives' probabilities.
        focal_alpha (`str`, *optional*): A method of [`compute_alpha`], applied to the training dataset, or the weights
            themselves: one number for two classes, or one per class, separated by commas (in Python also as numbers). For
            several labels, those of negatives, a semicolon, then those of positives. ``"none"`` means no alpha.
        focal_beta (`float`, defaults to 0.999): The beta of ``focal_alpha="effective_number"``, in [0, 1).
        focal_alpha_max_ratio (`float`, *optional*): For a method of alpha, the cap on the ratio of the largest weight
            to the smallest.
        focal_alpha_empty_weight (`float`, *optional*): For a method of alpha, the weight of classes without examples;
            without it, they are an error.
        focal_sample_weight_column (`str`, *optional*): The column of the data that holds a weight for each example.
        focal_prior_bias (`bool`, *optional*): Whether a new head starts at the constant prediction with the lowest
            loss; by default only if an example has several labels.
        focal_statistics (`bool`, defaults to `True`): Whether the logs hold the mean p_t and the share of the loss that
            head, mid and tail classes carry.

    Raises:
        `ValueError`: If a setting is out of range; the message names it.

    Example:

    ```python
    >>> from transformers import HfArgumentParser
    >>> from hf_focal import FocalTrainingArguments
    >>> parser = HfArgumentParser(FocalTrainingArguments)
    >>> (args,) = parser.parse_args_into_dataclasses(["--focal_gamma", "3", "--focal_alpha", "0.5,1,4"])
    >>> args.focal_gamma, args.focal_alpha
    (3.0, [0.5, 1.0, 4.0])

    ```
    """

    focal_gamma: float = field(
        default=2.0,
        metadata={
            "help": "Focusing parameter of the focal loss, at least 0. Larger values suppress easy examples more; 0 is "
            "cross entropy."
        },
    )
    focal_gamma_neg: float | None = field(
        default=None,
        metadata={"help": "Focusing parameter of negatives, for several labels; default: --focal_gamma."},
    )
    focal_margin: float = field(
        default=0.0,
        metadata={
            "help": "Probability in [0, 1) that is subtracted from the negatives' probabilities, for several labels."
        },
    )
    focal_alpha: str | None = field(
        default=None,
        metadata={
            "help": "Class weights: a method that computes them from the training data (inverse, sqrt_inverse or "
            "effective_number), or the weights, separated by commas (one number for two classes; for several labels, "
            "those of negatives, a semicolon, then those of positives), or none."
        },
    )
    focal_beta: float = field(default=0.999, metadata={"help": "Beta of --focal_alpha effective_number, in [0, 1)."})
    focal_alpha_max_ratio: float | None = field(
        default=None,
        metadata={"help": "Cap on the ratio of the largest weight to the smallest, for a method of --focal_alpha."},
    )
    focal_alpha_empty_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of classes without training examples, for a method of --focal_alpha; without it, they are "
            "an error."
        },
    )
    focal_sample_weight_column: str | None = field(
        default=None, metadata={"help": "Column of the data that holds a weight >= 0 for each example."}
    )
    focal_prior_bias: bool | None = field(
        default=None,
        metadata={
            "help": "Start a new head at the constant prediction with the lowest loss on the training data. By "
            "default only if an example has several labels."
        },
    )
    focal_statistics: bool = field(
        default=True,
        metadata={
            "help": "Log the mean p_t and the shares of the loss of head, mid and tail classes since the last log."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        try:
            if isinstance(self.focal_alpha, str):
                self.focal_alpha = parse_alpha(self.focal_alpha)
            elif hasattr(self.focal_alpha, "tolist"):
                self.focal_alpha = self.focal_alpha.tolist()  # arguments are logged as JSON
            as_gamma("gamma", self.focal_gamma)
            if self.focal_gamma_neg is not None:
                self.focal_gamma_neg = as_number("gamma_neg", self.focal_gamma_neg)
            self.focal_margin = as_margin(self.focal_margin)
            if not (self.focal_alpha is None or isinstance(self.focal_alpha, str)):
                as_numbers("alpha", self.focal_alpha, may_be_all_zero=False, max_dim=2)
            check_beta(self.focal_beta)
        except ValueError as error:  # its message begins with the name of the setting
            raise ValueError(f"focal_{error}") from None
        # A search casts each trial's value to the type of the old one: from an int, 1.5 would become 1.
        self.focal_gamma, self.focal_beta = float(self.focal_gamma), float(self.focal_beta)


def parse_alpha(text: str) -> str | float | list[float] | list[list[float]] | None:
    """Parses a method, weights (negatives; positives) or ``"none"``, which becomes None."""
    if text in ALPHA_METHODS:
        return text
    if text == "none":
        return None
    try:
        weights = [[float(number) for number in part.split(",")] for part in text.split(";")]
    except ValueError:
        raise ValueError(
            f"alpha: expected none, one of {', '.join(ALPHA_METHODS)}, or numbers separated by commas, but got {text!r}"
        ) from None
    if len(weights) > 1:
        return weights
    return weights[0][0] if len(weights[0]) == 1 else weights[0]
