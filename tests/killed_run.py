"""`python killed_run.py FOLDER STEP` trains in FOLDER, from its last checkpoint if it has one, and dies at STEP (0: never)."""

import os
import signal
import sys
from pathlib import Path

from exactness import tiny_dataset, tiny_model
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_focal import FocalTrainer


class Killer(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    args = TrainingArguments(
        str(folder),
        max_steps=5,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=1,
        use_cpu=True,
        disable_tqdm=True,
    )
    model = tiny_model(hidden_dropout_prob=0.1)
    trainer = FocalTrainer(model, args, train_dataset=tiny_dataset(), alpha="inverse", callbacks=[Killer()])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    trainer.save_model()


if __name__ == "__main__":
    main()
