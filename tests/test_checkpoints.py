"""A torn checkpoint is passed over, whichever of its files is torn."""

import os
import resource
import shutil
from contextlib import contextmanager

import pytest
from exactness import tiny_dataset, tiny_model
from safetensors import SafetensorError
from test_trainer import make_trainer
from transformers import BertForSequenceClassification

from hf_focal.checkpoints import is_whole, last_whole_checkpoint, saved_whole


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(folder, train_dataset=tiny_dataset(), max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("file", FILES)
def test_each_file_counts(folder, file):
    last, before = folder / "checkpoint-2", folder / "checkpoint-1"
    assert last_whole_checkpoint(folder) == (last, [])
    cut(last / file)
    assert not is_whole(last)
    assert last_whole_checkpoint(folder) == (before, [last])
    cut(before / file)
    assert last_whole_checkpoint(folder) == (None, [last, before])


def test_without_its_state_it_is_torn(folder):
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    assert not is_whole(folder / "checkpoint-2")


def test_a_folder_of_another_name_is_no_checkpoint(folder):
    shutil.copytree(folder / "checkpoint-1", folder / "checkpoint-old-999")
    (folder / "checkpoint-²").mkdir()
    assert last_whole_checkpoint(folder) == (folder / "checkpoint-2", [])


@pytest.mark.parametrize("state", ["null", "{}", "[]"])
def test_a_state_that_is_none(folder, state):
    (folder / "checkpoint-2" / "trainer_state.json").write_text(state)
    assert not is_whole(folder / "checkpoint-2")


def test_without_weights_it_is_torn(folder):
    (folder / "checkpoint-2" / "model.safetensors").unlink()
    assert last_whole_checkpoint(folder) == (folder / "checkpoint-1", [folder / "checkpoint-2"])


def test_training_goes_on_from_the_last_whole_one(folder):
    cut(folder / "checkpoint-2" / "model.safetensors")
    trainer = make_trainer(folder, train_dataset=tiny_dataset(), max_steps=2, save_strategy="no")
    with pytest.warns(UserWarning, match="skipped checkpoint-2 .incomplete.; training resumes from checkpoint-1"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


def test_without_a_whole_one_it_does_not_start_again(folder):
    for number in (1, 2):
        cut(folder / f"checkpoint-{number}" / "optimizer.pt")
    trainer = make_trainer(folder, train_dataset=tiny_dataset(), max_steps=2)
    with pytest.raises(
        ValueError,
        match="no checkpoint in .* is complete: files are missing or truncated in checkpoint-2, checkpoint-1",
    ):
        trainer.train(resume_from_checkpoint=True)


def test_without_any_the_message_is_that_of_transformers(tmp_path):
    trainer = make_trainer(tmp_path, train_dataset=tiny_dataset(), max_steps=1)
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer.train(resume_from_checkpoint=True)


@contextmanager
def full_disk(after=2000):
    """No file may become larger than this many bytes: what a full disk is to who writes."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


WRITING_FAILED = (OSError, SafetensorError, RuntimeError)


class TestSavingToAFullDisk:
    def test_the_model_that_was_there_stays(self, tmp_path):
        trainer = make_trainer(tmp_path, train_dataset=tiny_dataset(), max_steps=1, save_strategy="no")
        trainer.save_model()
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        trainer.train()
        with full_disk(), pytest.raises(WRITING_FAILED):
            trainer.save_model()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
        assert not [*tmp_path.glob(".saving*")]
        trainer.save_model()
        assert (tmp_path / "model.safetensors").read_bytes() != before["model.safetensors"]

    @pytest.mark.parametrize("bytes_left", [100, 2000, 6000, 12000])
    def test_training_goes_on_from_the_last_whole_checkpoint(self, folder, bytes_left):
        """Wherever in the second checkpoint the disk was full."""
        shutil.rmtree(folder / "checkpoint-2")
        sizes = {path.name: path.stat().st_size for path in (folder / "checkpoint-1").iterdir()}
        assert max(sizes.values()) > bytes_left
        options = {"train_dataset": tiny_dataset(), "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        trainer = make_trainer(folder, save_total_limit=1, **options)
        with full_disk(bytes_left), pytest.raises(WRITING_FAILED):
            trainer.train(resume_from_checkpoint=True)
        assert last_whole_checkpoint(folder)[0] == folder / "checkpoint-1"
        expected = make_trainer(folder.parent / "whole", **options)
        expected.train()
        trainer = make_trainer(folder, **options)
        trainer.train(resume_from_checkpoint=True)
        assert (folder / "checkpoint-2" / "model.safetensors").read_bytes() == (
            folder.parent / "whole" / "checkpoint-2" / "model.safetensors"
        ).read_bytes()

    def test_a_folder_that_cannot_be_written(self, folder):
        """A file is in the place of the next checkpoint, which stops root too."""
        shutil.rmtree(folder / "checkpoint-2")
        (folder / "checkpoint-2").write_text("mine")
        trainer = make_trainer(folder, train_dataset=tiny_dataset(), max_steps=2, save_strategy="steps", save_steps=1)
        with pytest.raises(OSError):
            trainer.train(resume_from_checkpoint=True)
        assert last_whole_checkpoint(folder) == (folder / "checkpoint-1", [])
        assert (folder / "checkpoint-2").read_text() == "mine"


class TestSavedWhole:
    def test_shards_of_before_are_not_loaded_beside_it(self, tmp_path):
        model = tiny_model()
        model.save_pretrained(tmp_path, max_shard_size="2KB")
        assert len([*tmp_path.glob("model-*.safetensors")]) > 1
        trainer = make_trainer(tmp_path, model=model)
        model.classifier.weight.data += 1
        trainer.save_model()
        assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
        loaded = BertForSequenceClassification.from_pretrained(tmp_path)
        assert (loaded.classifier.weight == model.classifier.weight).all()

    def test_what_is_not_of_the_model_stays(self, tmp_path):
        for name in ("notes.txt", "README.md", "checkpoint-1/model.safetensors"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("mine")
        with saved_whole(tmp_path) as folder:
            assert (folder / "README.md").read_text() == "mine"
            (folder / "model.safetensors").write_text("new")
        found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
        mine = dict.fromkeys(("notes.txt", "README.md", "checkpoint-1/model.safetensors"), "mine")
        assert found == mine | {"model.safetensors": "new"}

    def test_an_adapter_is_not_loaded_in_place_of_a_whole_model(self, tmp_path):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / name).write_text("{}")
        model = tiny_model()
        make_trainer(tmp_path, model=model).save_model()
        assert not [*tmp_path.glob("adapter*")]
        loaded = BertForSequenceClassification.from_pretrained(tmp_path)
        assert (loaded.classifier.weight == model.classifier.weight).all()

    def test_a_kill_leaves_what_was_there(self, tmp_path):
        (tmp_path / "model.safetensors").write_text("old")
        process = os.fork()
        if process == 0:
            with saved_whole(tmp_path) as folder:
                (folder / "model.safetensors").write_text("ne")
                os._exit(9)
        os.waitpid(process, 0)
        assert (tmp_path / "model.safetensors").read_text() == "old"
        with saved_whole(tmp_path) as folder:
            (folder / "model.safetensors").write_text("new")
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
