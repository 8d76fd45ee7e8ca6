"""umT5 by way of the library, against its formulas written out over the tensors of the published file."""

import gc
import math
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="the models extra is not installed")

from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import Whitespace  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402

from worldkv.errors import CheckpointError, ConfigError  # noqa: E402
from worldkv.models.encoders import library, prompt  # noqa: E402
from worldkv.models.encoders.prompt import PromptShape, cleaned, encode_prompt, load_prompt_encoder  # noqa: E402

CPU = torch.device("cpu")
SHAPE = PromptShape(vocabulary=9, width=24, mlp_width=40, heads=3, head_dim=8, layers=2, buckets=8)
WORDS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "room": 5, "it's": 6, "&": 7, '"': 8}
LONGEST_DISTANCE = 128
EPSILON = 1e-6


@pytest.fixture
def stored() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) / 3 for name, shape in SHAPE.tensors().items()}


@pytest.fixture
def weights(tmp_path: Path, stored: dict[str, Tensor]) -> Path:
    file = tmp_path / "models_t5.pth"
    torch.save(stored, file)
    return file


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def written_out(stored: dict[str, Tensor], ids_T: Tensor) -> Tensor:
    """[T, E]."""
    x = stored["token_embedding.weight"][ids_T]
    for layer in range(SHAPE.layers):
        w = {
            name.removeprefix(f"blocks.{layer}."): tensor
            for name, tensor in stored.items()
            if name.startswith(f"blocks.{layer}.")
        }
        normal = rms(x, w["norm1.weight"])
        q, k, v = (
            (normal @ w[f"attn.{part}.weight"].T).view(len(x), SHAPE.heads, -1).transpose(0, 1) for part in "qkv"
        )
        scores = q @ k.transpose(1, 2) + bias(w["pos_embedding.embedding.weight"], len(x))
        seen = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
        x = x + seen @ w["attn.o.weight"].T
        normal = rms(x, w["norm2.weight"])
        gate = torch.nn.functional.gelu(normal @ w["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (normal @ w["ffn.fc1.weight"].T)) @ w["ffn.fc2.weight"].T
    return rms(x, stored["norm.weight"])


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight


def bias(table: Tensor, tokens: int) -> Tensor:
    """[H, T, T]: half of the buckets for each direction, of those half one distance each, the others ever more."""
    half = len(table) // 2
    exact = half // 2

    def bucket(query: int, key: int) -> int:
        distance = abs(key - query)
        if distance >= exact:
            wide = math.log(distance / exact) / math.log(LONGEST_DISTANCE / exact) * (half - exact)
            distance = min(exact + int(wide), half - 1)
        return distance + (half if key > query else 0)

    buckets = torch.tensor([[bucket(query, key) for key in range(tokens)] for query in range(tokens)])
    return table[buckets].permute(2, 0, 1)


@pytest.mark.parametrize("tokens", [1, 7, 200])
def test_the_library_computes_what_the_published_file_means(weights: Path, stored: dict[str, Tensor], tokens: int):
    ids_T = torch.randint(0, SHAPE.vocabulary, (tokens,), generator=torch.Generator().manual_seed(1))
    network = load_prompt_encoder(weights, SHAPE, device=CPU, dtype=torch.float32)
    found = network(input_ids=ids_T[None]).last_hidden_state[0]
    torch.testing.assert_close(found, written_out(stored, ids_T), atol=2e-5, rtol=1e-5)


def test_padding_and_cutting_as_published_gives_the_same(weights: Path):
    network = load_prompt_encoder(weights, SHAPE, device=CPU, dtype=torch.float32)
    ids_T = torch.tensor([3, 4, 5, 1])
    padded = torch.nn.functional.pad(ids_T, (0, 12))[None]
    published = network(input_ids=padded, attention_mask=padded.ne(0).long()).last_hidden_state[0, :4]
    torch.testing.assert_close(network(input_ids=ids_T[None]).last_hidden_state[0], published, atol=2e-6, rtol=0)


def test_a_prompt_is_cut_at_the_models_length_and_ends(weights: Path, tokenizer: Path, stored: dict[str, Tensor]):
    def encode(text: str, tokens: int) -> Tensor:
        return encode_prompt(weights, tokenizer, text, SHAPE, tokens=tokens, device=CPU, dtype=torch.float32)

    torch.testing.assert_close(encode(" a  red\nroom ", 8), written_out(stored, torch.tensor([3, 4, 5, 1])))
    torch.testing.assert_close(encode("a red room", 3), written_out(stored, torch.tensor([3, 4, 1])))


def test_the_network_is_gone_after_use(weights: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[weakref.ref[torch.nn.Module]] = []
    load = prompt.load_prompt_encoder

    def watched(*args: object, **options: object) -> torch.nn.Module:
        network = load(*args, **options)
        made.append(weakref.ref(network))
        return network

    monkeypatch.setattr(prompt, "load_prompt_encoder", watched)
    encode_prompt(weights, tokenizer, "a room", SHAPE, tokens=8, device=CPU)
    gc.collect()
    assert [network() for network in made] == [None]


def test_prompts_are_cleaned_as_published():
    assert cleaned("  It\u2019s &amp;lt;  a\troom\u00a0\n") == "It's < a room"


class TestFaults:
    def test_a_prompt_of_nothing(self, weights: Path, tokenizer: Path):
        with pytest.raises(ConfigError, match=r"prompt ' \\n': has no words"):
            encode_prompt(weights, tokenizer, " \n", SHAPE, tokens=8, device=CPU)

    def test_a_tokenizer_that_is_not_there(self, weights: Path, tmp_path: Path):
        with pytest.raises(CheckpointError, match=r"nowhere: no such folder; the tokenizer belongs there"):
            encode_prompt(weights, tmp_path / "nowhere", "a room", SHAPE, tokens=8, device=CPU)

    @pytest.mark.parametrize("content", ["", "{}", '{"version": 1}'])
    def test_a_tokenizer_that_is_none(self, weights: Path, tmp_path: Path, content: str):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match="not a tokenizer that can be read"):
            encode_prompt(weights, tmp_path, "a room", SHAPE, tokens=8, device=CPU)

    def test_a_tokenizer_of_another_model(self, weights: Path, tokenizer: Path):
        small = PromptShape(**{**SHAPE.__dict__, "vocabulary": 4})
        with pytest.raises(CheckpointError, match="has a token 5, and the encoder knows 4 tokens"):
            encode_prompt(weights, tokenizer, "a room", small, tokens=8, device=CPU)

    def test_weights_of_another_model(self, weights: Path, tokenizer: Path, stored: dict[str, Tensor]):
        stored["norm.weight"] = torch.zeros(3)
        stored["head.weight"] = torch.zeros(3)
        torch.save(stored, weights)
        with pytest.raises(CheckpointError, match=r"norm.weight has shape \[3\], expected \[24\] \(and 1 more\)"):
            encode_prompt(weights, tokenizer, "a room", SHAPE, tokens=8, device=CPU)


def test_a_library_that_is_not_installed_is_missed_in_one_line():
    with pytest.raises(ConfigError, match=r"^baking needs no_such_library, which is not installed: pip install"):
        library.library("no_such_library", "baking")
