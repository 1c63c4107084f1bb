"""The kind of a model, by the transformers classes that it inherits from."""

import inspect
from collections.abc import Collection
from typing import Any

from torch import nn
from transformers.models.auto import modeling_auto


CAUSAL_LANGUAGE_MODELS = {*modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
# Decoders whose own loss compares each logit with the label at the same position: their users shift the labels.
UNSHIFTED_LANGUAGE_MODELS = {
    *(
        f"{name}ForCausalLM"
        for name in (
            *("Bart", "BigBirdPegasus", "Blenderbot", "BlenderbotSmall", "CpmAnt", "MBart", "Marian", "Mvp", "PLBart"),
            *("Pegasus", "ProphetNet", "TrOCR", "Whisper", "XLMProphetNet"),
        )
    ),
    *("XLMWithLMHeadModel", "XLNetLMHeadModel"),
}
# They generate text from a text, audio or an image: some with an encoder and a decoder, the others as causal models.
CONDITIONAL_LANGUAGE_MODELS = {
    name
    for task in ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "VISION_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    for name in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}).values()
}
LANGUAGE_MODELS = {
    *CAUSAL_LANGUAGE_MODELS,
    *CONDITIONAL_LANGUAGE_MODELS,
    *modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values(),
}
TOKEN_CLASSIFIERS = {*modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()}
# The pipeline task of each kind of classifier.
CLASSIFIERS = {
    "text-classification": {*modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()},
    "token-classification": TOKEN_CLASSIFIERS,
    "image-classification": {*modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()},
    "video-classification": {*modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES.values()},
    "audio-classification": {
        *modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES.values(),
    },
}
# Their targets are not classes.
UNSUPPORTED = {
    "question answering": {*modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values()},
    "object detection": {*modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values()},
}


def is_one_of(model: nn.Module, class_names: Collection[str]) -> bool:
    """Whether the class of a model, or one of its base classes, has one of the names."""
    return any(parent.__name__ in class_names for parent in type(model).__mro__)


def has_decoder_inputs(model: nn.Module) -> bool:
    """Whether a language model takes, besides its input, the text that it is to generate."""
    return (
        is_one_of(model, CONDITIONAL_LANGUAGE_MODELS)
        and "decoder_input_ids" in inspect.signature(model.forward).parameters
    )


def predicts_next_token(model: nn.Module) -> bool:
    """Whether the loss of a language model compares each logit with the label of the next position."""
    if is_one_of(model, UNSHIFTED_LANGUAGE_MODELS):
        return False
    is_conditional = is_one_of(model, CONDITIONAL_LANGUAGE_MODELS)
    return is_one_of(model, CAUSAL_LANGUAGE_MODELS) or (is_conditional and not has_decoder_inputs(model))


def task_of(model: nn.Module) -> str:
    """The pipeline task of a classifier; text classification for one that transformers does not know."""
    return next((task for task, heads in CLASSIFIERS.items() if is_one_of(model, heads)), "text-classification")


def unsupported_task_of(model: nn.Module) -> str | None:
    """The task of a model, if it is one that FocalTrainer does not support."""
    return next((task for task, heads in UNSUPPORTED.items() if is_one_of(model, heads)), None)


def num_classes_of(model: nn.Module) -> int | None:
    """The number of classes in the config, if the model is of a class that builds its head from it."""
    config = getattr(model, "config", None)
    if is_one_of(model, LANGUAGE_MODELS):
        return getattr(config, "vocab_size", None)
    return getattr(config, "num_labels", None) if is_one_of(model, set().union(*CLASSIFIERS.values())) else None


def is_multi_label(config: Any) -> bool | None:
    """Whether each logit is a yes/no decision on one label; None if the config does not say.

    So is the one logit of a binary classifier: the pipelines of transformers take its sigmoid.
    """
    problem_type = getattr(config, "problem_type", None)
    if problem_type is None:
        return None
    is_binary = problem_type == "single_label_classification" and getattr(config, "num_labels", None) == 1
    return is_binary or problem_type == "multi_label_classification"


def class_names(config: Any, num_classes: int | None = None) -> list[str]:
    """The class names sorted by class id; a config file may list them in any order."""
    names = {int(k): str(name) for k, name in (getattr(config, "id2label", None) or {}).items()}
    return [names.get(k, f"LABEL_{k}") for k in range(config.num_labels if num_classes is None else num_classes)]
