"""A request for a transcript: a form of OpenAI's API -> what is to be done. What is not supported is an error."""

import asyncio
from collections.abc import AsyncGenerator
import dataclasses
import math

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from jaxmoe.options import temperatures
from jaxmoe.serve.engine import Engine, Task
from jaxmoe.serve.errors import ApiError

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
FIELDS = (
    *("file", "model", "language", "prompt", "response_format", "temperature", "timestamp_granularities[]", "stream"),
    *("translate_to", "speaker"),  # ours
)
ALIAS = "whisper-1"  # what OpenAI's clients name by habit; /v1/models lists it
UPLOAD_S = 600.0  # how long a recording may take to arrive
FORM_BYTES = 64 * 1024  # of all that is no recording


class _InMemory(MultiPartParser):
    spool_max_size = 0  # a recording is never written to disk, of whatever size


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked for, and in which form."""

    task: Task
    response_format: str


async def read(request: Request, engine: Engine, max_bytes: int) -> Wanted:
    """The form of a request.

    Raises:
      ApiError: for what is not supported, too large or no form.
      ClientDisconnect: where the client has gone.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError(400, f"Content-Type is {kind!r}, expected multipart/form-data.")
    parser = _InMemory(request.headers, _bounded(request, max_bytes), max_files=1, max_fields=32,
                       max_part_size=FORM_BYTES)  # fmt: skip
    try:
        async with asyncio.timeout(UPLOAD_S):
            form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, f"the form cannot be read: {error.message} Expected one file and short fields.") from None
    except TimeoutError:
        raise ApiError(408, f"the recording took more than {UPLOAD_S:g} s to arrive, expected less.") from None
    try:
        return await _wanted(form, engine)
    finally:
        await form.close()


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body, as long as it is not too large."""
    most = max_bytes + FORM_BYTES
    said = request.headers.get("content-length", "0")
    size = int(said) if said.isdecimal() else 0
    found = f"{size / 1e6:.1f} MB"
    if size <= most:
        size, found = 0, "more"
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                break
            yield chunk
    if size > most:
        message = f"the recording is too large: found {found}, expected at most {max_bytes / 1e6:g} MB; mp3 is smaller."
        raise ApiError(413, message, param="file", code="file_too_large")


async def _wanted(form: FormData, engine: Engine) -> Wanted:
    _check_names(form)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "found no file in the field 'file', expected a recording.", param="file")
    text = {name: str(form[name]).strip() for name in form if name != "file"}
    language = text.get("language") or engine.args.language
    answer = text.get("response_format") or "json"
    _choice("response_format", answer, FORMATS)
    _choice("model", text.get("model") or ALIAS, (engine.name, ALIAS), "model_not_found")
    _choice("language", language, engine.languages)
    _choice("stream", (text.get("stream") or "false").lower(), ("false",))
    if text.get("prompt"):
        raise ApiError(400, "prompt is not supported, expected none: leave it out.", param="prompt")
    _check_granularities(form, answer)
    fields: dict[str, object] = {"language": language}
    if text.get("temperature"):
        step = engine.args.temperature_increment_on_fallback
        fields["temperatures"] = temperatures(_temperature(text["temperature"]), step)
    translate = _translates(text.get("translate_to", ""), language, answer, engine)
    name = (file.filename or "the recording").replace("\\", "/").rpartition("/")[2]
    task = Task(await file.read(), name, _speaker(text.get("speaker", ""), engine), fields, translate)
    return Wanted(task, answer)


def _check_names(form: FormData) -> None:
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if name not in FIELDS:
            raise ApiError(400, f"found the field {name!r}, expected only {', '.join(FIELDS)}.", param=name)
        if names.count(name) > 1 and not name.endswith("[]"):
            raise ApiError(400, f"found the field {name!r} {names.count(name)} times, expected once.", param=name)


def _choice(name: str, found: str, expected: tuple[str, ...] | list[str], code: str | None = None) -> None:
    if found not in expected:
        raise ApiError(400, f"{name} is {found!r}, expected {' or '.join(expected)}.", param=name, code=code)


def _check_granularities(form: FormData, answer: str) -> None:
    name = "timestamp_granularities[]"
    asked = [str(value).strip() for value in form.getlist(name)]
    for value in asked:
        _choice(name, value, ("segment",))  # there are no times of words
    if asked and answer != "verbose_json":
        raise ApiError(400, f"{name} is for response_format=verbose_json, found {answer}.", param=name)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise ApiError(400, f"temperature is {text!r}, expected a number from 0 to 1.", param="temperature")
    return value


def _translates(target: str, language: str, answer: str, engine: Engine) -> bool:
    if not target:
        return False
    fail = lambda message: ApiError(400, message, param="translate_to")
    if engine.translator is None:
        raise fail(f"translate_to is {target!r}, but this server was started without --translate_to, expected none.")
    _choice("translate_to", target, (engine.args.translate_to,))
    if language != "en":
        raise fail(f"translate_to translates English, found language={language}.")
    if answer not in ("json", "verbose_json"):
        raise fail(f"translate_to is for response_format=json or verbose_json, found {answer}.")
    return True


def _speaker(speaker: str, engine: Engine) -> str:
    if speaker and not engine.knows(speaker):
        known = " or ".join(engine.speakers()) or "none: nobody has a personal adaptation here"
        raise ApiError(400, f"speaker is {speaker!r}, expected {known}.", param="speaker")
    return speaker
