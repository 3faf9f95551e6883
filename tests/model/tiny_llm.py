"""Language models of random weights with a byte-level BPE tokenizer, written as GGUF or as a Hugging Face folder."""

from pathlib import Path

import numpy as np

from jaxmoe.model.load.gguf import NAMES
from jaxmoe.model.load.gguf_tokenizer import SPLITS
from jaxmoe.model.load.hf_llm import GEMMA_NAMES
from jaxmoe.model.load.hf_llm import NAMES as HF_NAMES

SPECIAL = {
    "qwen2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma3_text": ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
}
TEXT = (
    "The quick brown fox jumps over the lazy dog. Please answer the telephone; it's ringing, isn't it? "
    "Der schnelle braune Fuchs springt über den faulen Hund. Bitte geh ans Telefon, es läutet schon seit 1984!\n"
) * 3


def tokenizer(kind="qwen2"):
    """Byte-level BPE of 397 tokens with Qwen2's split, and the control tokens of a model_type."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS["qwen2"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=397, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([TEXT], trainer)
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL[kind]])
    return made


def model(tied: bool = False):
    """transformers' Qwen2ForCausalLM with biases and norms that matter."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=416,  # more than the tokenizer has, as in Qwen's own files
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_theta=10_000.0,
        tie_word_embeddings=tied,
        initializer_range=0.2,  # the default 0.02 gives nearly uniform attention, which hides faults
        bos_token_id=None,
        eos_token_id=None,
    )
    return _lively(transformers.Qwen2ForCausalLM(config))


def llama(**rope):
    """transformers' LlamaForCausalLM with grouped queries; rope: of its rope_parameters."""
    import torch
    import transformers

    torch.manual_seed(0)
    return _lively(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=416, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, rms_norm_eps=1e-5, initializer_range=0.2, bos_token_id=None, eos_token_id=None,
                rope_parameters={"rope_type": "default", "rope_theta": 5_000.0} | rope,
            )
        )
    )  # fmt: skip


def gemma(**changes):
    """transformers' Gemma3ForCausalLM: five layers, the third of which sees more than four tokens."""
    import torch
    import transformers

    torch.manual_seed(0)
    return _lively(
        transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(
                vocab_size=416, hidden_size=48, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4,
                num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=4, initializer_range=0.2,
                sliding_window_pattern=3, bos_token_id=None, eos_token_id=None,
                **changes,
            )
        )
    )  # fmt: skip


def _lively(made):
    """With biases and norms that matter, and tokens that the tokenizer lacks out of reach."""
    import torch

    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.add_(0.3 * torch.randn_like(parameter))  # zeros and ones hide a swap
        if not made.config.tie_word_embeddings:
            made.lm_head.weight[tokenizer(made.config.model_type).get_vocab_size() :] = 0  # never the likeliest
    return made.eval()


def write_gguf(
    made, path: Path, kinds: dict | None = None, metadata: dict | None = None, leave_out: str = "", divisors=()
) -> None:
    """The same weights as a GGUF file.

    kinds: part of a tensor's name -> quantisation; metadata overrides strings; divisors: of the rotation's frequencies.
    """
    import gguf

    c = made.config
    architecture = c.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    _add_header(writer, c)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_bool("test.flag", True)
    writer.add_array("test.nested", [1.5, 2.5])
    made_tokenizer = tokenizer(c.model_type)
    tokens = sorted(made_tokenizer.get_vocab(), key=made_tokenizer.token_to_id)
    unused = [f"[PAD{i}]" for i in range(len(tokens), c.vocab_size)]
    control = [gguf.TokenType.CONTROL if token in SPECIAL[c.model_type] else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre((metadata or {}).get("pre", "qwen2"))
    writer.add_token_list(tokens + unused)
    writer.add_token_types(control + [gguf.TokenType.UNUSED] * len(unused))
    import json

    merges = json.loads(made_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    state = made.state_dict()
    for path_of_ours, theirs in (GEMMA_NAMES if architecture == "gemma3" else HF_NAMES).items():
        if theirs.format(0) not in state or (path_of_ours == "output/kernel" and c.tie_word_embeddings):
            continue
        for layer in range(c.num_hidden_layers if "{}" in theirs else 1):
            name = NAMES[path_of_ours].format(layer)
            if leave_out and leave_out == name:
                continue
            values = _converted(name, state[theirs.format(layer)].numpy().astype(np.float32), c)
            kind = next((k for part, k in (kinds or {}).items() if part in name), None)
            if kind is None:
                writer.add_tensor(name, values)
            else:
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    if divisors:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_header(writer, c) -> None:
    """What architectures differ in, as llama.cpp's convert_hf_to_gguf.py writes it."""
    import gguf

    rope = c.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if c.model_type == "gemma3_text":
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
        writer.add_sliding_window(c.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in c.layer_types])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _converted(name: str, values: np.ndarray, c) -> np.ndarray:
    """A tensor as llama.cpp has it: Llama's halves of a head interleaved, Gemma's norms whole."""
    if c.model_type == "gemma3_text" and "norm" in name:
        return values + 1
    if c.model_type == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        heads = c.num_attention_heads if "attn_q" in name else c.num_key_value_heads
        halves = values.reshape(heads, 2, len(values) // heads // 2, values.shape[1])
        return halves.swapaxes(1, 2).reshape(values.shape).copy()
    return values


def write_folder(made, folder: Path) -> None:
    """The same as a Hugging Face folder."""
    made.save_pretrained(folder)
    tokenizer(made.config.model_type).save(str(folder / "tokenizer.json"))
