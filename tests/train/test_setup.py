"""What the training phases open: the utterances of a split, and the groups that train is reweighted by."""

import types

import numpy as np
import pytest

from configs import quickstart
from jaxmoe.data import embeddings, prepared
from jaxmoe.train import setup
from tests import stored, tiny

LETTERS = types.SimpleNamespace(eot=0, sot_sequence=lambda **_: (1, 2), encode=lambda text: [ord(c) for c in text])


def item(number, language):
    known = dict.fromkeys(prepared.STRINGS, "") | dict.fromkeys(prepared.BOOLEANS, False)
    named = {"id": f"u{number}", "speaker": f"s{number % 3}", "text": f"text {number}", "language": language}
    return known | named | {"duration_s": 0.5, "audio": np.zeros(8000, np.int16)}


@pytest.fixture
def load(tmp_path):
    """Loads a split, six utterances of which two are Welsh, with config.reweight as given."""
    for split in ("train", "validation"):
        rows = [item(n, "Welsh" if n % 3 == 0 else "en") for n in range(6)]
        stored.write(tmp_path / split / "corpus", {split: rows})
        size = tiny.DIMS.n_audio_state
        depths = np.zeros((6, tiny.DIMS.n_audio_layer + 2, 2, size), np.float32)
        folder = setup.embeddings_folder(tmp_path / split, "tiny", split)
        embeddings.write_shard(folder, 0, [x["id"] for x in rows], [np.zeros((9, size))] * 6, depths)
    config = quickstart.get_config()
    backbone = setup.Backbone("tiny", None, None, tiny.make_model(), LETTERS)

    def load(split, reweight):
        config.reweight = reweight
        return setup.load_utterances(config, tmp_path / split, backbone, split)

    return load


def test_train_is_reweighted_by_the_column_named_and_validation_is_not(load, capsys):
    assert list(load("train", "language").groups) == ["Welsh", "en", "en"] * 2
    said = capsys.readouterr().out
    assert "drawn by language: 2 groups equally often, their utterances 0.75 to 1.50 times an epoch" in said
    assert not load("train", "").groups and not load("validation", "language").groups


def test_a_column_that_does_not_exist_or_tells_nobody_apart_is_an_error(load):
    with pytest.raises(ValueError, match=r"config.reweight='accent' is no column; there are id, speaker,"):
        load("train", "accent")
    with pytest.raises(ValueError, match=r"config.reweight='sex': all utterances to train on have \[''\]"):
        load("train", "sex")
