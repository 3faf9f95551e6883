"""Sound files of any format, rate and channels -> mono samples at 16 kHz. Without JAX, for processes that only read."""

from collections.abc import Iterator
import io
import math
import os
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16_000  # Hz
_BLOCK_S = 10  # seconds decoded at once
_SUPPORTED = "WAV, FLAC, Ogg, MP3, M4A, WebM and what else libsndfile or FFmpeg decodes"


class AudioError(ValueError):
    """A recording that cannot be used; the message names the file, the fault and the remedy."""


def load_audio(
    source: str | Path | io.BytesIO, *, name: str = "a sound in memory", longest_s: float = math.inf
) -> np.ndarray:
    """Samples of a sound file, or of its bytes, mono at 16 kHz, float32 [n] (full scale is +-1).

    Channels are averaged. Files are read in blocks: memory is that of the result, however many channels or hertz.

    Args:
      name: of bytes, in messages; a file has its own.
      longest_s: a longer sound is refused as soon as that is known: a few bytes can hold hours.

    Raises:
      AudioError: the file is missing, a folder, empty, not decodable, without samples, not finite or too long.
    """
    if not isinstance(source, io.BytesIO):
        source = Path(source)
        name = str(source)
        _check_file(source)
    failures = []
    for decoder, blocks in (("libsndfile", _soundfile_blocks), ("FFmpeg", _pyav_blocks)):
        try:
            return _resample(name, blocks(source), longest_s)
        except _DecoderError as error:
            failures.append(f"{decoder}: {error}")
    raise AudioError(f"{name}: found no sound that can be decoded ({'; '.join(failures)}), expected {_SUPPORTED}.")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise AudioError(f"{path}: found a folder, expected a sound file; name the files in it.")
    if not path.exists():
        raise AudioError(f"{path}: no such file; check the name.")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes), expected {_SUPPORTED}; copy or record it again.")


class _DecoderError(Exception):
    """One decoder's reason to give up."""


Blocks = Iterator[tuple[int, np.ndarray]]  # (sample rate in Hz, float32 [n, channels])


def _soundfile_blocks(source: Path | io.BytesIO) -> Blocks:
    import soundfile

    try:
        with soundfile.SoundFile(os.fsencode(source) if isinstance(source, Path) else source) as f:  # names as they are
            while len(block := f.read(_BLOCK_S * f.samplerate, dtype="float32", always_2d=True)):
                yield f.samplerate, block
    except (soundfile.LibsndfileError, TypeError, OSError) as error:  # TypeError: *.raw has no header
        raise _DecoderError(str(error).rsplit(": ", 1)[-1].rstrip(".")) from error


def _pyav_blocks(source: Path | io.BytesIO) -> Blocks:
    import av

    try:
        if isinstance(source, io.BytesIO):
            source.seek(0)
        # Bytes come from strangers: a playlist among them must not make FFmpeg open files or sockets.
        closed = {"protocol_whitelist": "none"} if isinstance(source, io.BytesIO) else {}
        opened = source if isinstance(source, io.BytesIO) else str(source)
        with av.open(opened, mode="r", options=closed) as container:
            if not container.streams.audio:
                raise _DecoderError("the file has no audio stream")
            to_float = av.AudioResampler(format="fltp")  # of the stream's own rate and channels
            for frame in container.decode(container.streams.audio[0]):
                for f in to_float.resample(frame):
                    yield f.sample_rate, f.to_ndarray().T
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _DecoderError(str(error).split(":")[0].rstrip(".") or type(error).__name__) from error


def _resample(name: str, blocks: Blocks, longest_s: float) -> np.ndarray:
    """Blocks of any rate -> mono at 16 kHz [n]."""
    import soxr

    out = bytearray()  # grows in place, where a list of arrays would double the peak at the end
    stream, rate_of_stream, seconds = None, 0, 0.0
    for rate, block in blocks:
        if not np.isfinite(block).all():
            at = seconds + np.argmin(np.isfinite(block).all(axis=1)) / rate
            raise AudioError(f"{name}: a sample at {at:.3f} s is NaN or infinite, expected finite; export it again.")
        if rate_of_stream and rate != rate_of_stream:
            raise AudioError(
                f"{name}: the rate changes from {rate_of_stream} to {rate} Hz at {seconds:.1f} s; split the file there."
            )
        rate_of_stream, seconds = rate, seconds + len(block) / rate
        if seconds > longest_s:
            raise AudioError(f"{name}: longer than {longest_s:g} s, the most that is taken here; split the file.")
        mono = block.mean(axis=1, dtype=np.float32)
        if rate != SAMPLE_RATE:
            stream = stream or soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
            mono = stream.resample_chunk(mono)
        out += mono.tobytes()
    if stream:
        out += stream.resample_chunk(np.zeros(0, np.float32), last=True).tobytes()
    if not out:
        raise AudioError(f"{name}: found no samples, expected some speech; record it again.")
    return np.frombuffer(out, np.float32)
