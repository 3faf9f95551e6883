"""The command that serves: what it refuses to start with, and how it ends."""

import http.client
import json
import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from jaxmoe.serve import __main__ as command
from tests.model.checkpoints import real_weights

ROOT = Path(__file__).parents[1]
KEY = "a key of more than 16 letters"


def test_arguments_that_would_let_strangers_in_are_refused(capsys, monkeypatch):
    monkeypatch.delenv("JAXMOE_API_KEY", raising=False)
    for arguments in (["--host=0.0.0.0"], ["--public_host=speech.example"]):
        assert command.main(arguments) == 1
        assert f"{arguments[0]} lets others than this machine in, which needs a key" in capsys.readouterr().err
    monkeypatch.setenv("JAXMOE_API_KEY", "short")
    assert command.main([]) == 1
    told = capsys.readouterr().err
    assert "5 characters, expected at least 16" in told and "short" not in told
    monkeypatch.delenv("JAXMOE_API_KEY")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert command.main([f"--port={taken.getsockname()[1]}"]) == 1
    assert "cannot listen" in capsys.readouterr().err
    monkeypatch.setattr(command, "NEEDED", ("a_package_that_is_not",))
    assert command.main([]) == 1
    assert "pip install -e '.[serve]'" in capsys.readouterr().err


def test_the_command_ends_in_order(tmp_path):
    weights = real_weights("tiny.en")
    environment = os.environ | {"JAXMOE_API_KEY": KEY, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla")}
    arguments = [sys.executable, "-m", "jaxmoe.serve", f"--model={weights}", "--port=0", "--beam_size=1", "--best_of=1"]
    run = subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    told = ""
    try:
        while not (found := re.search(r"at http://127\.0\.0\.1:(\d+)", told)):
            line = run.stderr.readline()
            assert line, told
            told += line
        connection = http.client.HTTPConnection("127.0.0.1", int(found.group(1)), timeout=30)
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read())["status"] in ("starting", "ok")
        run.send_signal(signal.SIGTERM)
        told += run.stderr.read()
        assert run.wait(30) == 0 and told.rstrip().endswith("ended") and "Traceback" not in told and KEY not in told
    finally:
        run.kill()
