import pytest
import torch

from worldkv.errors import ConfigError
from worldkv.memory.catalogue import Form
from worldkv.memory.codec import CODECS
from worldkv.memory.compression import Pruning, kept_tokens
from worldkv.memory.detail import Detail, Ladder, parse_detail
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory

LADDER = Ladder((Detail("int4"), Detail("int4", 0.5)), rows=2, columns=2)
TOKENS = 12  # three latent frames of 2 x 2


def one_tier(make_memory, capacity_bytes: int, ladder: Ladder = LADDER) -> ChunkMemory:
    return ChunkMemory(make_memory(capacity_bytes).tiers, "weights-a", [TierRules(ladder=ladder)])


def kv(chunk) -> torch.Tensor:
    k, v = CODECS[chunk.encoded.codec].decode(chunk.encoded, torch.float32)
    return torch.stack([k, v])


def test_a_chunk_under_pressure_loses_detail_keeps_its_id_and_still_hits(new_chunk, make_memory):
    a, b = new_chunk(0, tokens=TOKENS), new_chunk(1, tokens=TOKENS)
    memory = one_tier(make_memory, a.nbytes + b.nbytes - 1)
    memory.admit(a)
    memory.admit(b)
    found = memory.fetch([a.id, b.id])
    assert [chunk.encoded.codec for chunk in found] == ["int4", "fp32"]
    assert (found[0].index, found[0].tenant) == (0, "default")
    torch.testing.assert_close(kv(found[0]), kv(a), atol=0.2, rtol=0)
    stats = memory.stats()
    assert (stats.reduced, stats.dropped, stats.hits) == (1, 0, 2)
    assert memory.check_integrity() == []


def test_all_chunks_lose_the_first_detail_before_one_loses_the_second_and_none_is_dropped_before(
    new_chunk, make_memory
):
    chunks = [new_chunk(i, tokens=TOKENS) for i in range(12)]
    memory = one_tier(make_memory, 3 * chunks[0].nbytes)
    seen = []
    for count, chunk in enumerate(chunks, 1):
        memory.admit(chunk)
        held = memory.held([chunk.id for chunk in chunks[:count]]).values()
        forms = {(c.encoded.codec, c.token_ids_T3 is not None) for c in held}
        seen.append((len(held) == count, forms))
        if len(held) < count:
            # The last to come may still be whole; all others have nothing left to lose.
            assert sum(c.encoded.codec == "fp32" or c.token_ids_T3 is None for c in held) <= 1
        if ("int4", True) in forms:
            assert sum(c.encoded.codec == "fp32" for c in held) <= 1
    assert not seen[-1][0]
    assert memory.stats().dropped > 0
    assert memory.check_integrity() == []


def test_a_pruned_chunk_names_the_tokens_it_kept(new_chunk, make_memory):
    a = new_chunk(0, tokens=TOKENS)
    small = LADDER.reduce(a, Detail("fp32", 0.5))
    frame, row, column = torch.from_numpy(small.token_ids_T3).long().T
    assert small.tokens == 4 + 2 + 2
    assert torch.equal(kv(small), kv(a)[:, :, 4 * frame + 2 * row + column])
    small.verify()


def test_what_admits_the_reduced_form_itself_shares_it(new_chunk, make_memory):
    whole, coarse = new_chunk(0, tokens=TOKENS), new_chunk(0, tokens=TOKENS, codec="int4")
    filler = new_chunk(1, tokens=TOKENS)
    memory = one_tier(make_memory, whole.nbytes + filler.nbytes - 1)
    memory.admit(whole)
    memory.admit(filler)
    used = memory.tiers[0].used_bytes
    assert memory.admit(coarse) == coarse.id
    assert memory.tiers[0].used_bytes == used
    memory.release([whole.id])
    assert memory.fetch([coarse.id])[0].id == coarse.id
    memory.release([coarse.id, filler.id])
    assert memory.lying() == [[]]
    assert memory.check_integrity([]) == []


def test_a_chunk_whose_reduced_form_is_held_already_becomes_that_one(new_chunk, make_memory):
    whole, coarse = new_chunk(0, tokens=TOKENS), new_chunk(0, tokens=TOKENS, codec="int4")
    filler = new_chunk(1, tokens=TOKENS)
    memory = one_tier(make_memory, whole.nbytes + coarse.nbytes + filler.nbytes - 1)
    for chunk in (whole, coarse, filler):
        memory.admit(chunk)
    assert memory.lying() == [[coarse.id, filler.id]]
    assert [chunk.id for chunk in memory.fetch([whole.id, coarse.id])] == [coarse.id, coarse.id]
    assert memory.check_integrity() == []


def test_a_reduced_chunk_restored_elsewhere_is_still_known_by_its_first_id(new_chunk, make_memory):
    a, b = new_chunk(0, tokens=TOKENS), new_chunk(1, tokens=TOKENS)
    memory = one_tier(make_memory, a.nbytes + b.nbytes - 1)
    memory.admit(a)
    memory.admit(b)
    twin = make_memory(2**20)
    for chunk_id, chunk in memory.held([a.id, b.id]).items():
        assert twin.admit(chunk, known_as=chunk_id) == chunk_id
    assert [chunk.encoded.codec for chunk in twin.fetch([a.id, b.id])] == ["int4", "fp32"]
    twin.release([a.id, b.id])
    assert twin.lying() == [[]]


def test_chunks_of_another_models_grid_are_not_pruned(new_chunk):
    form = new_chunk(0, tokens=6, codec="int4")
    assert LADDER.next_rung(Form("int4", form.encoded.shape, False)) is None
    assert LADDER.next_rung(Form("fp32", form.encoded.shape, False)) == Detail("int4")


def test_details_are_written_as_codec_and_share_of_tokens():
    assert parse_detail("int4") == Detail("int4")
    assert parse_detail("int4/keep=0.25") == Detail("int4", 0.25)
    assert parse_detail("int4/keep=0.5/rule=nearest") == Detail("int4", 0.5)
    assert parse_detail("int8/rule=centroid/keep=0.5") == Detail("int8", 0.5, "centroid")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("zip", "detail 'zip': must be one of fp32, bf16"),
        ("int4/keep=2", "detail 'int4/keep=2': keep_ratio=2.0: must be above 0 and at most 1"),
        ("int4/keep=x", "detail 'int4/keep=x': keep must be a number"),
        ("int4/half", "detail 'int4/half': expected a codec alone, or with /keep=0.5"),
        ("int4/", "detail 'int4/': expected a codec alone"),
        ("int4/keep=0.5/keep=0.5", "expected a codec alone"),
        ("int4/share=0.5", "expected a codec alone"),
        ("int4/rule=centroid", "add keep=0.5"),
        ("int4/keep=0.5/rule=mean", "rule='mean': must be one of centroid, nearest"),
    ],
)
def test_a_detail_that_means_nothing_is_refused(text, told):
    with pytest.raises(ConfigError) as fault:
        parse_detail(text)
    assert told in str(fault.value)


@pytest.mark.parametrize("rule", ["centroid", "nearest"])
def test_a_rung_prunes_by_its_rule(new_chunk, rule):
    a = new_chunk(0, tokens=TOKENS, seed=3)
    kept_T = kept_tokens(kv(a)[0], 3, Pruning(0.5, rule, joint=True))
    small = LADDER.reduce(a, Detail("fp32", 0.5, rule))
    assert torch.equal(kv(small), kv(a)[:, :, kept_T])
    other = LADDER.reduce(a, Detail("fp32", 0.5, "centroid" if rule == "nearest" else "nearest"))
    assert not torch.equal(kv(small), kv(other))


def test_pruning_needs_the_grid_of_tokens():
    with pytest.raises(ConfigError, match="rows=0, columns=0"):
        Ladder((Detail("int4", 0.5),))
