"""Greedy decoding of the local translators against transformers: same weights, same sources, float32, tokens a second.

  python -m benchmarks.mt_decode [--model=marian|qwen2] [--batch=16] [--rounds=5]

Weights are random, of the sizes of opus-mt-en-de (marian) or of a Qwen2 of 24 layers and width 512 (qwen2); the end
token is out of reach, so that every row says as many tokens. Runs alternate, and the ratio is that of the medians:
another process's load then falls on both.
"""

import argparse
import json
from pathlib import Path
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxmoe.model import llm, llm_decode, lora, marian
from jaxmoe.model.load import hf_llm
from jaxmoe.model.load import marian as load_marian

SOURCE, NEW = 16, 48  # tokens


def make_marian(folder: Path, sources: np.ndarray):
    """(transformers' generate, ours), each giving tokens [B, NEW]."""
    pad = 58100
    config = transformers.MarianConfig(
        vocab_size=58101, d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, activation_function="swish",
        scale_embedding=True, pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=None,
        max_position_embeddings=512, init_std=0.1,
    )  # fmt: skip
    theirs = transformers.MarianMTModel(config).eval()
    theirs.final_logits_bias[0, 0] = -1e6
    theirs.save_pretrained(folder)
    dims, params = load_marian.load(folder)
    model, params = marian.Marian(dims), jax.device_put(params)
    ids, mask = torch.tensor(sources), jnp.ones(sources.shape, bool)
    limit = jnp.full(len(sources), NEW)

    def reference() -> np.ndarray:
        out = theirs.generate(ids, do_sample=False, num_beams=1, max_new_tokens=NEW, bad_words_ids=[[pad]])
        return out[:, 1:].numpy()

    return reference, lambda: np.asarray(marian.greedy(model, params, jnp.asarray(sources), mask, limit, NEW)[0])


def make_qwen2(folder: Path, sources: np.ndarray):
    """As make_marian, of the decoder-only model."""
    config = transformers.Qwen2Config(
        vocab_size=50_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=24, num_attention_heads=8,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    dims, params = hf_llm.load(folder, stack=False)
    lora.transpose_kernels(params)  # as the translator does on a CPU
    model, ids = llm.LanguageModel(dims, scan_layers=False), torch.tensor(sources)
    mask, limit = jnp.ones(sources.shape, bool), jnp.full(len(sources), NEW)

    def reference() -> np.ndarray:
        return theirs.generate(ids, do_sample=False, max_new_tokens=NEW, pad_token_id=0)[:, SOURCE:].numpy()

    def ours() -> np.ndarray:
        out, _ = llm_decode.greedy(model, params, sources, mask, limit, jnp.array([-1]), slots=SOURCE + NEW)
        return np.asarray(out)[:, :NEW]

    return reference, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("marian", "qwen2"), default="marian")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    sources = np.random.default_rng(0).integers(1, 50_000, (args.batch, SOURCE))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = {"marian": make_marian, "qwen2": make_qwen2}[args.model](Path(folder), sources)
        said = [run() for run in runs]  # compiles, too
        took: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.rounds):
            for run, times in zip(runs, took, strict=True):
                began = time.perf_counter()
                run()
                times.append(time.perf_counter() - began)
    theirs, ours = (args.batch * NEW / statistics.median(times) for times in took)
    same = float((said[0] == said[1]).mean())
    figures = {"transformers": theirs, "jaxmoe": ours, "ratio": ours / theirs, "same_tokens": same}
    print(json.dumps({"model": args.model, "batch": args.batch} | {k: round(v, 2) for k, v in figures.items()}))


if __name__ == "__main__":
    main()
