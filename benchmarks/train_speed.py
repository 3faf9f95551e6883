"""A joint training step with ten experts beside transformers + PEFT's with one LoRA: same weights, same utterances.

COMMAND: python -m benchmarks.train_speed [--model=tiny.en] [--rounds=5]
Both: batch 8, 30 s, 32 target tokens, rank 16 on every linear map of the decoder, AdamW, float32, both cores, in
alternation. Ours: the joint step as --phase=joint runs it (ten experts, top 2, shared path of rank 16, gate and its
losses) on latents that `embed` keeps, with 30 s of them and with the 8 s of a usual recording. PEFT: from the log-mel
spectrogram, computed beforehand, and from encoder outputs cached by hand. Adapters start as the base model, so the
losses of the first step must be equal: they are printed.
"""

import argparse
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks import race
from benchmarks.experts_cost import Step, make_batch, mixture
from jaxmoe.compilation import enable_cache
from jaxmoe.data.batches import Batch
from jaxmoe.memory import reuse_memory
from jaxmoe.model.load import load_whisper
from jaxmoe.model.load.hf import save_hf

BATCH, TOKENS, RANK, EXPERTS, TOP_K = 8, 32, 16, 10, 2
FULL, TRIMMED = 1500, 400  # encoder positions: 30 s, and the 8 s of most of the demo corpus's batches
LINEAR = r".*decoder\.layers.*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


class Peft:
    """transformers' Whisper with one LoRA of PEFT."""

    def __init__(self, name: str, features: np.ndarray, batch: Batch) -> None:
        import peft
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            save_hf(folder, *load_whisper(name))
            model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
        self.features = torch.tensor(features)
        with torch.no_grad():
            self.cached = model.model.encoder(self.features).last_hidden_state
        config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR, lora_dropout=0.0)
        self.model = peft.get_peft_model(model, config).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
        self.ids = dict(decoder_input_ids=torch.tensor(batch.tokens), labels=torch.tensor(batch.targets).long())

    def step(self, from_cache: bool) -> float:
        from transformers.modeling_outputs import BaseModelOutput

        if from_cache:
            source: dict[str, Any] = {"encoder_outputs": BaseModelOutput(last_hidden_state=self.cached)}
        else:
            source = {"input_features": self.features}
        loss = self.model(**source, **self.ids).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="tiny.en")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=3, help="in a round")
    args = p.parse_args()
    enable_cache()
    reuse_memory()
    dims, base, _ = load_whisper(args.model)
    base, model = jax.device_put(base), mixture(dims, EXPERTS, TOP_K, RANK)
    features = np.random.default_rng(0).standard_normal((BATCH, dims.n_mels, 2 * FULL)).astype(np.float32)
    batch = make_batch(model, BATCH, FULL, TOKENS)
    peer = Peft(args.model, features, batch)
    batch = batch.replace(latents=peer.cached.numpy())
    cut = lambda n: batch.replace(latents=batch.latents[:, :n], mask=batch.mask[:, :n])
    ours = {n: Step(model, base, cut(n)) for n in (FULL, TRIMMED)}
    losses = ours[FULL].run()["nll"], peer.step(from_cache=True)
    again = lambda step: lambda: [step() for _ in range(args.steps)]
    times = race.alternate(
        {
            "full": again(ours[FULL].seconds), "trimmed": again(ours[TRIMMED].seconds),
            "cached": again(lambda: peer.step(True)), "audio": again(lambda: peer.step(False)),
        },
        args.rounds,
    )  # fmt: skip
    print(race.HEAD)
    work = f"{args.steps} steps of {BATCH} x {TOKENS} tokens; first losses {losses[0]:.4f}, {losses[1]:.4f}"
    for ours_name, peer_name, target in (
        ("trimmed", "audio", 8.0), ("full", "audio", None), ("full", "cached", 1.5), ("trimmed", "cached", None)
    ):  # fmt: skip
        positions = FULL if ours_name == "full" else TRIMMED
        question = f"{args.model} joint step, {EXPERTS} experts, {positions} positions"
        result = race.Result(question, f"PEFT, {peer_name}", times[ours_name], times[peer_name], target, work)
        print(result.row())
    rate = lambda name: BATCH * args.steps / np.median(times[name])
    print("utterances/s: " + ", ".join(f"{name} {rate(name):.1f}" for name in times))


if __name__ == "__main__":
    main()
