"""prepare on damaged files, and under kill -9.

python -m benchmarks.corpus_faults fuzz --audio=1000 --json=1000   every one is used or set aside with a reason
python -m benchmarks.corpus_faults kill --times=5                  the shards' bytes are those of an undisturbed run
"""

import argparse
from collections import Counter
from collections.abc import Callable
import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from ml_collections import ConfigDict
import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxmoe.data.sound import load_audio
from jaxmoe.phases import prepare
from tests.data import trees

JFK = Path(__file__).parents[1] / "tests/data/jfk.flac"
FORMATS = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3", "aiff": "AIFF"}


def config_for(corpus: str, path: Path, num_workers: int) -> ConfigDict:
    config = ConfigDict({"seed": 0, "manifest": {"columns": ""}, "sap": {"disfluencies": False}})
    config.data = {"corpus": corpus, "path": str(path), "pretrain_share": 0.2, "num_workers": num_workers}
    config.data.unseen_etiologies = ""
    config.quality = dict(min_seconds=0.3, max_seconds=600.0, max_clipped=0.1, silence_dbfs=-60.0)
    config.quality.update(max_chars_per_second=30.0, min_rate_hz=8000, trim_silence_db=0.0)
    return config


def damage(data: bytes, rng: random.Random) -> bytes:
    """Bit flips, truncation, a stretch of zeros or noise, a piece cut out or doubled."""
    out = bytearray(data)
    kind = rng.randrange(5)
    start = rng.randrange(len(out))
    stop = min(start + rng.randrange(1, 200), len(out))
    if kind == 0:
        for _ in range(rng.randrange(1, 50)):
            at = rng.choice([rng.randrange(len(out)), rng.randrange(min(100, len(out)))])
            out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[rng.choice([start, rng.randrange(min(60, len(out)))]) :]
    elif kind == 2:
        out[start:stop] = bytes(stop - start) if rng.random() < 0.5 else rng.randbytes(stop - start)
    elif kind == 3:
        del out[start:stop]
    else:
        out[start:start] = out[start:stop]
    return bytes(out)


def derange(value: Any, rng: random.Random) -> Any:
    """A JSON value with some of its parts of a wrong type or absurd."""
    absurd = [None, True, -1, 1e308, 10**400, "", "\ud800", "\0", "x" * 100_000, [], {}, [[[[]]]], "../../etc/passwd"]
    if rng.random() < 0.08:
        return rng.choice(absurd)
    if isinstance(value, dict):
        return {k: derange(v, rng) for k, v in value.items() if rng.random() > 0.03}
    return [derange(x, rng) for x in value] if isinstance(value, list) else value


def make_audio(folder: Path, count: int, rng: random.Random) -> Path:
    """A manifest of damaged sound files, with a few whole ones to train on."""
    folder.mkdir(parents=True)
    speech = load_audio(JFK)[:16000]
    whole = {}
    for suffix, name in FORMATS.items():
        soundfile.write(folder / f"whole.{suffix}", speech, 16000, format=name)
        whole[suffix] = (folder / f"whole.{suffix}").read_bytes()
    rows = [f"whole.{suffix},And so my fellow.,whole-{suffix}" for suffix in FORMATS]
    for n in range(count):
        suffix = rng.choice(list(FORMATS))
        (folder / f"{n}.{suffix}").write_bytes(damage(whole[suffix], rng))
        rows.append(f"{n}.{suffix},And so my fellow.,s{n}")
    (folder / "t.csv").write_text("\n".join(["path,text,speaker", *rows]))
    return folder / "t.csv"


def make_json(folder: Path, count: int, rng: random.Random) -> Path:
    """A release of SAP whose metadata are damaged, but for some."""
    folder.mkdir(parents=True)
    clip = folder / "clip.wav"
    soundfile.write(clip, load_audio(JFK)[:16000], 16000)
    for n in range(count + 10):
        name = f"{n:08d}_0_0.wav"
        about = trees.sap_speaker(n, [trees.sap_file(name, n)])
        speaker = folder / "2025-11-02/Train" / str(about["Contributor ID"])
        speaker.mkdir(parents=True)
        os.link(clip, speaker / name)
        data = json.dumps(about).encode()
        if n >= 10:
            broken = json.dumps(derange(about, rng)).encode() if rng.random() < 0.5 else damage(data, rng)
            data = broken
        (speaker / f"{speaker.name}.json").write_bytes(data)
    return folder / "2025-11-02"


def outcomes(workdir: Path) -> tuple[set[str], dict[str, str]]:
    """(sources of what is used, source -> reason of what is set aside)."""
    corpus = workdir / "corpus"
    used = {json.loads(x)["source"] for p in corpus.glob("metadata_*.jsonl") for x in p.read_text("utf-8").splitlines()}
    rows = [json.loads(x) for x in (corpus / "rejected.jsonl").read_text("utf-8").splitlines()]
    return used, {row["source"]: row["reason"] for row in rows}


def fuzz(root: Path, audio: int, jsons: int, num_workers: int = 2) -> dict[str, Any]:
    """Prepares both corpora; counts by outcome. Fails where a file has none."""
    rng = random.Random(0)
    table = make_audio(root / "audio", audio, rng)
    release = make_json(root / "sap", jsons, rng)
    prepare.run(config_for("manifest", table, num_workers), root / "run-audio")
    used, refused = outcomes(root / "run-audio")
    for file in (p for p in (root / "audio").iterdir() if p.suffix != ".csv"):
        assert str(file) in used or refused.get(str(file)), file
    found = {"audio": {"used": len(used), **Counter(refused.values())}}
    prepare.run(config_for("sap", release, 1), root / "run-json")
    used, refused = outcomes(root / "run-json")
    for folder in (release / "Train").iterdir():
        assert any(source.startswith(str(folder)) for source in (*used, *refused)), folder
    return found | {"json": {"used": len(used), **Counter(refused.values())}}


def shards(workdir: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((workdir / "corpus/speech/1.0.0").iterdir())}


def kill(root: Path, times: int, num_workers: int = 2, per_speaker: int = 40) -> dict[str, Any]:
    """Runs prepare straight, and again killed `times` times while it builds; compares the bytes."""
    root.mkdir(parents=True, exist_ok=True)
    speech = (load_audio(JFK) * 32767).astype(np.int16)
    clips = []
    for n in range(8):
        clips.append(root / f"clip{n}.wav")
        soundfile.write(clips[-1], speech[: 16000 * (4 + n)], 16000)
    trees.sap_tree(root / "2025-11-02", 20, per_speaker, trees.linked(clips))
    prepare.run(config_for("sap", root / "2025-11-02", 1), root / "straight")
    command = [sys.executable, __file__, "prepare", f"--folder={root}", f"--num_workers={num_workers}"]
    killed, done = 0, root / "killed/corpus/shards"
    while killed < times:
        before = len(list(done.glob("*.json")))
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        _until(lambda b=before, p=process: len(list(done.glob("*.json"))) > b or p.poll() is not None)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    same = shards(root / "killed") == shards(root / "straight")
    return {"killed": killed, "shards": len(shards(root / "straight")) - 3, "same_bytes": same}


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fuzz", "kill", "prepare"), nargs="?", default="fuzz")
    parser.add_argument("--audio", type=int, default=100)
    parser.add_argument("--json", type=int, default=100)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.what == "prepare":  # what `kill` kills
        prepare.run(config_for("sap", args.folder / "2025-11-02", args.num_workers), args.folder / "killed")
        return
    with tempfile.TemporaryDirectory(prefix="corpus_faults") as folder:
        root = Path(folder)
        found = fuzz(root, args.audio, args.json) if args.what == "fuzz" else kill(root, args.times, args.num_workers)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
