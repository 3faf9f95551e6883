"""SALMONN's golden configuration: weights and inputs by formula (tests/golden/salmonn/README.md), keys by table."""

from pathlib import Path
import zlib

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden" / "salmonn"
SAMPLES = 25_600


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}_tiny.npz", allow_pickle=False) as file:
        return dict(file)


def r(name: str, n: int) -> np.ndarray:
    z = np.arange(n, dtype=np.uint64) * 2654435761 + zlib.crc32(name.encode())
    mask = np.uint64(0xFFFFFFFF)
    z &= mask
    z ^= z >> np.uint64(16)
    z = (z * 2246822519) & mask
    z ^= z >> np.uint64(13)
    z = (z * 3266489917) & mask
    z ^= z >> np.uint64(16)
    return 2.0 * z / 2.0**32 - 1.0


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    x = r(name, int(np.prod(shape))).reshape(shape)
    if name.endswith(("weight_g", "grep_a")):
        x = 1 + 0.5 * x
    elif name.endswith("query_tokens"):
        pass
    elif len(shape) == 1:
        x = 1 + 0.2 * x if name.endswith("weight") else 0.1 * x
    else:
        x = x * np.sqrt(3 / (x.size / shape[0]))
    return x.astype(np.float32)


def weights(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, np.ndarray]:
    """Tensors of these names; the formula sees the name with `prefix`."""
    return {name: weight(prefix + name, shape) for name, shape in shapes.items()}


def waves() -> tuple[np.ndarray, np.ndarray]:
    """Samples [2, N] float64 and padding [2, N]; the second item ends after 16000."""
    t = np.arange(SAMPLES) / 16_000
    first = 0.3 * np.sin(2 * np.pi * (220 * t + 300 * t**2)) + 0.05 * r("wave0", SAMPLES)
    second = 0.25 * np.sin(2 * np.pi * 440 * t) + 0.03 * r("wave1", SAMPLES)
    padding = np.stack([np.zeros(SAMPLES, bool), np.arange(SAMPLES) >= 16_000])
    return np.where(padding, 0.0, np.stack([first, second])), padding


def beats_shapes(
    layers: int = 12, d: int = 768, heads: int = 12, mlp: int = 3072, patch: int = 512, conv: int = 128,
    groups: int = 16, buckets: int = 320, classes: int = 527,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Every key of the entry `model` of a BEATs file."""
    norm = lambda name, n: {f"{name}.weight": (n,), f"{name}.bias": (n,)}
    linear = lambda name, i, o: {f"{name}.weight": (o, i), f"{name}.bias": (o,)}
    shapes = {
        "patch_embedding.weight": (patch, 1, 16, 16),
        **norm("layer_norm", patch),
        **linear("post_extract_proj", patch, d),
        "encoder.pos_conv.0.weight_g": (1, 1, conv),
        "encoder.pos_conv.0.weight_v": (d, d // groups, conv),
        "encoder.pos_conv.0.bias": (d,),
        **norm("encoder.layer_norm", d),
    }
    for i in range(layers):
        at = f"encoder.layers.{i}"
        for part in ("q", "k", "v", "out"):
            shapes |= linear(f"{at}.self_attn.{part}_proj", d, d)
        shapes |= linear(f"{at}.self_attn.grep_linear", d // heads, 8)
        shapes |= {f"{at}.self_attn.grep_a": (1, heads, 1, 1)}
        shapes |= {f"{at}.self_attn.relative_attention_bias.weight": (buckets, heads)}
        shapes |= norm(f"{at}.self_attn_layer_norm", d) | norm(f"{at}.final_layer_norm", d)
        shapes |= linear(f"{at}.fc1", d, mlp) | linear(f"{at}.fc2", mlp, d)
    return shapes | (linear("predictor", d, classes) if classes else {})


def connector_shapes(
    layers: int, width: int, d: int = 768, mlp: int = 3072, speech: int = 1280, audio: int = 768, queries: int = 1,
    rank: int = 8, q_layers: int = 2, buffers: bool = False,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Every key of ckpt["model"] of SALMONN over a language model of `layers` and `width`."""
    norm = lambda name, n: {f"{name}.weight": (n,), f"{name}.bias": (n,)}
    linear = lambda name, i, o: {f"{name}.weight": (o, i), f"{name}.bias": (o,)}
    shapes = {"speech_query_tokens": (1, queries, d)} | norm("ln_speech", speech)
    if audio:
        shapes |= norm("ln_audio", audio)
    bert = "speech_Qformer.bert"
    shapes |= norm(f"{bert}.embeddings.LayerNorm", d)
    for i in range(q_layers):
        at = f"{bert}.encoder.layer.{i}"
        for attention, source in (("attention", d), ("crossattention", speech + audio)):
            shapes |= linear(f"{at}.{attention}.self.query", d, d)
            for part in ("key", "value"):
                shapes |= linear(f"{at}.{attention}.self.{part}", source, d)
            shapes |= linear(f"{at}.{attention}.output.dense", d, d) | norm(f"{at}.{attention}.output.LayerNorm", d)
        shapes |= linear(f"{at}.intermediate_query.dense", d, mlp)
        shapes |= linear(f"{at}.output_query.dense", mlp, d) | norm(f"{at}.output_query.LayerNorm", d)
    shapes |= linear("speech_llama_proj", d, width)
    lora = "llama_model.base_model.model.model.layers"
    for i in range(layers):
        for part in ("q_proj", "v_proj"):
            shapes[f"{lora}.{i}.self_attn.{part}.lora_A.default.weight"] = (rank, width)
            shapes[f"{lora}.{i}.self_attn.{part}.lora_B.default.weight"] = (width, rank)
    if buffers:
        shapes[f"{bert}.embeddings.position_ids"] = (1, 512)
        shapes |= {f"{lora}.{i}.self_attn.rotary_emb.inv_freq": (64,) for i in range(layers)}
        shared = "beats.encoder.layers.{}.self_attn.relative_attention_bias.weight"
        shapes |= {shared.format(i): (320, 12) for i in range(1, 12)}
    return shapes


def llama_shapes(layers: int, width: int, mlp: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Every key of transformers' LlamaForCausalLM without grouped queries."""
    shapes = {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width)}
    shapes["model.norm.weight"] = (width,)
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{p}_proj.weight": (width, width) for p in "qkvo"}
        shapes |= {f"{at}.mlp.{p}_proj.weight": (mlp, width) for p in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (width, mlp)
        shapes |= {f"{at}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")}
    return shapes
