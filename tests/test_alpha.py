"""Class weights against the formulas, on every kind of labels, and the errors."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from sklearn.utils.class_weight import compute_class_weight

from hf_focal import compute_alpha
from hf_focal.alpha import count_labels


LABELS = [0] * 60 + [1] * 25 + [2] * 14 + [3]
COUNTS = np.array([60.0, 25.0, 14.0, 1.0])
NAMES = ["politics", "sports", "tech", "chess"]
MULTI_HOT = [[1, 0], [1, 1], [1, 0], [0, 0], [1, 0]]
TOKENS = [[-100, 0, 0, 1, -100], [-100, 0, 2], [-100, -100]]


def dataset(labels=LABELS, feature=None, column="label"):
    return Dataset.from_dict({column: labels}, features=feature and Features({column: feature}))


class TestWeights:
    def test_inverse_is_scikit_learns_balanced(self):
        expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
        np.testing.assert_allclose(compute_alpha(LABELS), expected, rtol=1e-6)

    @pytest.mark.parametrize(
        "method, weights",
        [
            ("inverse", 1 / COUNTS),
            ("sqrt_inverse", 1 / np.sqrt(COUNTS)),
            ("effective_number", 1 / np.array([sum(0.9**i for i in range(int(n))) for n in COUNTS])),
        ],
    )
    def test_formula_and_scale(self, method, weights):
        alpha = compute_alpha(LABELS, method, beta=0.9)
        assert alpha.dtype == torch.float32 and alpha.shape == (4,)
        np.testing.assert_allclose(alpha / alpha[0], weights / weights[0], rtol=1e-6)
        assert alpha[LABELS].mean().item() == pytest.approx(1, rel=1e-6)

    def test_effective_number_lies_between_uniform_and_inverse(self):
        assert compute_alpha(LABELS, "effective_number", beta=0).tolist() == [1, 1, 1, 1]
        np.testing.assert_allclose(
            compute_alpha(LABELS, "effective_number", beta=1 - 1e-9), compute_alpha(LABELS), rtol=1e-6
        )

    def test_multi_label_inverse_is_the_share_of_negatives(self):
        np.testing.assert_allclose(compute_alpha(MULTI_HOT), [0.2, 0.8], rtol=1e-6)

    @pytest.mark.parametrize(
        "method, weight",
        [("sqrt_inverse", lambda n: n**-0.5), ("effective_number", lambda n: 0.1 / (1 - 0.9**n))],
    )
    def test_multi_label_weighs_positives_against_negatives(self, method, weight):
        positives, negatives = np.array([4.0, 1.0]), np.array([1.0, 4.0])
        expected = weight(positives) / (weight(positives) + weight(negatives))
        np.testing.assert_allclose(compute_alpha(MULTI_HOT, method, beta=0.9), expected, rtol=1e-6)


class TestSources:
    @pytest.mark.parametrize(
        "data",
        [
            LABELS,
            tuple(LABELS),
            np.array(LABELS),
            np.array(LABELS, dtype=np.uint8),
            torch.tensor(LABELS),
            torch.tensor(LABELS, dtype=torch.int8),
            torch.tensor([*LABELS, -100, -100]),
            torch.tensor(LABELS).reshape(10, 10),
            [torch.tensor(label) for label in LABELS],
            dataset(),
            dataset(column="labels"),
            dataset(feature=ClassLabel(names=NAMES)),
            dataset([NAMES[k] for k in LABELS], feature=ClassLabel(names=NAMES)),
            dataset([[k, -100] for k in LABELS], feature=List(ClassLabel(names=NAMES))),
            dataset(feature=Value("int32")),
            dataset([*LABELS, 1, 1]).select(range(100)),
            dataset().shuffle(seed=0),
            dataset()["label"],
        ],
    )
    def test_class_ids(self, data):
        assert compute_alpha(data).tolist() == compute_alpha(LABELS).tolist()

    @pytest.mark.parametrize(
        "data",
        [
            MULTI_HOT,
            np.array(MULTI_HOT),
            np.array(MULTI_HOT, dtype=bool),
            torch.tensor(MULTI_HOT).float(),
            torch.tensor(MULTI_HOT).bfloat16(),
            dataset(MULTI_HOT),
            dataset([[float(x) for x in row] for row in MULTI_HOT], feature=List(Value("float32"))),
            dataset(MULTI_HOT, feature=List(Value("float32"), length=2)),
            dataset([[0, 1], *MULTI_HOT]).select(range(1, 6)),
        ],
    )
    def test_multi_label_rows(self, data):
        counts = count_labels(data)
        assert counts.positives.tolist() == [4, 1] and counts.negatives.tolist() == [1, 4]

    @pytest.mark.parametrize("data", [TOKENS, dataset(TOKENS), dataset(TOKENS, feature=List(Value("int8")))])
    def test_token_labels(self, data):
        counts = count_labels(data)
        assert counts.positives.tolist() == [3, 1, 1] and counts.negatives is None

    def test_token_labels_of_one_length_with_two_classes(self):
        # Rows as long as there are classes are taken for multi-label; with num_labels the others are not.
        assert count_labels([[0, 1, 1], [0, 0, 0]], num_labels=2).positives.tolist() == [4, 2]
        feature = List(ClassLabel(names=["O", "NAME"]))
        assert count_labels(dataset([[0, 1], [0, 0]], feature=feature)).positives.tolist() == [3, 1]

    def test_column(self):
        data = Dataset.from_dict({"label": [0, 1], "topic": [0, 0], "other": [1, 0]})
        assert count_labels(data, column="topic").positives.tolist() == [2]

    def test_num_labels(self):
        assert count_labels([0, 1, 1], num_labels=3).positives.tolist() == [1, 2, 0]

    def test_the_dataset_is_left_as_it_was(self):
        data = dataset().with_format("torch")
        compute_alpha(data)
        assert data.format["type"] == "torch"


@pytest.mark.parametrize(
    "message, data, kwargs",
    [
        ("method: expected one of inverse, sqrt_inverse, effective_number, but got 'magic'", [0], {"method": "magic"}),
        (r"beta: expected a number in \[0, 1\), but got 1", [0], {"beta": 1}),
        (r"no examples of class 2 \('tech'\)", dataset([0, 1, 3], feature=ClassLabel(names=NAMES)), {}),
        ("no examples of class 1, 2, so", [0, 3], {}),
        (r"class 1 \('b'\), 2, so", dataset([0], feature=ClassLabel(names=["a", "b"])), {"num_labels": 3}),
        ("num_labels: expected a positive integer, but got '2'", [0, 1], {"num_labels": "2"}),
        ("beta: expected a number", [0, 1], {"beta": "0.9"}),
        ("no examples of class 0", [[0, 1], [0, 0]], {}),
        ("no negative examples of class 1", [[0, 1], [1, 1]], {}),
        (r"expected class ids from 0 to 2 .*also holds \[7\]", [0, 1, 2, 7], {"num_labels": 3}),
        (r"expected class ids from 0 to 1 .*also holds \[-1\]", [0, 1, -1], {}),
        ("column: expected exactly one of 'label' and 'labels'.*columns are \\['y'\\]", dataset(column="y"), {}),
        ("column: expected 'y'.*columns are \\['label'\\]", dataset(), {"column": "y"}),
        ("expected exactly one of", Dataset.from_dict({"label": [0], "labels": [0]}), {}),
        ("only a datasets.Dataset has columns", [0, 1], {"column": "label"}),
        ("column 'label' holds no labels", dataset([-1, -1]), {}),
        ("column 'label' holds no labels", dataset([None, None]), {}),
        ("column 'label' holds no labels", dataset([[-100], [-100, -100]]), {}),
        ("holds no labels", [], {}),
        ("2 labels are missing", dataset([0, None, 1, None]), {}),
        ("1 labels are missing", [[0], None, [1]], {}),
        ("holds strings.*class_encode_column", dataset(["a", "b"]), {}),
        ("holds strings", ["a", "b"], {}),
        ("holds float64 values", [0.5, 1.5], {}),
        ("holds float64 values in rows of 2", [[0.5, 1.0], [1.0, 0.0]], {}),
        ("multi-label rows of 3 entries .* in rows of 2", [[0.0, 1.0], [1.0, 0.0]], {"num_labels": 3}),
        ("the list could not be read", [[0, 1], "a"], {}),
        ("choose one of \\['train', 'test'\\]", DatasetDict(train=dataset(), test=dataset()), {}),
        (
            "expected a datasets.Dataset, a list, an array or a tensor of labels, but got IterableDataset",
            dataset().to_iterable_dataset(),
            {},
        ),
        ("one or two dimensions", np.zeros((2, 2, 2), dtype=int), {}),
    ],
)
def test_refuses(message, data, kwargs):
    with pytest.raises(ValueError, match=message):
        compute_alpha(data, **kwargs)
