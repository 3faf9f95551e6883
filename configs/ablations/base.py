"""As method.py, with the multilingual base for tiny.en: a larger model, whose zero-shot WER is lower.

COMMAND: python -m jaxmoe.ablate --config=configs/ablations/base.py
"""

import dataclasses

from ml_collections import ConfigDict

from configs.ablations import method


def get_config() -> ConfigDict:
    c = method.get_config().unlock()
    c.model.update(backbone="base", second="")
    return c.lock()


NAMES = ("lora", "moe", "one-encoder-long", "equal-ranks-encoder-long", "oracle", "zero-shot")
VARIANTS = {name: method.VARIANTS[name] for name in NAMES}
VARIANTS["one-encoder-long"] = dataclasses.replace(VARIANTS["one-encoder-long"], against="lora")
