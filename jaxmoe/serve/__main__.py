"""The command: python -m jaxmoe.serve [options]

Start-up counts here: JAX and all that needs it are imported once the arguments are known to be good.
"""

import argparse
from collections.abc import Sequence
import importlib.util
import logging
import os
import signal
import socket
import sys
from typing import Any

from jaxmoe import options

NEEDED = ("starlette", "uvicorn", "python_multipart")
DRAIN_S = 20  # how long requests may go on after SIGTERM
EPILOG = """\
addresses:
  GET  /                          the page: record or choose a file, read the transcript and the German
  POST /v1/audio/transcriptions   as OpenAI's, with its clients; beside its fields translate_to and speaker
  GET  /v1/models, /health        /health is 503 until the first recording need not wait for compilation

who may ask:
  On 127.0.0.1 everybody on this machine, unless JAXMOE_API_KEY is set. Beyond it (--host, --public_host) it must be
  set, to 16 characters or more, and requests have the header "Authorization: Bearer KEY". Recordings are kept in memory
  and forgotten; put TLS in front (docs/serving.md).

examples:
  python -m jaxmoe.serve --model=base --translate_to=de
  python -m jaxmoe.serve --checkpoint=checkpoints/quickstart --port=9000
  JAXMOE_API_KEY=... python -m jaxmoe.serve --host=0.0.0.0
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    about = "Serves transcription of English speech, also of people with a speech disorder, and its German\n"
    p = options.command("serve", about + "to browsers and to clients of OpenAI's audio API.", EPILOG)
    add = p.add_argument_group("server").add_argument
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="(default: %(default)s, for this machine alone)")
    add("--port", metavar="N", type=_port, default=8000, help="(default: %(default)s; 0: any that is free)")
    named = "a name under which a proxy makes this server known; needs a key"
    add("--public_host", metavar="NAME", action="append", default=[], help=named)
    add("--line", metavar="N", type=options.positive, default=8, help="requests that may wait (default: %(default)s)")
    add("--max_upload_mb", metavar="N", type=options.positive, default=100, help="(default: %(default)s)")
    add("--max_minutes", metavar="N", type=options.positive, default=120, help="of a recording (default: %(default)s)")
    options.add_recognition(p.add_argument_group("recognition"))
    options.add_translation(p.add_argument_group("translation"), "let requests ask for a translation")
    return p


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number from 0 to 65535")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0 when it was told to end, 1 if it cannot serve."""
    args = parser().parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT.

    Raises:
      ValueError: for arguments that do not go together, a missing package or a model that cannot be had.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        install = ".venv/bin/python -m pip install -e '.[serve]'"
        raise ValueError(f"the server needs {', '.join(missing)}, not installed here; install: {install}")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of which names of languages are taken, no models
    from jaxmoe.serve.guard import LOOPBACK, is_loopback

    key, local = _key(args), is_loopback(args.host)
    hosts = LOOPBACK | {name.lower() for name in (args.host, *args.public_host)} if local else None
    listener = _listen(args.host, args.port)
    address = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{listener.getsockname()[1]}"
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%F %T", level=logging.WARNING, force=True)
    log = logging.getLogger("jaxmoe.serve")
    log.setLevel(logging.INFO)
    with listener:
        log.info("loading ...")
        options.prepare_jax(args)
        from jaxmoe.serve.app import Service, make_app
        from jaxmoe.serve.engine import Engine
        from jaxmoe.serve.guard import Guard

        limits = {"line": args.line, "max_bytes": args.max_upload_mb * 10**6}
        service = Service(Engine(args), **limits, needs_key=bool(key))
        log.info("%s at %s", service.engine.name, address)
        _serve(Guard(make_app(service), hosts, key), listener)
    log.info("ended")
    if not service.stopped:  # a program is being compiled or run: nothing of it is waited for
        logging.shutdown()
        os._exit(0)
    return 0


def _key(args: argparse.Namespace) -> str:
    """What requests must bring; "" for nothing."""
    from jaxmoe.serve.guard import KEY_VARIABLE, SHORTEST_KEY, is_loopback

    key = os.environ.get(KEY_VARIABLE, "").strip()
    make = f"""export {KEY_VARIABLE}="$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')"."""
    if not key and (args.public_host or not is_loopback(args.host)):
        where = f"--public_host={args.public_host[0]}" if args.public_host else f"--host={args.host}"
        raise ValueError(f"{where} lets others than this machine in, which needs a key: {make}")
    if key and not (len(key) >= SHORTEST_KEY and key.isascii() and key.isprintable()):
        raise ValueError(
            f"{KEY_VARIABLE} has {len(key)} characters, expected at least {SHORTEST_KEY}, of ASCII alone; {make}"
        )
    return key


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"cannot listen at --host={host} --port={port}: {error.strerror}; choose others.") from None


def _serve(app: Any, listener: socket.socket) -> None:
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=DRAIN_S)
    )
    # uvicorn ends in order, then raises the signal again for whoever had it before.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    sys.exit(main())
