"""Focal loss for Hugging Face fine-tuning on imbalanced data.

Start with [`FocalTrainer`], in place of `transformers.Trainer`, and with its flags, [`FocalTrainingArguments`]. The parts
can be used on their own:

| module | contents |
| --- | --- |
| [`losses`] | [`focal_loss`], [`sigmoid_focal_loss`], and their modules |
| [`alpha`] | class weights from label counts: [`LabelDistribution`], [`compute_alpha`] |
| [`trainer`], [`training_args`] | [`FocalTrainer`] and its arguments |
| [`posterior`] | class posteriors from focal logits, their inverses, and other priors |
| [`calibration`], [`held_out`] | temperature and vector scaling, fitted to held-out data |
| [`operating_points`], [`thresholds`], [`confidence`] | decisions: for accuracy, balanced accuracy, costs, a wanted precision or recall |
| [`settings`] | [`FocalSettings`], what a model's `config.json` records |
| [`pipeline`] | pipelines for texts and tokens that show the posterior and obey the operating point |
| [`folding`], [`export`] | the calibration in the weights of the head; model and posterior as one ONNX or torch graph |
| [`metrics`], [`evaluation`] | metrics for imbalanced data, and the scores of all operating points with intervals |
| [`model_card`] | model cards that can be read back and verified |
| [`checkpoints`] | the last complete checkpoint, and saving that never loses the old model |

Modules whose name starts with an underscore are not for import.
"""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.2.0"

_MODULE_OF = {
    "focal_loss": "losses",
    "sigmoid_focal_loss": "losses",
    "flsd_53": "losses",
    "FocalLoss": "losses",
    "SigmoidFocalLoss": "losses",
    "LabelDistribution": "alpha",
    "compute_alpha": "alpha",
    "class_posterior": "posterior",
    "sigmoid_class_posterior": "posterior",
    "focal_logits": "posterior",
    "sigmoid_focal_logits": "posterior",
    "shift_prior": "posterior",
    "PriorEstimate": "posterior",
    "estimate_prior": "posterior",
    "apply_temperature": "calibration",
    "fit_temperature": "calibration",
    "calibrate_config": "held_out",
    "export_posterior": "export",
    "fold_calibration": "folding",
    "unfold_calibration": "folding",
    "decide": "operating_points",
    "fit_thresholds": "thresholds",
    "operating_point_scores": "operating_points",
    "posterior_from_config": "operating_points",
    "FocalSettings": "settings",
    "FocalTextClassificationPipeline": "pipeline",
    "FocalTokenClassificationPipeline": "pipeline",
    "fit_min_confidence": "confidence",
    "MinConfidence": "confidence",
    "evaluate_model": "evaluation",
    "evaluate_operating_points": "evaluation",
    "ImbalancedClassification": "metrics",
    "class_groups": "metrics",
    "compute_metrics": "metrics",
    "FocalTrainingArguments": "training_args",
    "FocalTrainer": "trainer",
}

__all__ = ["__version__", *_MODULE_OF]

if TYPE_CHECKING:
    from .alpha import LabelDistribution as LabelDistribution
    from .alpha import compute_alpha as compute_alpha
    from .calibration import apply_temperature as apply_temperature
    from .calibration import fit_temperature as fit_temperature
    from .confidence import MinConfidence as MinConfidence
    from .confidence import fit_min_confidence as fit_min_confidence
    from .evaluation import evaluate_model as evaluate_model
    from .evaluation import evaluate_operating_points as evaluate_operating_points
    from .export import export_posterior as export_posterior
    from .folding import fold_calibration as fold_calibration
    from .folding import unfold_calibration as unfold_calibration
    from .held_out import calibrate_config as calibrate_config
    from .losses import FocalLoss as FocalLoss
    from .losses import SigmoidFocalLoss as SigmoidFocalLoss
    from .losses import flsd_53 as flsd_53
    from .losses import focal_loss as focal_loss
    from .losses import sigmoid_focal_loss as sigmoid_focal_loss
    from .metrics import ImbalancedClassification as ImbalancedClassification
    from .metrics import class_groups as class_groups
    from .metrics import compute_metrics as compute_metrics
    from .operating_points import decide as decide
    from .operating_points import operating_point_scores as operating_point_scores
    from .operating_points import posterior_from_config as posterior_from_config
    from .pipeline import FocalTextClassificationPipeline as FocalTextClassificationPipeline
    from .pipeline import FocalTokenClassificationPipeline as FocalTokenClassificationPipeline
    from .posterior import PriorEstimate as PriorEstimate
    from .posterior import class_posterior as class_posterior
    from .posterior import estimate_prior as estimate_prior
    from .posterior import focal_logits as focal_logits
    from .posterior import shift_prior as shift_prior
    from .posterior import sigmoid_class_posterior as sigmoid_class_posterior
    from .posterior import sigmoid_focal_logits as sigmoid_focal_logits
    from .settings import FocalSettings as FocalSettings
    from .thresholds import fit_thresholds as fit_thresholds
    from .trainer import FocalTrainer as FocalTrainer
    from .training_args import FocalTrainingArguments as FocalTrainingArguments


def __getattr__(name: str):
    # Importing transformers takes seconds, so each name is imported only when it is first used.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})
