"""The Marian translator on a random small model with real SentencePiece files: text to text, and fine-tuned."""

import json
import shutil

import numpy as np
import pytest

from configs import quickstart
from jaxmoe import mt
from jaxmoe.model.load import marian as loader
from jaxmoe.mt import local
from jaxmoe.phases import mt as phase

PAIRS = [
    ("the dog", "der hund"),
    ("the fox", "der fuchs"),
    ("a dog", "ein hund"),
    ("the dog is here", "der hund ist da"),
]
WORDS = {"source": ["the", "dog", "fox", "is", "here", "a"], "target": ["der", "hund", "fuchs", "ist", "da", "ein"]}


def write_spm(path, words):
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

    proto = sentencepiece.ModelProto()
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁", -6.0, 1)]
    pieces += [("▁" + word, -2.0, 1) for word in words] + [(c, -8.0, 1) for c in "abcdefghijklmnopqrstuvwxyz"]
    for piece, score, kind in pieces:
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.unk_id = 0
    path.write_bytes(proto.SerializeToString())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("opus")
    for side, words in WORDS.items():
        write_spm(folder / f"{side}.spm", words)
    words = ["▁" + word for side in WORDS.values() for word in side]
    pieces = ["</s>", "<unk>", "▁", *words, *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    torch.manual_seed(0)
    pad = vocabulary["<pad>"]
    config = transformers.MarianConfig(
        vocab_size=len(vocabulary), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, activation_function="swish",
        scale_embedding=True, pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=None,
        max_position_embeddings=64, init_std=0.2,
    )  # fmt: skip
    transformers.MarianMTModel(config).eval().save_pretrained(folder)
    return folder


def test_pieces_become_the_models_ids_and_unknown_characters_unk(folder):
    network = local.open_network(folder)
    ids = json.loads((folder / "vocab.json").read_text())
    assert network.source("  the   dog ") == [ids["▁the"], ids["▁dog"], ids["</s>"]]
    assert network.target("der hund")[:2] == [ids["▁der"], ids["▁hund"]]
    assert network.source("foxes") == [ids["▁fox"], ids["e"], ids["s"], ids["</s>"]]
    assert ids["<unk>"] in network.source("dog ß")


@pytest.mark.parametrize("beams", [1, 4])
def test_text_equals_transformers_one_by_one(folder, tmp_path, beams):
    import torch
    import transformers

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    asked = json.loads((folder / "generation_config.json").read_text()) | {"num_beams": beams}
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    theirs, network = transformers.MarianMTModel.from_pretrained(folder).eval(), local.open_network(tmp_path)
    texts = [english for english, _ in PAIRS] + ["fox fox fox fox here dog is a"]
    translator = mt.make("local", str(tmp_path), batch_size=3)
    assert translator.signature.endswith("greedy" if beams == 1 else ":beam=4:length_penalty=1.0:early=False")
    said = translator.translate(texts)
    for text, got in zip(texts, said, strict=True):
        source = network.source(text)
        out = theirs.generate(
            torch.tensor([source]), do_sample=False, num_beams=beams, max_new_tokens=network.limit(source),
            bad_words_ids=[[theirs.config.pad_token_id]], renormalize_logits=True,
        )[0, 1:].tolist()  # fmt: skip
        assert got == network._text(out[: out.index(0)] if 0 in out else out)
    assert len(set(said)) > 1


def test_a_search_that_is_not_followed_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "generation_config.json").write_text('{"num_beams": 4, "no_repeat_ngram_size": 3}')
    with pytest.raises(ValueError, match=r"generation_config\.json: no_repeat_ngram_size=3"):
        loader.search(tmp_path, loader.dimensions(tmp_path / "config.json"))


def test_fine_tuning_teaches_the_pairs(folder, tmp_path):
    config = quickstart.get_config("smoke").unlock()
    config.mesh.data = 1
    config.mt_tuning.update(steps=300, batch_size=4, lr=1e-2, rank=16, warmup=5, log_every=150, save_every=150)
    file = phase.tune(config, tmp_path, str(folder), PAIRS, PAIRS)
    tuned = mt.make("local", str(folder), adapters=file)
    german = tuned.translate([english for english, _ in PAIRS])
    assert np.mean([got == want for got, (_, want) in zip(german, PAIRS, strict=True)]) >= 0.75
