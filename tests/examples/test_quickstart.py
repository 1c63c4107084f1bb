"""The first thing that is read does what it says: on a part of its data, but with the real model."""

from toy_texts import run
from transformers import AutoConfig


def test_quickstart(shorten_bbc, capsys, recwarn):
    shorten_bbc(imbalance=2, head=24, validation=10, test=1)
    run("quickstart.py")
    settings = AutoConfig.from_pretrained("outputs/quickstart").focal_loss
    assert settings["gamma"] == 2 and settings["label_counts"] == [24, 20, 17, 14, 12]
    assert settings["temperature"] > 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [words[0] for words in printed] == ["sports", "business", "tech"]
    assert all(0.2 < float(words[1]) <= 1 for words in printed)
    assert not [str(warning.message) for warning in recwarn if "pin_memory" in str(warning.message)]
