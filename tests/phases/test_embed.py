"""Recordings over 30 s on their way into training: windows with their text, in the batches; nothing lost in silence."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from configs import quickstart
from jaxmoe.data import prepared
from jaxmoe.data.audio import N_SAMPLES, load_audio
from jaxmoe.data.batches import BatchSource
from jaxmoe.data.embeddings import Embeddings, load_windows
from jaxmoe.phases import cluster, embed, prepare
from jaxmoe.train.setup import load_backbone, load_utterances, note_utterances
from tests.model.checkpoints import real_weights

JFK = Path(__file__).parents[1] / "data/jfk.flac"
TEXT = "And so my fellow Americans ask not what your country can do for you ask what you can do for your country"
TIMES = {"train": (3, 1), "validation": (3,), "evaluation": (3,)}  # of evaluation there is nothing but a long one


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    real_weights("tiny.en")
    folder, lines = tmp_path_factory.mktemp("long"), ["path,text,speaker,split"]
    for split, times in TIMES.items():
        for n in times:
            soundfile.write(folder / f"{split}{n}.flac", np.tile(load_audio(JFK), n), 16000)
            lines.append(f"{split}{n}.flac,{' '.join([TEXT] * n)},{split},{split}")
    (folder / "t.csv").write_text("\n".join(lines))
    config = quickstart.get_config("smoke").unlock()
    config.data.update(corpus="manifest", path=str(folder / "t.csv"), num_workers=1)
    config.embed.variant_clips, config.mesh.data = 0, 1
    prepare.run(config, folder / "run")
    embed.run(config, folder / "run")
    return config, folder / "run", load_backbone(config)


def test_windows_are_in_the_batches_with_their_text_and_sound(run):
    config, workdir, backbone = run
    utterances = load_utterances(config, workdir, backbone, "train")
    windows = {w["id"]: w for w in load_windows(workdir / "embeddings/tiny.en/train")}
    assert len(windows) > 1 and len(utterances) == 1 + len(windows) and not utterances.left_out
    assert " ".join(w["text"] for w in windows.values()) == " ".join([TEXT] * 3)
    ids = [utterances.embeddings.ids[r] for r in utterances.rows]
    source = BatchSource(utterances, batch_size=len(ids), steps=1, seed=0)
    batch, seen = source[0], set()
    for row, index in enumerate(batch.index):
        id_ = ids[index]
        said = backbone.tokenizer.decode(batch.targets[row][batch.weights[row] > 0][:-1].tolist())
        samples = windows[id_]["end"] - windows[id_]["start"] if id_ in windows else len(load_audio(JFK))
        assert said.strip() == (windows[id_]["text"] if id_ in windows else TEXT)
        assert samples <= N_SAMPLES and batch.mask[row].sum() == -(-samples // 320) + 50  # a second of margin
        seen.add(id_)
    assert seen == {*windows, "train1.flac"}


def test_a_window_has_the_latents_of_its_own_sound(run):
    config, workdir, backbone = run
    embeddings = Embeddings(workdir / "embeddings/tiny.en/train")
    last = load_windows(workdir / "embeddings/tiny.en/train")[-1]
    sound = prepared.open_split(workdir, "train")
    row = [x["id"] for x in prepared.open_metadata(workdir, "train")].index(last["parent"])
    part = sound[row]["audio"][last["start"] : last["end"]] / np.float32(32768.0)
    settings = {name: config.embed[name] for name in ("batch_size", "context", "margin_s")}
    (alone,), _ = embed.embed_rows(backbone.model.whisper, backbone.base, [part], **settings)
    np.testing.assert_allclose(embeddings.latents(embeddings.row[last["id"]]), alone, atol=0.02)  # float16 on disk


def test_windows_are_clustered_and_an_evaluation_of_long_recordings_is_no_error(run):
    config, workdir, _ = run
    items, features, fitted = cluster.load(workdir, "tiny.en", config.cluster.layer, "mean")
    held = {x["id"] for x in items if x["split"] == "validation"}
    assert held == {w["id"] for w in load_windows(workdir / "embeddings/tiny.en/validation")} and held
    assert features.shape == (len(items), 384) and fitted.sum() == sum(x["split"] == "train" for x in items)
    assert len(Embeddings(workdir / "embeddings/tiny.en/evaluation")) == 0


def test_what_has_no_latents_is_listed_with_the_reason(run, tmp_path):
    config, workdir, backbone = run
    with pytest.raises(ValueError, match="no utterances in split 'evaluation'"):
        load_utterances(config, workdir, backbone, "evaluation")
    shard = workdir / "embeddings/tiny.en/train/00000.json"
    whole = shard.read_text()
    shard.write_text(whole.replace("train1.flac", "renamed.flac"))  # as if prepared again with another recording
    try:
        utterances = load_utterances(config, workdir, backbone, "train")
        first = lambda item: item["text"] if item["id"].endswith("#0") else ""
        one = load_utterances(config, workdir, backbone, "train", said=first)
    finally:
        shard.write_text(whole)
    assert [(x["id"], x["reason"][:10]) for x in utterances.left_out] == [("train1.flac", "no latents")]
    note_utterances(tmp_path, one, None)
    noted = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert {x["reason"] for x in noted} == {utterances.left_out[0]["reason"], "no text to learn"}
    assert len(one) == 1 and len(noted) == len(utterances)  # all but "#0", and the one without latents
