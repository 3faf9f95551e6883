"""Phase salmonn and its rows from end to end, on random models in the formats that releases have."""

import json
import shutil

from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import quickstart
from jaxmoe.data import lineage, prepared
from jaxmoe.eval import salmonn as rows
from jaxmoe.eval.systems import SALMONN, TUNED_SALMONN, Clip, NotRun
from jaxmoe.model.load.tree import LoadError
from jaxmoe.phases import salmonn
from jaxmoe.train.salmonn import open_salmonn
from tests import stored
from tests.model import salmonn_golden as golden
from tests.model import tiny_llm
from tests.model.checkpoints import random_whisper, real_weights

torch = pytest.importorskip("torch")
CFG = dict(
    encoder_layers=1, encoder_embed_dim=32, encoder_attention_heads=4, encoder_ffn_embed_dim=64, embed_dim=24,
    input_patch_size=16, conv_pos=8, conv_pos_groups=4, num_buckets=32, max_distance=80, conv_bias=False,
    activation_fn="gelu", layer_norm_first=False, deep_norm=True, relative_position_embedding=True, gru_rel_pos=True,
)  # fmt: skip
BEATS = dict(layers=1, d=32, heads=4, mlp=64, patch=24, conv=8, groups=4, buckets=32)


def corpus(workdir, count=3):
    rng = np.random.default_rng(0)
    for name in ("train", "validation", "evaluation"):
        made = []
        for i in range(count):
            row = {k: "x" for k in prepared.STRINGS} | {k: False for k in prepared.BOOLEANS}
            audio = rng.integers(-3000, 3000, 16000 + 800 * i).astype(np.int16)
            row |= {"id": f"{name}-{i}", "text": f"The fox {i}.", "translation": f"Der Fuchs {i}." if i else ""}
            row |= {"speaker": f"{name}-speaker"}
            made.append(row | {"audio": audio, "duration_s": len(audio) / 16000})
        yield name, made


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[ConfigDict, object]:
    folder = tmp_path_factory.mktemp("salmonn")
    whisper = random_whisper(encoder_layers=1, decoder_layers=1, max_source_positions=1500)
    whisper.save_pretrained(folder / "whisper")
    shutil.copy(real_weights("tiny.en") / "tokenizer.json", folder / "whisper")
    tiny_llm.write_folder(tiny_llm.model(), folder / "llm")
    beats = {n: torch.tensor(x) for n, x in golden.weights(golden.beats_shapes(**BEATS), "beats.").items()}
    torch.save({"cfg": CFG, "model": beats}, folder / "beats.pt")
    config = quickstart.get_config("smoke").unlock()
    config.model.backbone, config.embed.context = str(folder / "whisper"), "full"
    config.salmonn.update(llm=str(folder / "llm"), beats=str(folder / "beats.pt"), width=64, rank=2, dropout=0.0)
    config.salmonn.update(template="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", end="<|im_end|>")
    config.salmonn.update(spell_steps=3, steps=2, batch_size=2, lr=1e-2, warmup=1, log_every=1, save_every=1)
    config.salmonn.update(beam_size=2, max_tokens=3)
    config.evaluate.batch_size = config.mesh.data = config.mesh.model = 2
    workdir = folder / "run"
    stored.write(workdir / "corpus", dict(corpus(workdir)))
    return config.lock(), workdir


def clips(workdir):
    source = prepared.open_split(workdir, "evaluation")
    return [Clip(x["id"], x["text"], x["duration_s"], lambda x=x: x["audio"] / np.float32(32768)) for x in source]


def test_training_and_both_rows(run):
    config, workdir = run
    salmonn.run(config, workdir)
    lines = [json.loads(x) for x in (workdir / "salmonn" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2] and all(np.isfinite(x["validation_nll"]) for x in lines)
    spelt = [json.loads(x) for x in (workdir / "salmonn" / "spelling" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in spelt] == [1, 2, 3] and all(np.isfinite(x["validation_nll"]) for x in spelt)
    assert lineage.trained_on(workdir, "train-speaker") == [workdir / "salmonn"]
    assert not lineage.trained_on(workdir, "evaluation-speaker")
    found = clips(workdir)
    before = [r for b in rows.zero_shot(config, workdir, SALMONN, found) for r in b]
    after = [r for b in rows.tuned(config, workdir, TUNED_SALMONN, found) for r in b]
    assert {r["id"] for r in before} == {r["id"] for r in after} == {c.id for c in found}
    assert all(isinstance(r["translation"], str) and r["hypothesis"] == "" for r in after)


def test_a_release_is_read_and_its_names_are_strict(run, tmp_path):
    config, _ = run
    shapes = golden.connector_shapes(3, 64, d=64, mlp=256, speech=32, audio=32, rank=2)
    shapes = {n: (32, 2) if "v_proj.lora_B" in n else s for n, s in shapes.items()}  # grouped queries: half the keys
    state = {n: torch.tensor(x) for n, x in golden.weights(shapes).items()}
    torch.save({"model": state, "epoch": 1}, tmp_path / "release.pth")
    config = config.copy_and_resolve_references().unlock()
    config.salmonn.weights = str(tmp_path / "release.pth")
    params = open_salmonn(config, scan=True).params
    np.testing.assert_array_equal(params["connector"]["query_tokens"], state["speech_query_tokens"])
    del state["ln_audio.bias"]
    torch.save({"model": state}, tmp_path / "release.pth")
    with pytest.raises(LoadError, match=r"- ln_audio\.bias"):
        open_salmonn(config, scan=True)


def test_without_a_language_model_the_rows_say_so(run):
    config = quickstart.get_config("smoke")
    with pytest.raises(NotRun, match=r"config\.salmonn\.llm"):
        next(rows.zero_shot(config, run[1], SALMONN, []))
