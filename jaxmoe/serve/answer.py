"""A transcript as OpenAI's API answers it."""

import math
from typing import Any

from starlette.responses import JSONResponse, Response
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from jaxmoe import writers
from jaxmoe.segments import segment_dict
from jaxmoe.serve.engine import Result

TEXT = {"srt": ("srt", "text/plain"), "vtt": ("vtt", "text/vtt")}


def answer(result: Result, response_format: str) -> Response:
    """The response to a request.

    json has OpenAI's `text`; verbose_json also segments with openai/whisper's names. Ours beside them: `flags` (doubts,
    of all and of each segment), `withheld` (what was written where no speech is heard), `translation`.
    """
    transcript = result.transcript
    if response_format == "text":
        return Response(f"{transcript.text}\n", media_type="text/plain")
    if response_format in TEXT:
        name, kind = TEXT[response_format]
        return Response(writers.WRITERS[name](writers.cues(transcript)), media_type=kind)
    body: dict[str, Any] = {"text": transcript.text}
    if response_format == "verbose_json":
        body = {
            "task": "transcribe",
            "language": LANGUAGES.get(transcript.language, transcript.language),
            "duration": transcript.duration_s,
            "text": transcript.text,
            "segments": [segment_dict(s, i) for i, s in enumerate(transcript.segments)],
            "flags": transcript.flags,
        }
    body["usage"] = {"type": "duration", "seconds": math.ceil(transcript.duration_s)}
    if result.translation is not None:
        body["translation"] = _translation(result.translation, response_format)
    return JSONResponse(body)


def _translation(found: dict[str, Any], response_format: str) -> dict[str, Any]:
    keep = ("translator", "text", "error", "sentences")[: 4 if response_format == "verbose_json" else 3]
    return {"language": "de", "text": None} | {name: found[name] for name in keep if name in found}
