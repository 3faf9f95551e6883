"""What routing is worth: the mixture against one LoRA and against other ways to choose experts, equal data and steps.

COMMAND: python -m jaxmoe.ablate --config=configs/ablations/method.py
Held-out voices in every condition (33 simulated speakers a seed, 7 utterances each), demo corpus, tiny.en.
"""

from ml_collections import ConfigDict

from configs import quickstart
from jaxmoe.eval.ablation import Variant


def get_config() -> ConfigDict:
    c = quickstart.get_config().unlock()
    c.demo.held_out_speakers_per_voice = 11  # all conditions of each voice
    c.mt.engine = "none"
    return c.lock()


VARIANTS = {
    "lora": Variant("one LoRA, as many parameters as the mixture", system="lora"),
    "lora-small": Variant("one LoRA of one expert's rank", {"baseline.rank": 8}, "lora", "lora"),
    "moe": Variant("mixture of experts", against="lora"),
    "fast": Variant("mixture fast", {"experts.lr": 2e-3, "joint.lr": 2e-3}, against="lora"),
    "wide": Variant("wide shared path", {"model.shared_rank": 48, "model.rank": 4, "model.alpha": 8.0}, against="lora"),
    "lora-fast": Variant("lora fast", {"baseline.lr": 1e-3}, "lora", against="lora"),
    "lora-slow": Variant("lora slow", {"baseline.lr": 2e-4}, "lora", against="lora"),
    "smeared": Variant("all experts mixed (no top k)", {"model.top_k": 0}, against="lora"),
    "top1": Variant("one expert an utterance", {"model.top_k": 1}, against="lora"),
    "private": Variant("experts without the shared path", {"model.shared_rank": 0}, against="lora"),
    "kmeans": Variant("k-means instead of HDBSCAN", {"cluster.method": "kmeans"}, against="lora"),
    "oracle": Variant(
        "routed by the true etiology", {"cluster.method": "etiology", "model.routing": "given"}, against="lora"
    ),
    "random": Variant(
        "routed at random by speaker", {"cluster.method": "random", "model.routing": "given"}, against="lora"
    ),
}
