"""A Qwen2 of random weights with a real byte-level BPE tokenizer, written as a GGUF file or a Hugging Face folder."""

from pathlib import Path

import numpy as np

from jaxmoe.model.load.gguf import _SPLITS, NAMES
from jaxmoe.model.load.hf_llm import NAMES as HF_NAMES

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = (
    "The quick brown fox jumps over the lazy dog. Please answer the telephone; it's ringing, isn't it? "
    "Der schnelle braune Fuchs springt über den faulen Hund. Bitte geh ans Telefon, es läutet schon seit 1984!\n"
) * 3


def tokenizer():
    """Byte-level BPE of 400 tokens with Qwen2's split and ChatML's control tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLITS["qwen2"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=397, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([TEXT], trainer)
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
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
    made = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.add_(0.3 * torch.randn_like(parameter))  # zeros and ones hide a swap
        if not tied:
            made.lm_head.weight[tokenizer().get_vocab_size() :] = 0  # never the likeliest
    return made


def write_gguf(made, path: Path, kinds: dict | None = None, metadata: dict | None = None, leave_out: str = "") -> None:
    """The same weights as a GGUF file; kinds: part of a tensor's name -> quantisation; metadata overrides strings."""
    import gguf

    c = made.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_bool("test.flag", True)
    writer.add_array("test.nested", [1.5, 2.5])
    made_tokenizer = tokenizer()
    tokens = sorted(made_tokenizer.get_vocab(), key=made_tokenizer.token_to_id)
    unused = [f"[PAD{i}]" for i in range(len(tokens), c.vocab_size)]
    control = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre((metadata or {}).get("pre", "qwen2"))
    writer.add_token_list(tokens + unused)
    writer.add_token_types(control + [gguf.TokenType.UNUSED] * len(unused))
    import json

    merges = json.loads(made_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    state = made.state_dict()
    for path_of_ours, theirs in HF_NAMES.items():
        if path_of_ours == "output/kernel" and c.tie_word_embeddings:
            continue
        for layer in range(c.num_hidden_layers if "{}" in theirs else 1):
            name = NAMES[path_of_ours].format(layer)
            if leave_out and leave_out == name:
                continue
            values = state[theirs.format(layer)].numpy().astype(np.float32)
            kind = next((k for part, k in (kinds or {}).items() if part in name), None)
            if kind is None:
                writer.add_tensor(name, values)
            else:
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(made, folder: Path) -> None:
    """The same as a Hugging Face folder."""
    made.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
