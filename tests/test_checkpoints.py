"""A torn checkpoint is passed over, whichever of its files is torn."""

import shutil

import pytest
from exactness import tiny_dataset
from test_trainer import make_trainer

from hf_focal.checkpoints import is_whole, last_whole_checkpoint


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


def test_training_goes_on_from_the_last_whole_one(folder):
    cut(folder / "checkpoint-2" / "model.safetensors")
    trainer = make_trainer(folder, train_dataset=tiny_dataset(), max_steps=2, save_strategy="no")
    with pytest.warns(
        UserWarning, match="checkpoint-2 was not written to its end, so training goes on from checkpoint-1"
    ):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


def test_without_a_whole_one_it_does_not_start_again(folder):
    for number in (1, 2):
        cut(folder / f"checkpoint-{number}" / "optimizer.pt")
    trainer = make_trainer(folder, train_dataset=tiny_dataset(), max_steps=2)
    with pytest.raises(
        ValueError, match="no checkpoint in .* is whole: of checkpoint-2, checkpoint-1 files are missing"
    ):
        trainer.train(resume_from_checkpoint=True)


def test_without_any_the_message_is_that_of_transformers(tmp_path):
    trainer = make_trainer(tmp_path, train_dataset=tiny_dataset(), max_steps=1)
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer.train(resume_from_checkpoint=True)
