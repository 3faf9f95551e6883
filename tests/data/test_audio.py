"""Decoding of sound files of every sort, and parity of the log-mel spectrogram with transformers'."""

import io
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import soxr
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from jaxmoe.data import audio

JFK = Path(__file__).with_name("jfk.flac")


def tone(rate: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    """440 Hz at half scale; the second channel is silent. [n, channels]"""
    x = np.zeros((int(rate * seconds), channels), np.float32)
    x[:, 0] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(x)) / rate)
    return x


def write_av(path: Path, codec: str, rate: int, x: np.ndarray) -> None:
    layout = "stereo" if x.shape[1] == 2 else "mono"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x.T), format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.codec_context.frame_size or 1024)
        for f in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(f))
        container.mux(stream.encode(None))


def assert_is_tone(x: np.ndarray, amplitude: float, tolerance: float) -> None:
    assert x.dtype == np.float32 and x.ndim == 1
    middle = x[2000 : 2000 + 12000]
    t = np.arange(len(middle)) / 16000
    found = 2 * np.abs(np.mean(middle * np.exp(-2j * np.pi * 440 * t)))
    assert found == pytest.approx(amplitude, abs=tolerance)
    assert np.std(middle) == pytest.approx(amplitude / np.sqrt(2), abs=tolerance)  # and nothing but the tone


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_wav_of_every_width_and_rate(tmp_path, subtype, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype=subtype)
    x = audio.load_audio(tmp_path / "a.wav")
    assert len(x) == 16000
    assert_is_tone(x, 0.5, 0.01 if subtype in ("PCM_U8", "ULAW") else 1e-3)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_channels_are_averaged(tmp_path, name):
    soundfile.write(tmp_path / name, tone(48000, channels=2), 48000)
    assert_is_tone(audio.load_audio(tmp_path / name), 0.25, 0.01)


@pytest.mark.parametrize(
    "name, codec", [("a.m4a", "aac"), ("a.aac", "aac"), ("a.webm", "libopus"), ("a.mkv", "pcm_s24le")]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_only_ffmpeg_decodes(tmp_path, name, codec, channels):
    write_av(tmp_path / name, codec, 48000, tone(48000, channels=channels))
    x = audio.load_audio(tmp_path / name)
    assert len(x) == pytest.approx(16000, abs=16000 * 0.1)  # the padding of lossy codecs
    assert_is_tone(x, 0.5 / channels, 0.01)


def test_blocks_join_as_if_resampled_at_once(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.5, 0.5, 44100 * 25).astype(np.float32)  # more than two blocks
    soundfile.write(tmp_path / "a.wav", x, 44100, subtype="FLOAT")
    y, whole = audio.load_audio(tmp_path / "a.wav"), soxr.resample(x, 44100, 16000)
    assert len(y) == len(whole) == 16000 * 25
    np.testing.assert_allclose(y, whole, atol=1e-6)  # the stream's filter is that of the whole


def test_result_may_be_written_to(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    audio.load_audio(tmp_path / "a.wav")[0] = 1.0


def faulty(folder: Path) -> dict[str, Path]:
    """One file of each fault."""
    files = {name: folder / f"{name}.wav" for name in ("missing", "empty", "text", "none", "nan", "video", "binary")}
    files["folder"] = folder
    files["empty"].write_bytes(b"")
    files["text"].write_text("This is not sound.\n" * 100)
    files["binary"].write_bytes(np.random.default_rng(0).bytes(5000))
    soundfile.write(files["none"], np.zeros(0), 16000)
    soundfile.write(files["nan"], np.where(np.arange(16000) == 8000, np.nan, 0.1), 16000, subtype="FLOAT")
    with av.open(str(files["video"]), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return files


@pytest.mark.parametrize(
    "fault, message",
    {
        "missing": "no such file",
        "folder": "found a folder",
        "empty": r"empty \(0 bytes\)",
        "text": "no sound that can be decoded",
        "binary": "no sound that can be decoded",
        "none": "no samples",
        "nan": r"at 0\.500 s is NaN or infinite",
        "video": "no audio stream",
    }.items(),
)
def test_faults_are_named(tmp_path, fault, message):
    path = faulty(tmp_path)[fault]
    with pytest.raises(audio.AudioError, match=message) as caught:
        audio.load_audio(path)
    assert str(path) in str(caught.value)


def test_bytes_open_nothing_else_and_hold_no_more_than_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jfk.flac").write_bytes(JFK.read_bytes())
    playlist = b"ffconcat version 1.0\nfile jfk.flac\n"
    sdp = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
    for content in (playlist, sdp):
        with pytest.raises(audio.AudioError, match="clip: found no sound"):
            audio.load_audio(io.BytesIO(content), name="clip")
    assert len(audio.load_audio(io.BytesIO(JFK.read_bytes()), longest_s=11)) == 11 * 16000
    with pytest.raises(audio.AudioError, match=r"clip: longer than 10\.5 s"):
        audio.load_audio(io.BytesIO(JFK.read_bytes()), name="clip", longest_s=10.5)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_filters_are_slaneys(n_mels):
    theirs = mel_filter_bank(201, n_mels, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(audio.mel_filters(n_mels).T, theirs, atol=1e-8)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_is_whispers(n_mels):
    speech = audio.load_audio(JFK)
    quiet = 0.01 * speech[40000:100000]
    batch = np.stack([audio.pad_or_trim(speech), audio.pad_or_trim(quiet)])
    ours = np.asarray(audio.log_mel_spectrogram(jnp.asarray(batch), n_mels))
    assert ours.shape == (2, n_mels, audio.N_FRAMES) and ours.dtype == np.float32
    extract = WhisperFeatureExtractor(feature_size=n_mels)
    for x, y in zip(batch, ours, strict=True):
        # transformers' extraction without torch has a float64 FFT; with torch a float32 one, which is off by 2e-5
        # itself where a band lies 80 dB below the loudest.
        theirs = extract._np_extract_fbank_features(x[None], device="cpu")[0]
        np.testing.assert_allclose(y, theirs, atol=2e-5)


def test_the_floor_is_of_each_item():
    loud, quiet = audio.load_audio(JFK)[:48000], 1e-3 * audio.load_audio(JFK)[48000:96000]
    together = audio.log_mel_spectrogram(jnp.asarray(np.stack([loud, quiet])), 80)
    alone = audio.log_mel_spectrogram(jnp.asarray(quiet[None]), 80)
    np.testing.assert_allclose(together[1], alone[0], atol=1e-6)


def test_the_path_of_accelerators_is_the_same():
    x = jnp.asarray(np.stack([audio.load_audio(JFK)[:48000], audio.load_audio(JFK)[48000:96000]]))
    vectorised = jax.vmap(lambda item: audio._log_mel(item, 80))(x)
    np.testing.assert_allclose(vectorised, audio.log_mel_spectrogram(x, 80), atol=1e-6)


def test_samples_must_be_a_batch_of_floats():
    with pytest.raises(ValueError, match=r"int16\[1, 16000\], expected floats"):
        audio.log_mel_spectrogram(jnp.zeros((1, 16000), jnp.int16), 80)
    with pytest.raises(ValueError, match="pad short ones"):
        audio.log_mel_spectrogram(jnp.zeros((1, 100)), 80)


def test_pad_or_trim():
    assert audio.pad_or_trim(np.ones((2, 5)), 3).shape == (2, 3)
    np.testing.assert_array_equal(audio.pad_or_trim(np.ones(2), 4), [1, 1, 0, 0])


def test_loud_positions_leave_out_what_is_25_db_below_the_loudest_frame():
    x = np.concatenate([tone(16000)[:, 0], 0.1 * tone(16000)[:, 0], 0.01 * tone(16000)[:, 0]])  # 0, -20, -40 dB
    loud = np.asarray(audio.loud_positions(audio.log_mel_spectrogram(jnp.asarray(x[None]), 80)))[0]
    assert loud.shape == (150,)
    np.testing.assert_array_equal(loud[[10, 40, 60, 90, 110, 140]], [True, True, True, True, False, False])
