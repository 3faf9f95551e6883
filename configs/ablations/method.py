"""What routing is worth: the mixture against one LoRA and against other ways to choose experts, equal data and steps.

COMMAND: python -m jaxmoe.ablate --config=configs/ablations/method.py
Held-out voices in every condition (33 simulated speakers a seed, 15 utterances each), demo corpus, tiny.en.
"""

from ml_collections import ConfigDict

from configs import quickstart
from jaxmoe.eval.ablation import Variant


def get_config() -> ConfigDict:
    c = quickstart.get_config().unlock()
    c.demo.held_out_speakers_per_voice = 11  # all conditions of each voice
    c.demo.evaluation_utterances = 15  # phase personalize takes ten of them
    c.mt.engine = "none"
    c.encoder.steps = 0  # but where a variant has it
    c.model.update(rank=4, shared_rank=48, alpha=8.0)  # best behind Whisper's own encoder; the default is equal-ranks
    return c.lock()


RANDOM = {"cluster.method": "random", "model.routing": "given"}
ORACLE = {"cluster.method": "etiology", "model.routing": "given"}
EQUAL_RANKS = {"model.rank": 8, "model.shared_rank": 8, "model.alpha": 16.0}
PRIVATE = {"model.rank": 9, "model.shared_rank": 0, "model.alpha": 18.0}
ONE_ENCODER = {"model.num_experts": 1, "model.rank": 40, "model.alpha": 80.0, "model.top_k": 1, "encoder.steps": 80}
SHARED_ENCODER = {"model.num_experts": 1, "model.rank": 1, "model.alpha": 2.0, "model.top_k": 1}
LONG = {"encoder.steps": 320}
BARE = {"experts.steps": 1, "experts.lr": 0.0, "joint.steps": 1, "joint.lr": 0.0}  # adapters that change nothing

VARIANTS = {
    "lora": Variant("one LoRA, as many parameters as the mixture (rank 88)", system="lora"),
    "shared": Variant("the shared path alone (rank 48)", {"baseline.rank": 48}, "lora", "lora"),
    "small": Variant("one LoRA of the experts' rank (4)", {"baseline.rank": 4}, "lora", "lora"),
    "moe": Variant("mixture: shared path of rank 48, ten experts of rank 4", against="lora"),
    "equal-ranks": Variant("mixture: shared path and experts of rank 8", EQUAL_RANKS, against="lora"),
    "private": Variant("mixture: experts of rank 9, no shared path", PRIVATE, against="lora"),
    "smeared": Variant("all experts mixed (no top k)", {"model.top_k": 0}, against="moe"),
    "top1": Variant("one expert an utterance", {"model.top_k": 1}, against="moe"),
    "kmeans": Variant("k-means instead of HDBSCAN", {"cluster.method": "kmeans"}, against="moe"),
    "encoder": Variant("mixture, encoder adapted for 80 steps", {"encoder.steps": 80}, "moe-encoder", "moe"),
    "encoder-long": Variant("mixture, encoder adapted for 320 steps", LONG, "moe-encoder", "encoder"),
    "one-encoder": Variant(
        "one LoRA (rank 88), encoder adapted for 80 steps", ONE_ENCODER, "moe-encoder", "encoder"
    ),
    "one-encoder-long": Variant(
        "one LoRA (rank 88), encoder adapted for 320 steps", ONE_ENCODER | LONG, "moe-encoder", "encoder-long"
    ),
    "shared-encoder-long": Variant(
        "the shared path alone (rank 49), encoder adapted for 320 steps",
        SHARED_ENCODER | LONG,
        "moe-encoder",
        "encoder-long",
    ),
    "small-encoder-long": Variant(
        "one LoRA of rank 8, encoder adapted for 320 steps",
        {"model.num_experts": 1, "model.rank": 4, "model.shared_rank": 4, "model.top_k": 1} | LONG,
        "moe-encoder",
        "encoder-long",
    ),
    "bare-encoder-long": Variant(
        "Whisper's own decoder, encoder adapted for 320 steps", BARE | LONG, "moe-encoder", "small-encoder-long"
    ),
    "less-shared-encoder-long": Variant(
        "mixture: shared path of rank 8, ten experts of rank 4, encoder adapted for 320 steps",
        {"model.shared_rank": 8} | LONG,
        "moe-encoder",
        "shared-encoder-long",
    ),
    "equal-ranks-encoder-long": Variant(
        "mixture: shared path and experts of rank 8, encoder adapted for 320 steps (quickstart's)",
        EQUAL_RANKS | LONG,
        "moe-encoder",
        "one-encoder-long",
    ),
    "biases": Variant(
        "mixture, encoder's biases adapted for 80 steps",
        {"encoder.steps": 80, "encoder.rank": 0},
        "moe-encoder",
        "moe",
    ),
    "oracle": Variant("routed by the true etiology", ORACLE, against="moe"),
    "random": Variant("routed at random, by speaker", RANDOM, against="moe"),
    "zero-shot": Variant("Whisper without fine-tuning", system="whisper-v2", against="moe"),
}
