"""The record in a config: what it holds comes back, older ones are read, and what does not fit is refused by name."""

import json
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from huggingface_hub import errors
from transformers import BertConfig

from hf_focal import (
    FocalSettings,
    calibrate_config,
    class_posterior,
    operating_point_scores,
    posterior_from_config,
)


COMPLETE = {
    "gamma": [0.0, 2.0],
    "gamma_neg": 4.0,
    "margin": 0.05,
    "alpha": [0.6, 3.0],
    "label_smoothing": 0.1,
    "label_counts": [20, 4],
    "class_prior": [20 / 24, 4 / 24],
    "temperature": 1.5,
    "thresholds": [0.3],
}
OF_0_1 = {"gamma": 2.0, "alpha": None, "label_smoothing": 0.0, "label_counts": [30, 10], "class_prior": [0.75, 0.25]}


class TestRoundTrip:
    def test_through_a_saved_config(self, tmp_path):
        settings = FocalSettings(**COMPLETE)
        config = BertConfig(num_labels=2)
        settings.store_in(config)
        config.save_pretrained(tmp_path)
        assert FocalSettings.from_config(BertConfig.from_pretrained(tmp_path)) == settings
        assert FocalSettings.find_in_folder(tmp_path) == settings

    def test_through_a_file_beside_an_adapter(self, tmp_path):
        settings = FocalSettings(**COMPLETE)
        assert settings.store_in_folder(tmp_path / "adapter").name == "focal_loss.json"
        assert FocalSettings.find_in_folder(tmp_path / "adapter") == settings

    def test_from_a_folder(self, tmp_path):
        settings = FocalSettings(**COMPLETE)
        settings.store_in_folder(tmp_path / "adapter")
        assert FocalSettings.from_pretrained(tmp_path / "adapter") == settings
        with pytest.raises(ValueError, match=f"{tmp_path}: expected focal_loss.json, .* but there is neither"):
            FocalSettings.from_pretrained(tmp_path)

    def test_the_record_is_plain_json_of_a_known_version(self):
        record = FocalSettings(gamma=2, alpha=torch.tensor([1.0, 2.0]).tolist()).to_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["format_version"] == 1
        assert record.keys() == {"format_version", *(field.name for field in fields(FocalSettings))}

    def test_arrays_and_tensors_become_plain_lists(self):
        settings = FocalSettings(gamma=np.float64(2), alpha=torch.tensor([1.0, 2.0]), label_counts=np.array([3, 4]))
        assert settings == FocalSettings(gamma=2.0, alpha=[1.0, 2.0], label_counts=[3, 4])

    def test_records_do_not_share_their_lists(self):
        settings = FocalSettings(gamma=2.0, alpha=[1.0, 2.0])
        settings.to_dict()["alpha"][0] = 77.0
        assert settings.alpha == [1.0, 2.0]

    def test_the_docstring_documents_every_key(self):
        documented = FocalSettings.__doc__
        assert all(f"        {field.name} (" in documented for field in fields(FocalSettings))


class TestOlderRecords:
    @pytest.mark.parametrize(
        "record",
        [
            {"gamma": 2.0, "alpha": None},
            {"gamma": 0, "alpha": [1.0, 2.0]},
            {"gamma": "flsd_53", "alpha": 0.25, "label_counts": None, "class_prior": None},
            OF_0_1,
            {**OF_0_1, "temperature": 1.2, "thresholds": [0.4]},
            {**OF_0_1, "asymmetric": {"gamma": 1.0, "gamma_neg": 4.0, "margin": 0.05}},  # of a rival in the examples
        ],
    )
    def test_of_version_0_1_are_read(self, record):
        settings = FocalSettings.from_dict(record)
        for name, value in record.items():
            assert name == "asymmetric" or getattr(settings, name) == value

    def test_posterior_of_a_model_of_0_1(self):
        config = BertConfig(num_labels=2, focal_loss={"gamma": 2.0, "alpha": [1.0, 4.0]})
        logits = torch.tensor([[0.0, 1.1]])
        expected = class_posterior(logits, gamma=2.0, alpha=[1.0, 4.0])
        torch.testing.assert_close(posterior_from_config(logits, config), expected)

    def test_keys_of_another_package_in_a_versioned_record_are_refused(self):
        with pytest.raises(ValueError, match="focal_loss: expected only .*, but got focus"):
            FocalSettings.from_dict({"format_version": 1, "gamma": 2.0, "focus": 1})

    def test_a_later_format_is_refused(self):
        with pytest.raises(ValueError, match="format_version: expected 1, but got 2; a later version"):
            FocalSettings.from_dict({"format_version": 2, "gamma": 2.0})


WRONG = [
    ("gamma", {}),
    ("gamma", {"alpha": None}),
    ("gamma", {"gamma": None}),
    ("gamma", {"gamma": "2"}),
    ("gamma", {"gamma": ""}),
    ("gamma", {"gamma": True}),
    ("gamma", {"gamma": -1}),
    ("gamma", {"gamma": 1e308}),
    ("gamma", {"gamma": 10**400}),
    ("gamma", {"gamma": math.nan}),
    ("gamma", {"gamma": [2.0, math.nan]}),
    ("gamma", {"gamma": [[2.0]]}),
    ("gamma", {"gamma": []}),
    ("gamma_neg", {"gamma": 2.0, "gamma_neg": "4"}),
    ("margin", {"gamma": 2.0, "margin": [0.05]}),
    ("margin", {"gamma": 2.0, "margin": 1.5}),
    ("alpha", {"gamma": 2.0, "alpha": "inverse"}),
    ("alpha", {"gamma": 2.0, "alpha": 1.5}),
    ("alpha", {"gamma": 2.0, "alpha": [1.0, math.inf]}),
    ("alpha", {"gamma": 2.0, "alpha": [1.0, -1.0]}),
    ("label_smoothing", {"gamma": 2.0, "label_smoothing": [0.1]}),
    ("label_counts", {"gamma": 2.0, "label_counts": [3.5, 1]}),
    ("label_counts", {"gamma": 2.0, "label_counts": [-1, 1]}),
    ("label_counts", {"gamma": 2.0, "label_counts": 4}),
    ("class_prior", {"gamma": 2.0, "class_prior": 0.5}),
    ("class_prior", {"gamma": 2.0, "class_prior": [0.5, "x"]}),
    ("class_prior", {"gamma": 2.0, "class_prior": [1.5, -0.5]}),
    ("class_prior", {"gamma": 2.0, "class_prior": {"spam": 1.0}}),
    ("temperature", {"gamma": 2.0, "temperature": 0}),
    ("temperature", {"gamma": 2.0, "temperature": -1}),
    ("temperature", {"gamma": 2.0, "temperature": math.nan}),
    ("temperature", {"gamma": 2.0, "temperature": "2"}),
    ("temperature", {"gamma": 2.0, "temperature": 1e-300}),
    ("temperature", {"gamma": 2.0, "temperature": [1.0, 1.0]}),
    ("thresholds", {"gamma": 2.0, "thresholds": 0.5}),
    ("thresholds", {"gamma": 2.0, "thresholds": [0.0]}),
    ("thresholds", {"gamma": 2.0, "thresholds": [1.0]}),
    ("thresholds", {"gamma": 2.0, "thresholds": [math.nan]}),
    ("alpha", {"gamma": [1.0, 2.0], "alpha": [1.0, 2.0, 3.0]}),
    ("thresholds", {"gamma": 2.0, "label_counts": [3, 2, 1], "thresholds": [0.5]}),
    ("class_prior", {"gamma": 2.0, "class_prior": [1.0, 1e-320]}),
    ("thresholds", {"gamma": 2.0, "thresholds": [1e-320]}),
    ("label_counts", {"gamma": 2.0, "label_counts": []}),
    ("format_version", {"gamma": 2.0, "format_version": 0}),
    ("format_version", {"gamma": 2.0, "format_version": True}),
    ("focal_loss", {"gamma": 2.0, 3: 1, "format_version": 1}),
    ("focal_loss", "inverse"),
    ("focal_loss", [2.0]),
]


@pytest.mark.parametrize(("name", "record"), WRONG)
def test_what_does_not_fit_is_refused_by_name(name, record):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        FocalSettings.from_dict(record)
    config = BertConfig(num_labels=2, focal_loss=record)
    for use in (
        lambda: posterior_from_config(torch.zeros(1, 2), config),
        lambda: calibrate_config(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), config),
        lambda: operating_point_scores(torch.full((1, 2), 0.5), config, "balanced"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            use()


@pytest.mark.parametrize(
    ("message", "record", "multi_label"),
    [
        ("thresholds: expected one number for each of 1 classes, but got 2", {"thresholds": [0.5, 0.5]}, False),
        ("thresholds: expected one number for each of 2 classes, but got 1", {"thresholds": [0.5]}, True),
        ("alpha: expected one number for each of 2 classes, but got 3", {"alpha": [1.0, 1.0, 1.0]}, False),
        ("alpha: expected one number for each of 2 classes, but got 1", {"alpha": [[1.0], [2.0]]}, True),
        ("alpha: expected one number per class, but got .*several labels", {"alpha": [[1.0, 1.0], [2.0, 3.0]]}, False),
        (
            "class_prior: expected probabilities that sum to 1, but got a sum of 1.4",
            {"class_prior": [0.7, 0.7]},
            False,
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(message, record, multi_label):
    settings = FocalSettings.from_dict({"gamma": 2.0, **record})
    with pytest.raises(ValueError, match=message):
        settings.check_fits(2, multi_label)


@pytest.mark.parametrize(
    ("alpha", "multi_label", "expected"),
    [
        (0.25, False, [0.75, 0.25]),
        ([0.5, 2.0], False, [0.5, 2.0]),
        (0.25, True, [[0.75, 0.75], [0.25, 0.25]]),
        ([0.25, 1.0], True, [[0.75, 0.0], [0.25, 1.0]]),
        ([[0.5, 2.0], [3.0, 0.0]], True, [[0.5, 2.0], [3.0, 0.0]]),
    ],
)
def test_class_weights(alpha, multi_label, expected):
    assert FocalSettings(gamma=2.0, alpha=alpha).class_weights(2, multi_label).tolist() == expected
    assert FocalSettings(gamma=2.0).class_weights(2, multi_label) is None


@pytest.mark.parametrize(
    "alpha", [[[1.0, 2.0]], [[1.0, 2.0], [1.0]], [[1.0], [2.0], [3.0]], [[1.0, 2.0], 1.0], [[1.0, -1.0], [1.0, 1.0]]]
)
def test_what_is_no_pair_of_weights_is_refused(alpha):
    with pytest.raises(ValueError, match="^alpha: expected"):
        FocalSettings(gamma=2.0, alpha=alpha)


def test_shares_of_independent_labels_need_not_sum_to_1():
    FocalSettings(gamma=2.0, class_prior=[0.7, 0.7]).check_fits(2, multi_label=True)


def test_thresholds_are_for_two_classes_or_several_labels():
    with pytest.raises(ValueError, match="thresholds: expected two classes or several labels"):
        FocalSettings(gamma=2.0, thresholds=[0.5, 0.5, 0.5]).check_fits(3, multi_label=False)


def test_a_config_without_a_record():
    assert FocalSettings.find_in(BertConfig()) is None
    with pytest.raises(
        ValueError, match=r"config: expected the settings .* FocalSettings\(gamma=0\).store_in\(config\)"
    ):
        FocalSettings.from_config(BertConfig())


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "focal_loss.json").write_text("{")
    with pytest.raises(ValueError, match="focal_loss.json: expected JSON"):
        FocalSettings.find_in_folder(tmp_path)


class TestHub:
    """Without a network: what the client of the Hub would find there, or say."""

    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        """A repository, its files and an error in place of some of them."""
        errors_of, asked = {}, []

        def download(name, file, **kwargs):
            asked.append((name, file, kwargs))
            if error := errors_of.get(file):
                raise error
            if not (tmp_path / file).is_file():
                raise errors.EntryNotFoundError(f"404: {file}")
            return str(tmp_path / file)

        monkeypatch.setattr("hf_focal.settings.hf_hub_download", download)
        return tmp_path, errors_of, asked

    def test_an_adapter(self, hub):
        folder, _, asked = hub
        FocalSettings(gamma=3).store_in_folder(folder)
        assert FocalSettings.from_pretrained("me/adapter", revision="v1").gamma == 3
        assert asked == [("me/adapter", "focal_loss.json", {"revision": "v1"})]

    @pytest.mark.parametrize("is_offline", [False, True])
    def test_a_model(self, hub, is_offline):
        """Offline nobody knows of a file that is not in the cache; the config that is tells enough."""
        folder, errors_of, asked = hub
        (folder / "config.json").write_text(json.dumps({"focal_loss": OF_0_1}))
        if is_offline:
            errors_of["focal_loss.json"] = errors.LocalEntryNotFoundError("offline")
        assert FocalSettings.from_pretrained("me/model").label_counts == [30, 10]
        assert [file for _, file, _ in asked] == ["focal_loss.json", "config.json"]

    def test_what_is_not_there_or_cannot_be_reached(self, hub):
        folder, errors_of, _ = hub
        with pytest.raises(ValueError, match="me/model: expected focal_loss.json, .* but there is neither"):
            FocalSettings.from_pretrained("me/model")
        (folder / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="me/model: expected focal_loss.json, .* but there is neither"):
            FocalSettings.from_pretrained("me/model")
        errors_of["focal_loss.json"] = errors.LocalEntryNotFoundError("cannot find it in the cache, and is offline")
        with pytest.raises(ValueError, match="me/model: expected .* but cannot find it in the cache, and is offline"):
            FocalSettings.from_pretrained("me/model")
        errors_of["focal_loss.json"] = OSError("no route to host")
        with pytest.raises(ValueError, match="me/model: expected .* but no route to host"):
            FocalSettings.from_pretrained("me/model")

    def test_a_folder_that_does_not_exist(self, tmp_path):
        """The real client, which refuses the name before it asks anybody."""
        with pytest.raises(ValueError, match="nowhere: expected focal_loss.json, .*"):
            FocalSettings.from_pretrained(tmp_path / "nowhere")

    def test_offline(self, monkeypatch, tmp_path):
        """The real client, with nothing in its cache."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(
            ValueError, match="me/adapter: expected focal_loss.json, .* but .*(offline|disabled|cache)"
        ):
            FocalSettings.from_pretrained("me/adapter", cache_dir=tmp_path)
