"""The application: OpenAI's audio API, the page, and what says how the server is."""

import asyncio
from collections.abc import AsyncIterator, Callable
import contextlib
import logging
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from jaxmoe.data.sound import AudioError
from jaxmoe.serve import page
from jaxmoe.serve.answer import answer
from jaxmoe.serve.engine import Engine
from jaxmoe.serve.errors import ApiError, failure
from jaxmoe.serve.request import ALIAS, Wanted, read
from jaxmoe.serve.worker import Worker

STOP_S = 5.0  # how long an end waits for the part of a recording that is being computed
log = logging.getLogger("jaxmoe.serve")


class Service:
    """What the routes share."""

    def __init__(self, engine: Engine, *, line: int, max_bytes: int, needs_key: bool) -> None:
        self.engine, self.max_bytes, self.needs_key = engine, max_bytes, needs_key
        self.worker, self.started = Worker(line), int(time.time())
        self.state = {"status": "starting", "doing": "preparing"}
        self.stopped = True  # whether the thread has ended

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Prepares beside the first requests; ends the thread."""
        began = time.monotonic()

        def say(doing: str, error: BaseException | None) -> None:
            self.state = {"status": "starting" if doing else "failed" if error else "ok", "doing": doing}
            if error is not None:  # the words that it was tried with are ours
                log.error("preparing failed: %s", error)
            else:
                log.info(*(("%s ...", doing) if doing else ("ready after %.0f s", time.monotonic() - began)))

        self.worker.start(self.engine.warm_up(), say)
        self.stopped = False
        yield
        self.stopped = await asyncio.to_thread(self.worker.stop, STOP_S)

    async def transcriptions(self, request: Request) -> Response:
        began = time.monotonic()
        try:
            with self.worker.place():
                wanted = await read(request, self.engine, self.max_bytes)
                job, response = await self._compute(request, wanted)
        except ApiError as error:
            about = error.param or error.code or "refused"
            log.info("%d after %.2f s: %s", error.status, time.monotonic() - began, about)
            raise
        except ClientDisconnect:
            log.info("a client left after %.2f s", time.monotonic() - began)
            return Response(status_code=499)
        log.info("200: %.1f s of sound in %.2f s, waited %.2f s", *job)
        return response

    async def _compute(self, request: Request, wanted: Wanted) -> tuple[tuple[float, float, float], Response]:
        """(seconds of sound, of work, of waiting) and the response."""
        job = self.worker.submit(lambda job: self.engine.run(wanted.task, job))
        result = asyncio.wrap_future(job.result)
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait((result, left), return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ClientDisconnect
            found = await result
        except AudioError as error:
            raise ApiError(400, str(error), param="file", code="invalid_audio") from None
        finally:
            left.cancel()
            job.leave()
        if found.error:
            log.error("the translator failed: %s", found.error)
        times = (found.transcript.duration_s, job.took_s, job.waited_s)
        return times, await asyncio.to_thread(answer, found, wanted.response_format)

    def model(self, name: str) -> dict[str, Any]:
        """A model as OpenAI lists it; ours beside its fields: what a request may name."""
        target, mine = self.engine.args.translate_to, {"id": name, "object": "model"}
        more = {"languages": self.engine.languages, "translate_to": [target] if target else []}
        return mine | {"created": self.started, "owned_by": "jaxmoe"} | more | {"speakers": self.engine.speakers()}

    async def models(self, _: Request) -> Response:
        names = dict.fromkeys((self.engine.name, ALIAS))
        return JSONResponse({"object": "list", "data": [self.model(name) for name in names]})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in (self.engine.name, ALIAS):
            expected = f"{self.engine.name} or {ALIAS}"
            raise ApiError(404, f"model is {name!r}, expected {expected}.", param="model", code="model_not_found")
        return JSONResponse(self.model(name))

    async def health(self, _: Request) -> Response:
        status = 200 if self.state["status"] == "ok" else 503
        return JSONResponse(self.state | {"busy": self.worker.taken}, status)

    async def index(self, _: Request) -> Response:
        html, policy = page.render(self.engine, needs_key=self.needs_key, max_bytes=self.max_bytes)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(service: Service) -> Starlette:
    routes = [
        Route("/", service.index),
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.one_model),
        Route("/v1/audio/transcriptions", service.transcriptions, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Any]] = {
        ApiError: _api_error,
        HTTPException: _http_error,
        Exception: _failure,  # it is raised again, and guard.py logs it
    }
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=service.lifespan)


async def _api_error(_: Request, error: ApiError) -> Response:
    return error.response()


async def _failure(_: Request, __: Exception) -> Response:
    return failure().response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    """No such address, or not by this method."""
    found = f"found {request.method} {request.url.path}"
    expected = "expected POST /v1/audio/transcriptions, GET /v1/models, /health or /"
    return ApiError(error.status_code, f"{error.detail}: {found}, {expected}.", headers=error.headers).response()
