"""Exports: the tools they are for compute what the run's own mixture does with its gates held; errors leave nothing.

Small random weights; windows and texts have Whisper's real sizes, which transformers and faster-whisper insist on.
"""

import functools
import json
from pathlib import Path
import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from jaxmoe import export, stages, system
from jaxmoe import options as shared_options
from jaxmoe.checkpoint import save_params
from jaxmoe.data import embeddings, prepared
from jaxmoe.data.audio import N_SAMPLES, SAMPLE_RATE, load_audio, log_mel_spectrogram
from jaxmoe.model import offsets
from jaxmoe.model.decode import DecodingOptions, decode
from jaxmoe.model.load import load_whisper
from jaxmoe.model.moe import make_moe, one_lora
from jaxmoe.phases.embed import embed_rows
from jaxmoe.system import personal_folder, read_run
from tests import stored
from tests.model.checkpoints import random_whisper, real_weights

JFK = Path(__file__).parent / "data" / "jfk.flac"
SPEAKERS = ("train", "train", "train", "ann", "ann")  # of the recordings; ann is held out
LONGEST = 20  # tokens decoded
TOKENS = [50257, 50362, 843, 523, 616, 5891]  # <|startoftranscript|><|notimestamps|> And so my fellow


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A random Whisper in transformers' format, which writes more than one word."""
    folder = tmp_path_factory.mktemp("backbone") / "small"
    sizes = dict(max_source_positions=1500, max_target_positions=448, encoder_layers=2, bos_token_id=50256)
    sizes |= dict(eos_token_id=50256, pad_token_id=50256, decoder_start_token_id=50257)
    random_whisper(**sizes).save_pretrained(folder)
    shutil.copy(real_weights("tiny.en") / "tokenizer.json", folder)
    return folder


def moved(tree, seed: int, by: float = 0.1):
    """As if it had been trained."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x) + by * rng.standard_normal(x.shape).astype(np.float32), tree)


@pytest.fixture(scope="module")
def workdir(backbone, tmp_path_factory) -> Path:
    """A run with a mixture and one LoRA."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = quickstart.get_config().unlock()
    config.model.update(backbone=str(backbone), num_experts=3, rank=2, shared_rank=3, gate_hidden=16, remat=False)
    rows = [row(f"{speaker}/{i}", speaker, i) for i, speaker in enumerate(SPEAKERS)]
    splits = {"train": [r for r in rows if r["speaker"] == "train"]}
    splits["evaluation"] = [r for r in rows if r["speaker"] == "ann"]
    stored.write(folder / "corpus", splits)
    rng = np.random.default_rng(0)
    for split, members in splits.items():
        depths = rng.standard_normal((len(members), 4, 2, 32))
        latents = [np.zeros((2, 32))] * len(members)
        embeddings.write_shard(folder / "embeddings/small" / split, 0, [r["id"] for r in members], latents, depths)
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict(), "git_commit": "c0ffee"}))
    dims, base, _ = load_whisper(backbone)
    fields = {k: v for k, v in config.model.to_dict().items() if k not in ("backbone", "second")}
    model = make_moe(dims, **fields)
    for phase, trained, seed in (("joint", model, 1), ("baseline", one_lora(model), 2)):
        save_params(folder / phase / "params", moved(trained.init(jax.random.key(0), base), seed))
        record = {"phase": phase, "settings": stages.settings(config, phase), "done": True}
        (folder / phase / "phase.json").write_text(json.dumps(record))
    return folder


def row(id_: str, speaker: str, number: int) -> dict:
    """A prepared recording."""
    said = load_audio(JFK)[number * SAMPLE_RATE :][: 2 * SAMPLE_RATE]
    text = dict.fromkeys(prepared.STRINGS, "") | {"id": id_, "speaker": speaker, "text": "And so"}
    flags = dict.fromkeys(prepared.BOOLEANS, False)
    return {**text, **flags, "duration_s": 2.0, "audio": (said * 32767).astype(np.int16)}


@pytest.fixture
def encoder_adapted(workdir, tmp_path) -> Path:
    """The same run after phase encoder."""
    folder = Path(shutil.copytree(workdir, tmp_path / "run"))
    run = read_run(folder)
    save_params(folder / "encoder" / "params", moved(offsets.init(run.model, run.base, rank=2), 3))
    record = json.loads((folder / "joint" / "phase.json").read_text())
    record["settings"]["encoder"] = {"rank": 2}
    (folder / "encoder" / "phase.json").write_text(json.dumps(record))
    return folder


def exported(workdir: Path, folder: Path, *options: str) -> Path:
    assert export.main([f"--checkpoint={workdir}", f"--output_dir={folder}", *options]) == 0
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]
    return folder


def test_one_expert_is_held_without_loss():
    fixed = export.fix(SimpleNamespace(name="run/joint", model=SimpleNamespace(num_experts=1)), Path(), None, "")
    assert fixed.gates.tolist() == [[1.0]] and not fixed.cost


def sound() -> np.ndarray:
    """30 s of speech: how shorter ones are padded differs between the tools."""
    return np.tile(load_audio(JFK), 3)[:N_SAMPLES]


@functools.cache
def mel() -> np.ndarray:
    return np.array(log_mel_spectrogram(sound()[None], 80))


def encode(run) -> jax.Array:
    heard = jnp.asarray(mel())
    return run.model.whisper.apply({"params": run.base}, heard, method=lambda whisper, x: whisper.encoder(x))[0]


def held(run, gates: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Our logits [1, T, V] of TOKENS, and our greedy text, with the mixture at these gates [1, E]."""
    latents = encode(run)
    logits = run.model.logits(run.base, run.params, latents, jnp.array([TOKENS]), jnp.asarray(gates), exact_top_k=False)
    mixture = dict(columns=run.model.columns(run.params), scales=run.model.scales(jnp.asarray(gates)))
    fields = dict(prompt=TOKENS[:2], tokenizer=run.tokenizer, options=DecodingOptions(max_tokens=LONGEST))
    (tokens,) = decode(run.model.whisper, run.base, latents, **fields, **mixture).tokens
    return np.asarray(logits), tokens


def mean_gates(run, workdir: Path, split: str) -> np.ndarray:
    stored_ones = embeddings.Embeddings(workdir / "embeddings/small" / split)
    return np.asarray(run.model.gates(run.model.gate_logits(run.params, stored_ones.pooled))).mean(0, keepdims=True)


def theirs(model) -> tuple[np.ndarray, list[int]]:
    """transformers' logits [1, T, V] of TOKENS, and its greedy text, with the settings of the folder alone."""
    torch = pytest.importorskip("torch")
    features = torch.tensor(mel())
    with torch.no_grad():
        logits = model(input_features=features, decoder_input_ids=torch.tensor([TOKENS])).logits.numpy()
        (tokens,) = model.generate(input_features=features, max_new_tokens=LONGEST).tolist()
    return logits, [t for t in tokens if t not in (*TOKENS[:2], 50256)]


def hf_model(folder: Path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()


def assert_same(ours, other) -> None:
    np.testing.assert_allclose(other[0], ours[0], atol=1e-4)  # float32 of two libraries; logits are of some tens
    assert other[1] == ours[1] and len(ours[1]) > 3


CASES = [
    (["--gates=mean"], lambda run, workdir: mean_gates(run, workdir, "train")),
    (["--gates=2"], lambda run, workdir: np.eye(3, dtype=np.float32)[[2]]),
    (["--speaker=ann"], lambda run, workdir: mean_gates(run, workdir, "evaluation")),
    (["--system=lora"], lambda run, workdir: np.zeros((1, 0), np.float32)),
]


def test_what_cascade_made_of_the_mixture_is_read_by_its_name(workdir, tmp_path):
    folder = Path(shutil.copytree(workdir, tmp_path / "run"))
    like = read_run(folder)
    save_params(folder / "cascade/risk/params", jax.tree.map(lambda x: 2.0 * x, like.params))
    shutil.copy(folder / "joint" / "phase.json", folder / "cascade")
    run = read_run(folder, system="moe-risk")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2.0 * b), run.params, like.params)
    assert run.name == "run/risk" and not run.own_encoder
    jax.tree.map(np.testing.assert_array_equal, read_run(folder).params, like.params)
    save_params(personal_folder(folder, "ann") / "params", offsets.init(run.model, run.base))
    shutil.copy(folder / "joint" / "phase.json", folder / "personalize")
    assert read_run(folder, "ann").name == "run/ann"
    with pytest.raises(ValueError, match="leave --system=moe out"):
        read_run(folder, "ann", "moe")


@pytest.mark.parametrize(("options", "gates"), CASES, ids=lambda x: x[0] if isinstance(x, list) else "")
def test_logits_and_text_are_those_of_the_mixture_with_its_gates_held(workdir, backbone, tmp_path, options, gates):
    run = read_run(workdir, system="lora" if "--system=lora" in options else "moe")
    ours = held(run, gates(run, workdir))
    merged = hf_model(exported(workdir, tmp_path / "hf", "--format=hf", *options))
    assert_same(ours, theirs(merged))
    peft = pytest.importorskip("peft")
    folder = exported(workdir, tmp_path / "peft", "--format=peft", *options)
    adapted = peft.PeftModel.from_pretrained(hf_model(backbone), str(folder)).eval()
    adapted.base_model.model.generation_config = merged.generation_config  # OpenAI's models have the same
    assert_same(ours, theirs(adapted))


@pytest.mark.parametrize("personal", [False, True])
def test_an_encoder_that_is_adapted_is_merged_and_heard_with(encoder_adapted, tmp_path, personal):
    """The mean is of gates by that encoder, over recordings heard anew."""
    options, speaker = ["--format=hf"], ""
    if personal:
        run, speaker = read_run(encoder_adapted), "ann"
        save_params(personal_folder(encoder_adapted, speaker) / "params", moved(offsets.init(run.model, run.base), 4))
        shutil.copy(encoder_adapted / "encoder" / "phase.json", encoder_adapted / "personalize")
        options += [f"--speaker={speaker}"]
    folder = exported(encoder_adapted, tmp_path / "out", *options)
    run = read_run(encoder_adapted, speaker)
    split = "evaluation" if personal else "train"
    sounds = [x["audio"] / np.float32(32768.0) for x in prepared.open_split(encoder_adapted, split)]
    fields = dict(batch_size=2, context="trimmed", margin_s=1.0)
    pooled = embed_rows(run.model.whisper, run.base, sounds, **fields)[1][:, -1, 0]
    gates = np.asarray(run.model.gates(run.model.gate_logits(run.params, pooled))).mean(0, keepdims=True)
    assert_same(held(run, gates), theirs(hf_model(folder)))


def test_what_can_be_chosen_is_what_a_run_can_hold():
    assert shared_options.SYSTEMS == tuple(system.FOLDERS)


def test_an_adapted_encoder_is_no_lora(encoder_adapted, tmp_path, capsys):
    out = tmp_path / "out"
    assert export.main([f"--checkpoint={encoder_adapted}", "--format=peft", f"--output_dir={out}"]) == 1
    assert "biases and norms, which are no LoRA; take --format=hf, or" in capsys.readouterr().err and not out.exists()
    exported(encoder_adapted, out, "--format=peft", "--system=moe")  # that one hears with Whisper's own


@pytest.fixture(scope="module")
def converted(workdir, tmp_path_factory) -> Path:
    pytest.importorskip("ctranslate2")
    return exported(workdir, tmp_path_factory.mktemp("ct2") / "out", "--format=ctranslate2")


def test_faster_whisper_hears_and_says_the_same(workdir, converted, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ctranslate2 = pytest.importorskip("ctranslate2")
    model = pytest.importorskip("faster_whisper").WhisperModel(str(converted), device="cpu", compute_type="float32")
    run = read_run(workdir)
    found = np.asarray(model.model.encode(ctranslate2.StorageView.from_array(mel())))
    np.testing.assert_allclose(found, encode(run), atol=1e-3)  # its GELU is an approximation
    fields = dict(without_timestamps=True, beam_size=1, temperature=0.0, max_new_tokens=LONGEST)
    segments, _ = model.transcribe(sound(), no_speech_threshold=None, **fields)
    _, tokens = held(run, mean_gates(run, workdir, "train"))
    said = next(iter(segments)).tokens  # CTranslate2 stops at half of the length it is given
    assert said == tokens[: len(said)] and len(said) >= LONGEST // 2


def test_int8_is_smaller_and_loads(workdir, converted, tmp_path):
    folder = exported(workdir, tmp_path / "out", "--format=ctranslate2", "--dtype=int8")
    size = lambda f: (f / "model.bin").stat().st_size
    assert size(folder) < 0.4 * size(converted)
    load_whisper(folder)


def test_half_precision_and_the_files_that_the_tools_read(workdir, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = exported(workdir, tmp_path / "new" / "out", "--format=hf", "--dtype=float16")
    whole = load_whisper(exported(workdir, tmp_path / "whole", "--format=hf"))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), load_whisper(folder)[1], whole)
    processor = transformers.WhisperProcessor.from_pretrained(folder, local_files_only=True)
    features = processor(sound(), sampling_rate=SAMPLE_RATE, return_tensors="np").input_features
    np.testing.assert_allclose(features, mel(), atol=1e-4)
    assert processor.batch_decode([[*TOKENS, 50256]], skip_special_tokens=True) == [" And so my fellow"]
    card = (folder / "README.md").read_text()
    assert 'base_model: "' in card and "c0ffee" in card and "mean of its gate over 3 training utterances" in card
    assert {p.stat().st_mode & 0o077 for p in folder.iterdir()} == {(folder / "README.md").stat().st_mode & 0o077}


def without(*phases: str):
    return lambda folder: [shutil.rmtree(folder / phase) for phase in phases]


ERRORS = [
    (["--system=moe"], without("joint"), "has no joint/params; run --phase=joint, or take one of lora"),
    (["--system=lora"], without("baseline"), "run --phase=baseline, or take one of moe"),
    (["--system=moe-risk"], None, "no cascade/risk/params; run --phase=cascade, or take one of moe, lora"),
    ([], lambda f: [without("baseline")(f), (f / "joint").rename(f / "encoder")], "no trained run; expected joint"),
    ([], without("joint", "baseline"), "no trained run; expected joint or baseline with params"),
    (["--gates=3"], None, "--gates=3: the run has experts 0 to 2; name one of them, or mean"),
    (["--speaker=bob"], None, "--speaker=bob: .* has no recording of up to 30 s; ids are those of corpus/metadata"),
    (["--speaker=ann", "--gates=1"], None, "nothing of theirs is left to use"),
    (["--system=lora", "--gates=1"], None, "--gates=1 is for a mixture, and run/baseline is one LoRA"),
    (["--dtype=int8"], None, "--dtype=int8 is for --format=ctranslate2"),
    ([], lambda folder: (folder.parent / "out").write_text("x"), "found a file, expected no folder or an empty one"),
]


@pytest.mark.parametrize(("options", "change", "message"), ERRORS, ids=lambda x: x[:30] if isinstance(x, str) else "")
def test_what_cannot_be_exported_is_said_and_leaves_nothing(workdir, tmp_path, capsys, options, change, message):
    folder, out = Path(shutil.copytree(workdir, tmp_path / "run")), tmp_path / "out"
    if change:
        change(folder)
    before = sorted(tmp_path.iterdir())
    assert export.main([f"--checkpoint={folder}", "--format=hf", f"--output_dir={out}", *options]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == before


def test_files_are_not_overwritten_and_a_failure_leaves_none(workdir, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    exported(workdir, out, "--format=peft")  # an empty folder is as good as none
    kept = {p.name: p.read_bytes() for p in out.iterdir()}
    assert export.main([f"--checkpoint={workdir}", "--format=hf", f"--output_dir={out}"]) == 1
    assert "found README.md, adapter_config.json" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == kept

    def full(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(KeyboardInterrupt):
        export.main([f"--checkpoint={workdir}", "--format=hf", f"--output_dir={tmp_path / 'other'}"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_missing_package_is_said_with_what_to_install(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    out = tmp_path / "out"
    assert export.main([f"--checkpoint={workdir}", "--format=ctranslate2", f"--output_dir={out}"]) == 1
    assert "needs torch and ctranslate2" in (said := capsys.readouterr().err) and ".[export]" in said
