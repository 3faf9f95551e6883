"""A run up to its joint phase over parts of one real recording, with real weights and an untrained mixture."""

import json
from pathlib import Path

import jax
import numpy as np
import soundfile

from configs import quickstart
from jaxmoe import stages
from jaxmoe.checkpoint import save_params
from jaxmoe.data import prepared
from jaxmoe.data.audio import SAMPLE_RATE, load_audio
from jaxmoe.phases import embed, prepare
from jaxmoe.train.setup import load_backbone
from jaxmoe.transcription import transcribe
from jaxmoe.windows import TranscribeOptions
from tests.model.checkpoints import real_weights

JFK = Path(__file__).parents[1] / "data/jfk.flac"
GERMAN = "Und so meine amerikanischen Mitbürger"
PARTS = (  # of whom, in seconds; speakers are named by their split
    ("train", 0.0, 3.2, "And so my fellow Americans"),
    ("validation", 0.2, 3.2, "And so my fellow Americans"),
    ("evaluation", 3.2, 7.9, "Ask not what your country can do for you"),
    ("evaluation", 7.9, 11.0, "Ask what you can do for your country"),
    ("evaluation", 0.1, 7.9, "And so my fellow Americans ask not what your country can do for you"),
)


def make_run(tmp_path, **fields):
    """Its configuration, unlocked, and workdir; recordings are tmp_path/<start>.wav. fields: "group.field" -> value."""
    real_weights("tiny.en")
    sound, lines = load_audio(JFK), ["path,text,speaker,split,translation"]
    for split, start, end, text in PARTS:
        part = sound[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
        soundfile.write(tmp_path / f"{start}.wav", part, SAMPLE_RATE)
        lines.append(f"{start}.wav,{text},{split},{split},{GERMAN if split == 'train' else ''}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    config, workdir = quickstart.get_config("smoke").unlock(), tmp_path / "run"
    config.data.update(corpus="manifest", path=str(tmp_path / "t.csv"), num_workers=1)
    config.embed.variant_clips, config.mesh.data, config.encoder.steps = 0, 1, 0
    config.update_from_flattened_dict(fields)
    prepare.run(config, workdir)
    embed.run(config, workdir)
    backbone = load_backbone(config)
    save_params(workdir / "joint" / "params", backbone.model.init(jax.random.key(0), backbone.base))
    record = {"fingerprint": stages.fingerprint(config, "joint"), "settings": stages.settings(config, "joint")}
    (workdir / "joint" / "phase.json").write_text(json.dumps(record | {"done": True}))
    (workdir / "clusters").mkdir()
    ids = [x["id"] for x in prepared.open_metadata(workdir, "train")]
    one = [1.0] + [0.0] * (config.model.num_experts - 1)
    lines = [json.dumps({"id": id_, "membership": one, "fitted": True}) for id_ in ids]
    (workdir / "clusters" / "assignments.jsonl").write_text("\n".join(lines))
    (workdir / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    return config, workdir


def apart(system, other):
    """The largest difference in each parameter of two systems' encoders."""
    return jax.tree.map(lambda a, b: float(np.abs(a - b).max()), system.params["encoder"], other.params["encoder"])


def text(system, path):
    """What a system hears in a recording, greedily."""
    (step,) = transcribe(system, [lambda: load_audio(path)], TranscribeOptions(beam_size=1, temperatures=(0.0,)))
    return step.transcript.text
