"""GGUF files: header, dequantisation, tokenizer, strict names."""

import jax
import numpy as np
import pytest

from jaxmoe import weights
from jaxmoe.model.load import gguf, gguf_tokenizer, hf_llm
from tests.model import tiny_llm

pytest.importorskip("torch")

TEXTS = [
    "The quick brown fox isn't here.",
    "  leading and trailing  ",
    "numbers 1234567 and 3.14",
    "Grüße aus Köln, 日本語, e\u0301 composed, 𝄞",
    "line\nbreaks\r\n\n and\ttabs",
    "it'S DON'T we'll I'd",
    "",
    "…—“quoted” 'single' #hash @at",
]
GOLDEN = {
    "numbers 1234567 and 3.14": [37378, 220, 16, 17, 18, 19, 20, 21, 22, 323, 220, 18, 13, 16, 19],
    "Grüße aus Köln, 日本語, é composed": [6464, 2391, 23455, 9421, 141377, 11, 75402, 21894, 102819, 11, 3958, 23415],
    "line\nbreaks\r\n\n and\ttabs": [1056, 198, 8960, 82, 80823, 323, 3244, 3435],
    "it'S DON'T we'll I'd": [275, 13272, 44273, 17323, 582, 3278, 358, 4172],
    "…—“quoted” 'single' #hash @at": [1940, 2293, 2073, 63725, 854, 364, 15338, 6, 671, 8296, 569, 266],
    "<|im_start|>user\nfox<|im_end|>\n": [151644, 872, 198, 15011, 151645, 198],
}


@pytest.fixture(scope="module")
def made():
    return tiny_llm.model()


@pytest.fixture(scope="module")
def path(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_llm.write_gguf(made, path)
    return path


@pytest.mark.parametrize("stack", [False, True])
def test_same_tree_as_from_hugging_face(made, path, tmp_path, stack):
    tiny_llm.write_folder(made, tmp_path)
    expected_dims, expected = hf_llm.load(tmp_path, stack)
    dims, params, _ = gguf.load(path, stack)
    assert dims == expected_dims
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_tied_embeddings(tmp_path):
    tiny_llm.write_gguf(tiny_llm.model(tied=True), tmp_path / "tied.gguf")
    dims, params, _ = gguf.load(tmp_path / "tied.gguf")
    assert dims.tied and "output" not in params


def test_quantised_tensors_are_those_of_the_gguf_package(made, tmp_path):
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize

    kinds = {
        "ffn_gate": GGMLQuantizationType.Q8_0,
        "ffn_down": GGMLQuantizationType.Q4_0,
        "token_embd": GGMLQuantizationType.F16,
    }
    tiny_llm.write_gguf(made, tmp_path / "q.gguf", kinds)
    file = gguf.File(tmp_path / "q.gguf")
    seen = set()
    for tensor in GGUFReader(tmp_path / "q.gguf").tensors:
        seen.add(tensor.tensor_type)
        expected = dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.read(tensor.name), expected)
        if expected.ndim == 2:
            np.testing.assert_array_equal(file.read(tensor.name, transpose=True), expected.T)
    assert seen >= set(kinds.values())


def test_blocks_of_rows_make_no_difference(path, monkeypatch):
    file = gguf.File(path)
    whole = file.read("token_embd.weight", transpose=True)
    monkeypatch.setattr(gguf, "_BLOCK", 7 * 64)
    np.testing.assert_array_equal(file.read("token_embd.weight", transpose=True), whole)


def test_a_quantisation_that_nothing_reads_is_named(path):
    file, name = gguf.File(path), "token_embd.weight"
    shape, _, offset = file.tensors[name]
    file.tensors[name] = gguf.TensorInfo(shape, 9, offset)  # Q8_1: the gguf package has no dequantiser for it
    with pytest.raises(ValueError, match=r"token_embd\.weight is Q8_1.*another quantisation"):
        file.read(name)


def test_metadata_is_that_of_the_gguf_package(path):
    from gguf import GGUFReader

    ours = gguf.File(path).metadata
    for name, field in GGUFReader(path).fields.items():
        if name.startswith("GGUF."):
            continue
        expected = field.contents()
        found = ours[name]
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == expected, name
    assert ours["test.flag"] is True


def test_tokenizer(path):
    made = gguf.tokenizer(path)
    expected = tiny_llm.tokenizer()
    for text in [*TEXTS, "<|im_start|>user\nfox<|im_end|>\n"]:
        ids = made.encode(text).ids
        assert ids == expected.encode(text).ids
        assert made.decode(ids) == expected.decode(ids)
    assert made.token_to_id("<|im_end|>") in made.encode("fox<|im_end|>").ids
    assert made.token_to_id("[PAD400]") is None


def test_missing_tensor_is_named(made, tmp_path):
    tiny_llm.write_gguf(made, tmp_path / "a.gguf", leave_out="blk.1.ffn_up.weight")
    with pytest.raises(ValueError, match=r"- blk\.1\.ffn_up\.weight"):
        gguf.load(tmp_path / "a.gguf")


def test_foreign_and_damaged_files(made, path, tmp_path):
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\3\4 and so on")
    with pytest.raises(ValueError, match="is no GGUF file"):
        gguf.File(foreign)
    raw = path.read_bytes()
    foreign.write_bytes(raw[:4] + b"\1\0\0\0" + raw[8:])
    with pytest.raises(ValueError, match="version 1"):
        gguf.File(foreign)
    for length in (9, 30, 100, 2000):
        foreign.write_bytes(raw[:length])
        with pytest.raises(ValueError, match="ends inside its header"):
            gguf.File(foreign)
    foreign.write_bytes(raw[:-100])
    with pytest.raises(ValueError, match="copy it again"):
        gguf.load(foreign)
    foreign.write_bytes(raw.replace(b"qwen2", b"qwen9"))
    with pytest.raises(ValueError, match="architecture is 'qwen9'"):
        gguf.load(foreign)
    tiny_llm.write_gguf(made, foreign, metadata={"pre": "mystery"})
    with pytest.raises(ValueError, match="split 'mystery'"):
        gguf.load(foreign)


def test_real_tokenizer_equals_transformers():
    """Golden ids of transformers 5.23: AutoTokenizer.from_pretrained(folder, gguf_file=NAME)(text).input_ids."""
    files = sorted((weights.cache_folder() / "qwen2.5-coder-1.5b-instruct").glob("*.gguf"))
    if not files:
        pytest.skip("qwen2.5-coder-1.5b-instruct (1.1 GB) is not in the cache of weights")
    made = gguf.tokenizer(files[0])
    for text, ids in GOLDEN.items():
        assert made.encode(text).ids == ids, text
        assert made.decode(ids, skip_special_tokens=False) == text


GGUFS = {
    "llama": tiny_llm.llama,
    "llama-linear": lambda: tiny_llm.llama(rope_type="linear", factor=4.0),
    "gemma3": tiny_llm.gemma,
}


@pytest.mark.parametrize("name", GGUFS)
def test_other_architectures_are_those_of_their_folders(name, tmp_path):
    """What the test writes is what transformers reads: it has a reader of its own for llama.cpp's order and norms."""
    import transformers

    made = GGUFS[name]()
    tiny_llm.write_gguf(made, tmp_path / "a.gguf")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf")
    for key, values in made.state_dict().items():
        np.testing.assert_allclose(read.state_dict()[key], values, atol=1e-6, err_msg=key)  # a norm plus 1 less 1
    tiny_llm.write_folder(made, tmp_path)
    expected_dims, expected = hf_llm.load(tmp_path, stack=False)
    dims, params, _ = gguf.load(tmp_path / "a.gguf", stack=False)
    assert dims == expected_dims
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)


def test_llama_3s_divisors_are_read_from_their_tensor(tmp_path):
    rope = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    made = tiny_llm.llama(original_max_position_embeddings=512, **rope)
    tiny_llm.write_folder(made, tmp_path)
    expected, _ = hf_llm.load(tmp_path)
    tiny_llm.write_gguf(made, tmp_path / "a.gguf", divisors=expected.rope_divisors)
    dims, *_ = gguf.load(tmp_path / "a.gguf")
    assert len(set(dims.rope_divisors)) > 2
    np.testing.assert_allclose(dims.rope_divisors, expected.rope_divisors, rtol=1e-6)


@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_tokenizer(prefix):
    """Pieces and scores alone give back the merges of a BPE with bytes for what it has not seen."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    steps = [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    first = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))]
    expected = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    expected.normalizer = normalizers.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=first, show_progress=False, max_token_length=8)
    expected.train_from_iterator(tiny_llm.TEXT.split("\n"), trainer)
    backwards = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    expected.decoder = decoders.Sequence(backwards + [decoders.Strip(" ", 1, 0)] * prefix)
    vocabulary = expected.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    kinds = [2, 3] + [6] * 256 + [1] * (len(tokens) - 258)
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": np.array(kinds),
        "tokenizer.ggml.scores": np.array([-float(max(i - 258, 0)) for i in range(len(tokens))], np.float32),
        "tokenizer.ggml.add_space_prefix": prefix,
    }  # fmt: skip
    made = gguf_tokenizer.make(metadata, "a.gguf")
    for text in [*TEXTS, tiny_llm.TEXT[:300]]:
        ids = made.encode(text).ids
        assert ids == expected.encode(text).ids
        assert made.decode(ids) == expected.decode(ids, skip_special_tokens=False)  # its bytes are special to it
    assert made.encode("a<s>").tokens[-1] == "<s>"
