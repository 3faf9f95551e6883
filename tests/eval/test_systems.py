"""The table of systems is the one that the report promises."""

import pytest

from jaxmoe.eval import systems


def test_keys_in_the_order_of_the_table():
    assert [s.key for s in systems.SYSTEMS] == (
        "whisper-v2 whisper-v3 lora moe moe-encoder moe-custom-mt moe-risk moe-distilled"
        " salmonn salmonn-tuned mt mt-custom mt-local mt-local-tuned"
    ).split()
    assert {s.kind for s in systems.SYSTEMS if s.key.startswith("mt")} == {"mt"}


def test_names_tell_backbone_and_translator():
    assert (
        systems.get("whisper-v2").name(v2="tiny.en", v3="base", mt="DeepL")
        == "Whisper v2 (tiny.en), no fine-tuning, + DeepL"
    )
    names = [s.name(v2="tiny.en", v3="base") for s in systems.SYSTEMS]
    assert len(set(names)) == len(names)


def test_unknown_key_names_the_known_ones():
    with pytest.raises(ValueError, match="'mo' is unknown; expected one of: whisper-v2"):
        systems.get("mo")
