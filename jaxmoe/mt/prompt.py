"""The prompt that makes a chat model translate: instruction, examples, and turns as each family writes them."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INSTRUCTION = "You translate English into German. Answer with the translation only."
# Written for this project; none occurs, nearly or exactly, in the demo corpus. Their keys and values are computed once,
# so that ten cost hardly more than three.
SHOTS = (
    ("The shop around the corner sells fresh bread.", "Der Laden um die Ecke verkauft frisches Brot."),
    ("Her brother moved to the coast two years ago.", "Ihr Bruder ist vor zwei Jahren an die Küste gezogen."),
    ("Why did the machine stop working?", "Warum hat die Maschine aufgehört zu arbeiten?"),
    ("Remind me to water the plants on Thursday.", "Erinnere mich daran, am Donnerstag die Pflanzen zu gießen."),
    ("Could you bring me the blue blanket?", "Könnten Sie mir die blaue Decke bringen?"),
    (
        "The government has announced new rules for hospitals.",
        "Die Regierung hat neue Regeln für Krankenhäuser angekündigt.",
    ),
    ("My knee has been hurting since the fall.", "Mein Knie tut seit dem Sturz weh."),
    ("They say it will snow again next week.", "Es heißt, dass es nächste Woche wieder schneit."),
    ("An old fisherman lived alone at the edge of the forest.", "Ein alter Fischer lebte allein am Rand des Waldes."),
    ("Play the radio a little louder.", "Mach das Radio ein bisschen lauter."),
)


@dataclasses.dataclass(frozen=True)
class Format:
    """How a family of chat models writes a conversation.

    Attributes:
      begin: what it starts with.
      turn: one turn, of {role} and {text}.
      assistant: the role that answers.
      end: the token that ends a turn.
      system: whether there is a role that instructs; else the instruction stands before the first text.
    """

    begin: str
    turn: str
    assistant: str
    end: str
    system: bool = True

    def before(self) -> str:
        """What stands before the text to translate, the same for all texts."""
        instruction = self.turn.format(role="system", text=INSTRUCTION) if self.system else ""
        turns = [
            self.turn.format(role=role, text=text)
            for english, german in SHOTS
            for role, text in (("user", english), (self.assistant, german))
        ]
        if not self.system:
            turns[0] = self.turn.format(role="user", text=f"{INSTRUCTION}\n\n{SHOTS[0][0]}")
        return self.begin + instruction + "".join(turns) + self._open("user")

    def after(self) -> str:
        """What stands between the text and its answer."""
        return self.turn.partition("{text}")[2] + self._open(self.assistant)

    def _open(self, role: str) -> str:
        return self.turn.partition("{text}")[0].format(role=role)


FORMATS = (
    Format("", "<|im_start|>{role}\n{text}<|im_end|>\n", "assistant", "<|im_end|>"),  # ChatML: Qwen, SmolLM
    Format(
        "<|begin_of_text|>",
        "<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>",
        "assistant",
        "<|eot_id|>",
    ),  # Llama 3
    Format("<bos>", "<start_of_turn>{role}\n{text}<end_of_turn>\n", "model", "<end_of_turn>", system=False),  # Gemma
)
# Tokens that end an answer, where a vocabulary has them.
STOPS = (
    *("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    *("<|eot_id|>", "<|start_header_id|>", "<|end_of_text|>"),
    *("<end_of_turn>", "<start_of_turn>", "<eos>"),
)


def choose(tokenizer: "Tokenizer", origin: object) -> Format:
    """The format whose end of a turn the vocabulary has.

    Raises:
        ValueError: it has none.
    """
    for found in FORMATS:
        if tokenizer.token_to_id(found.end) is not None:
            return found
    raise ValueError(
        f"{origin}: the vocabulary has none of {', '.join(f.end for f in FORMATS)}; the local translator needs a model "
        "that was trained on ChatML's, Llama 3's or Gemma's turns."
    )
