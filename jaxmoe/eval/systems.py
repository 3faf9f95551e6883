"""The systems that one evaluation compares, in the order of the table.

Adding one is an entry in SYSTEMS: what recognises, what translates, and what each of the two depends on.
"""

from collections.abc import Callable
import dataclasses
import pkgutil
from typing import Any, Literal

import numpy as np

Kind = Literal["asr+mt", "e2e", "mt"]


class NotRun(ValueError):  # noqa: N818  a state of the run, not a fault
    """A system cannot be run here; the message is the reason shown in its row."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """One recording to be recognised; `read` gives its samples, float32 [n] mono at 16 kHz."""

    id: str
    text: str  # the reference transcript
    duration_s: float
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Part:
    """A recogniser or a translator: the function that makes it, and all that its output depends on.

    A recogniser's function is `f(config, workdir, part, clips) -> Iterator[list[Row]]`: batches of rows, each a dict
    with `id`, `hypothesis` and, where there are any, `translation` (of an end-to-end system), `gates` [E],
    `avg_logprob`, `compression_ratio`, `flags`. A translator's is `f(config, workdir, part) -> mt.Translator`. Both
    raise NotRun (a translator's also mt.TranslatorUnavailable) with the reason where something is not at hand.

    Attributes:
      make: "module:function"; imported when it is needed.
      reads: the folders of WORKDIR whose phases must be done; their fingerprints are part of the system's.
      groups: the groups or fields of the configuration that change the output ("evaluate.beam_size").
      title: of a translator that is not at hand, for people.
    """

    make: str
    reads: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    title: str = ""

    def function(self) -> Callable[..., Any]:
        """The function itself."""
        return pkgutil.resolve_name(self.make)


DECODING = ("evaluate.temperatures", "evaluate.beam_size", "evaluate.batch_size")
BARE, ADAPTED = "jaxmoe.eval.recognise:bare", "jaxmoe.eval.recognise:adapted"
V2 = Part(BARE, groups=("model.backbone", *DECODING))  # the first field names the Whisper
V3 = Part(BARE, groups=("model.second", *DECODING))
LORA = Part(ADAPTED, ("baseline", "embeddings"), DECODING)  # the first folder holds the adapters
MOE = Part(ADAPTED, ("joint", "embeddings"), DECODING)
ENCODER = Part("jaxmoe.eval.recognise:encoder_adapted", ("joint", "encoder"), DECODING)
RISK = Part("jaxmoe.eval.recognise:retrained", ("cascade", "embeddings"), DECODING)
DISTILLED = Part("jaxmoe.eval.recognise:distilled", ("cascade", "embeddings"), DECODING)
HEARING = ("salmonn.llm", "salmonn.beam_size", "salmonn.max_tokens", "evaluate.batch_size")
SALMONN = Part(  # not the whole group: another learning rate changes nothing here
    "jaxmoe.eval.salmonn:zero_shot",
    ("embeddings",),
    (
        *("seed", "model.dtype", *HEARING),
        *(f"salmonn.{x}" for x in ("weights", "beats", "template", "end", "width", "window_s", "stride_s")),
        *("salmonn.rank", "salmonn.alpha"),
    ),
)
TUNED_SALMONN = Part("jaxmoe.eval.salmonn:tuned", ("salmonn", "embeddings"), HEARING)

MT = Part("jaxmoe.eval.translators:configured", groups=("mt",), title="MT")
LOCAL_MT = Part("jaxmoe.eval.translators:local", groups=("mt",), title="local MT")
CUSTOM_MT = Part("jaxmoe.eval.translators:customised", groups=("mt", "custom"), title="customised MT")
TUNED_MT = Part("jaxmoe.eval.translators:tuned", ("mt",), ("mt",), title="fine-tuned local MT")


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the table.

    `title` is a template over {v2}, {v3} (the run's two backbones), {mt} (its translator) and {llm} (SALMONN's language
    model). A system of kind "mt" has no recogniser: it translates the reference transcripts; one of kind "e2e" has no
    translator.
    """

    key: str
    title: str
    kind: Kind
    recogniser: Part | None
    translator: Part | None

    def name(self, v2: str, v3: str, mt: str = "", llm: str = "") -> str:
        """The row's name for people, e.g. `Whisper v2 (tiny.en), no fine-tuning, + DeepL`."""
        return self.title.format(v2=v2, v3=v3, mt=mt or (self.translator.title if self.translator else ""), llm=llm)


SYSTEMS: tuple[System, ...] = (
    System("whisper-v2", "Whisper v2 ({v2}), no fine-tuning, + {mt}", "asr+mt", V2, MT),
    System("whisper-v3", "Whisper v3 ({v3}), no fine-tuning, + {mt}", "asr+mt", V3, MT),
    System("lora", "Whisper v2 ({v2}), one LoRA, + {mt}", "asr+mt", LORA, MT),
    System("moe", "Whisper v2 ({v2}) MoE + {mt}", "asr+mt", MOE, MT),
    System("moe-encoder", "Whisper v2 ({v2}) MoE, encoder adapted, + {mt}", "asr+mt", ENCODER, MT),
    System("moe-custom-mt", "Whisper v2 ({v2}) MoE + {mt}", "asr+mt", MOE, CUSTOM_MT),
    System("moe-risk", "Whisper v2 ({v2}) MoE retrained with the MT in the loop + {mt}", "asr+mt", RISK, MT),
    System("moe-distilled", "Whisper v2 ({v2}) MoE distilled to German, no MT", "e2e", DISTILLED, None),
    System("salmonn", "SALMONN{llm}, no fine-tuning", "e2e", SALMONN, None),
    System("salmonn-tuned", "SALMONN{llm}, fine-tuned", "e2e", TUNED_SALMONN, None),
    System("mt", "{mt} on reference transcripts", "mt", None, MT),
    System("mt-custom", "{mt} on reference transcripts", "mt", None, CUSTOM_MT),
    System("mt-local", "{mt} on reference transcripts", "mt", None, LOCAL_MT),
    System("mt-local-tuned", "{mt} on reference transcripts", "mt", None, TUNED_MT),
)

BY_KEY: dict[str, System] = {system.key: system for system in SYSTEMS}


def get(key: str) -> System:
    """The system of a key. Raises: ValueError naming the known keys."""
    if key not in BY_KEY:
        raise ValueError(f"system {key!r} is unknown; expected one of: {', '.join(BY_KEY)}.")
    return BY_KEY[key]
