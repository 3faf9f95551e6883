"""The systems that one evaluation compares, in the order of the table."""

import dataclasses
from typing import Literal

Kind = Literal["asr+mt", "e2e", "mt"]


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the table.

    `title` is a template over {v2}, {v3} (the run's two backbones), {mt}, {custom_mt} and {local_mt}.
    `needs` names what must be at hand: "v2", "v3" (a backbone), "baseline", "joint", "cascade", "distilled",
    "salmonn", "salmonn-tuned" (a model or checkpoint), "mt", "custom-mt", "local-mt", "tuned-mt" (a translator).
    """

    key: str
    title: str
    kind: Kind
    needs: tuple[str, ...]

    def name(
        self, v2: str, v3: str, mt: str = "MT", custom_mt: str = "customised MT", local_mt: str = "local MT"
    ) -> str:
        """The row's name for people, e.g. `Whisper v2 (tiny.en), no fine-tuning, + DeepL`."""
        return self.title.format(v2=v2, v3=v3, mt=mt, custom_mt=custom_mt, local_mt=local_mt)


SYSTEMS: tuple[System, ...] = (
    System("whisper-v2", "Whisper v2 ({v2}), no fine-tuning, + {mt}", "asr+mt", ("v2", "mt")),
    System("whisper-v3", "Whisper v3 ({v3}), no fine-tuning, + {mt}", "asr+mt", ("v3", "mt")),
    System("lora", "Whisper v2 ({v2}), one LoRA, + {mt}", "asr+mt", ("v2", "baseline", "mt")),
    System("moe", "Whisper v2 ({v2}) MoE + {mt}", "asr+mt", ("v2", "joint", "mt")),
    System("moe-custom-mt", "Whisper v2 ({v2}) MoE + {custom_mt}", "asr+mt", ("v2", "joint", "custom-mt")),
    System(
        "moe-risk",
        "Whisper v2 ({v2}) MoE retrained with the MT in the loop + {mt}",
        "asr+mt",
        ("v2", "cascade", "mt"),
    ),
    System("moe-distilled", "Whisper v2 ({v2}) MoE distilled to German, no MT", "e2e", ("v2", "distilled")),
    System("salmonn", "SALMONN, no fine-tuning", "e2e", ("salmonn",)),
    System("salmonn-tuned", "SALMONN, fine-tuned", "e2e", ("salmonn-tuned",)),
    System("mt", "{mt} on reference transcripts", "mt", ("mt",)),
    System("mt-custom", "{custom_mt} on reference transcripts", "mt", ("custom-mt",)),
    System("mt-local", "{local_mt} on reference transcripts", "mt", ("local-mt",)),
    System("mt-local-tuned", "{local_mt}, fine-tuned, on reference transcripts", "mt", ("tuned-mt",)),
)

BY_KEY: dict[str, System] = {system.key: system for system in SYSTEMS}


def get(key: str) -> System:
    """The system of a key. Raises: ValueError naming the known keys."""
    if key not in BY_KEY:
        raise ValueError(f"system {key!r} is unknown; expected one of: {', '.join(BY_KEY)}.")
    return BY_KEY[key]
