"""What is written comes back, in the layout that LeRobot expects."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from worldkv.dataset import ENCODER_PRESETS, DatasetReader, DatasetSchema, DatasetWriter, EncoderOptions
from worldkv.dataset.layout import data_path, numbers
from worldkv.errors import DatasetError, OutputError


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_episode, schema) -> Path:
    root = tmp_path_factory.mktemp("round") / "deep" / "dataset"
    with DatasetWriter.open(root, schema, provenance={"model": "rooms", "digest": "abc"}) as writer:
        for seed in range(3):
            assert writer.commit(make_episode(seed), f"rollout-{seed}") == seed
        assert list(writer.committed_keys) == ["rollout-0", "rollout-1", "rollout-2"]
    return root


def test_every_part_of_an_episode_comes_back_exactly_with_the_lossless_preset(root, make_episode, same):
    reader = DatasetReader.open(root)
    assert len(reader) == 3
    assert reader.keys == ["rollout-0", "rollout-1", "rollout-2"]
    assert all(same(found, make_episode(seed)) for seed, found in enumerate(reader))
    assert same(reader.episode(-1), make_episode(2))
    with pytest.raises(IndexError):
        reader.episode(3)


def test_a_written_dataset_has_no_fault_and_no_file_of_unknown_use(root, tree):
    assert DatasetReader.open(root).verify() == []
    assert sorted(tree(root)) == sorted(
        [f"meta/{name}" for name in ("info.json", "stats.json", "tasks.parquet", "worldkv.json")]
        + ["meta/worldkv_episodes.jsonl", "meta/episodes/chunk-000/file-000.parquet"]
        + [f"data/chunk-000/file-00{n}.parquet" for n in range(3)]
        + [f"videos/observation.images.{name}/chunk-000/file-00{n}.mp4" for name in ("main", "truth") for n in range(3)]
    )


def test_info_counts_what_was_committed_and_declares_exactly_the_columns(root):
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 9, 2)
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 12, {"train": "0:3"})
    declared = [name for name, feature in info["features"].items() if feature["dtype"] != "video"]
    assert pq.read_table(root / "data/chunk-000/file-000.parquet").column_names == declared
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["forward", "turn"]}
    video = info["features"]["observation.images.main"]
    assert video["shape"] == [16, 16, 3]
    assert (video["info"]["video.codec"], video["info"]["video.fps"]) == ("ffv1", 12)


def test_frame_tables_count_on_from_file_to_file(root):
    tables = [pq.read_table(root / data_path(index)) for index in range(3)]
    assert [i for table in tables for i in table["index"].to_pylist()] == list(range(9))
    assert tables[1]["frame_index"].to_pylist() == [0, 1]
    assert tables[1]["task_index"].to_pylist() == [1, 1]
    assert tables[2]["task_index"].to_pylist() == [0] * 4
    assert tables[2]["timestamp"].to_numpy().tolist() == (np.arange(4) / 12).astype(np.float32).tolist()
    assert tables[0]["memory.retrieved_chunks"].to_pylist() == [[-1, -1, -1], [0, -1, -1], [0, 1, -1]]


def test_state_is_the_pose_without_its_last_row(root, make_episode):
    state = pq.read_table(root / data_path(0))["observation.state"].to_pylist()
    np.testing.assert_array_equal(state, make_episode(0).c2w_F44[:, :3].reshape(3, 12))


def test_episode_rows_carry_our_facts_beside_lerobots(root):
    row = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    assert (row["worldkv/key"], row["worldkv/seed"], row["worldkv/policy"]) == ("rollout-1", 1, "retrieve")
    assert (row["dataset_from_index"], row["dataset_to_index"], row["length"]) == (3, 5, 2)
    assert row["tasks"] == ["turn round"]
    assert row["videos/observation.images.truth/to_timestamp"] == 2 / 12
    assert (row["data/file_index"], row["meta/episodes/file_index"]) == (1, 0)


def test_statistics_cover_every_feature_and_agree_with_numpy(root, make_episode):
    stats = json.loads((root / "meta/stats.json").read_text())
    info = json.loads((root / "meta/info.json").read_text())
    assert set(stats) == set(info["features"])
    action = np.concatenate([make_episode(seed).action_FA for seed in range(3)])
    np.testing.assert_allclose(stats["action"]["mean"], action.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], action.std(0), rtol=1e-6)
    np.testing.assert_array_equal(stats["action"]["max"], action.max(0).astype(np.float64))
    pixels = np.concatenate([make_episode(seed).frames_FHWC for seed in range(3)]).reshape(-1, 3) / 255
    main = stats["observation.images.main"]
    np.testing.assert_allclose(np.ravel(main["mean"]), pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(np.ravel(main["std"]), pixels.std(0), rtol=1e-12)
    assert np.shape(main["q50"]) == (3, 1, 1)
    assert main["count"] == stats["action"]["count"] == [9]
    assert np.shape(stats["observation.pose"]["mean"]) == (4, 4)


def test_tasks_name_their_index_column_for_pandas(root):
    table = pq.read_table(root / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["walk a loop", "turn round"]}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_describe_tells_what_an_operator_asks(root, tree):
    summary = DatasetReader.open(root).describe()
    assert (summary.episodes, summary.frames, summary.fps, summary.seconds) == (3, 9, 12, 0.75)
    assert summary.tasks == ("walk a loop", "turn round")
    assert summary.videos == {"observation.images.main": (16, 16), "observation.images.truth": (16, 16)}
    assert (summary.codec, summary.metadata) == ("ffv1", ("gap_seconds", "policy", "seed"))
    assert summary.provenance == {"model": "rooms", "digest": "abc"}
    assert 0 < summary.size_bytes < sum(map(len, tree(root).values()))
    assert {"action", "observation.pose", "psnr"} <= set(summary.features)


def test_two_runs_write_the_same_bytes(tmp_path, make_episode, tree):
    schema = DatasetSchema.of(make_episode(0), retrieved_width=3)
    for name in ("one", "other"):
        with DatasetWriter.open(tmp_path / name, schema) as writer:
            writer.commit(make_episode(0), "a")
    assert tree(tmp_path / "one") == tree(tmp_path / "other")


def test_the_default_preset_comes_back_close(tmp_path, make_episode):
    row, column = np.mgrid[0:32, 0:48]
    waves = [128 + 90 * np.sin((row + phase) / 9) * np.cos(column / 11) for phase in range(3)]
    smooth_FHWC = np.repeat(np.stack(waves)[..., None], 3, axis=-1).astype(np.uint8)
    episode = dataclasses.replace(make_episode(0), frames_FHWC=smooth_FHWC, videos={}, retrieved=())
    schema = DatasetSchema.of(episode, retrieved_width=0, encoder=ENCODER_PRESETS["default"])
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        writer.commit(episode, "a")
    reader = DatasetReader.open(tmp_path / "d")
    found = reader.episode(0)
    assert reader.verify() == []
    assert found.retrieved == ()
    assert np.abs(found.frames_FHWC.astype(int) - smooth_FHWC).mean() < 1.5


def test_one_frame_one_action_one_retrieved_chunk_come_back(tmp_path, make_episode, same):
    episode = make_episode(0, length=1)
    episode = dataclasses.replace(
        episode, action_FA=episode.action_FA[:, :1], action_names=("turn",), retrieved=((7,),)
    )
    schema = DatasetSchema.of(episode, retrieved_width=1, encoder=ENCODER_PRESETS["lossless"])
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        writer.commit(episode, "a")
    assert same(DatasetReader.open(tmp_path / "d").episode(0), episode)


def test_the_order_in_which_a_caller_names_things_does_not_matter(make_episode, schema):
    episode = make_episode(0)
    metadata = dict(reversed(episode.metadata.items()))
    other = DatasetSchema.of(dataclasses.replace(episode, metadata=metadata), retrieved_width=3, encoder=schema.encoder)
    assert other == schema
    assert list(other.metadata) == list(schema.metadata)


def test_file_numbers_stay_in_index_order_up_to_the_last_episode():
    assert numbers(999) == (0, 999)
    assert str(data_path(1000)) == "data/chunk-001/file-000.parquet"
    paths = [str(data_path(index)) for index in (0, 999, 1000, 100_999, 101_000, 999_999)]
    assert paths == sorted(paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c2w_F44": np.zeros((2, 4, 4), np.float32)}, r"c2w_F44: expected float32 \(3, 4, 4\)"),
        ({"intrinsics_F4": np.zeros((3, 4))}, "found float64"),
        ({"action_FA": np.full((3, 2), np.nan, np.float32)}, "frame 0 holds NaN"),
        ({"frames_FHWC": np.zeros((3, 16, 16), np.uint8)}, "frames_FHWC|observation.images.main"),
        ({"frames_FHWC": np.zeros((0, 16, 16, 3), np.uint8)}, "none empty"),
        ({"scalars": {"psnr": np.full(3, np.inf, np.float32)}}, "psnr: frame 0"),
        ({"retrieved": ((0,),)}, "1 entries for 3 frames"),
        ({"retrieved": ((-1,), (), ())}, "0 or more"),
        ({"task": ""}, "task text"),
        ({"fps": 0}, "fps"),
        ({"videos": {"observation.images.main": np.zeros((3, 16, 16, 3), np.uint8)}}, "is frames_FHWC"),
    ],
)
def test_an_episode_that_contradicts_itself_is_refused(make_episode, change, message):
    with pytest.raises(DatasetError, match=message):
        dataclasses.replace(make_episode(0), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 24}, "fps is 24, expected 12"),
        ({"action_names": ("turn", "forward")}, "action_names"),
        ({"metadata": {"seed": 0, "policy": "retrieve"}}, "metadata"),
        ({"metadata": {"seed": "0", "policy": "retrieve", "gap_seconds": 0.0}}, "metadata"),
        ({"metadata": {"seed": 2**64, "policy": "retrieve", "gap_seconds": 0.0}}, "64 bits"),
        ({"metadata": {"seed": True, "policy": "retrieve", "gap_seconds": 0.0}}, "seed=True"),
        ({"task": "half \ud800"}, "surrogates not allowed"),
        ({"scalars": {}}, "scalars"),
        ({"videos": {}}, "videos"),
        ({"retrieved": ((0, 1, 2, 3), (), ())}, "retrieved 4 chunks, the dataset has room for 3"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_and_changes_nothing(
    tmp_path, make_episode, schema, tree, change, message
):
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        before = tree(tmp_path)
        with pytest.raises(DatasetError, match=message):
            writer.commit(dataclasses.replace(make_episode(0), **change), "a")
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": {"observation.images.truth": (16, 16)}}, "lack observation.images.main"),
        ({"videos": {"observation.images.main": (15, 16)}}, "15x16 has an odd side"),
        ({"videos": {"observation.images.main": (16, 16), "observation.images./x": (16, 16)}}, "video name"),
        ({"scalars": ("a/b",)}, "feature name 'a/b'"),
        ({"scalars": ("action",)}, "the dataset's own"),
        ({"metadata": {"key": "str"}}, "the dataset's own"),
        ({"fps": 0}, "fps 0"),
        ({"action_names": ()}, "not empty"),
    ],
)
def test_a_schema_that_no_loader_could_read_is_refused(schema, change, message):
    with pytest.raises(DatasetError, match=message):
        dataclasses.replace(schema, encoder=EncoderOptions(), **change)


def test_odd_sizes_are_fine_for_the_lossless_preset(tmp_path, make_episode, same):
    episode = make_episode(1, size=(5, 7))
    schema = DatasetSchema.of(episode, retrieved_width=3, encoder=ENCODER_PRESETS["lossless"])
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        writer.commit(episode, "a")
    assert same(DatasetReader.open(tmp_path / "d").episode(0), episode)


def test_encoder_options_out_of_range_are_refused():
    with pytest.raises(DatasetError, match=r"crf 0\.\.51"):
        EncoderOptions(crf=52)


def test_a_key_is_committed_once(tmp_path, make_episode, schema):
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        writer.commit(make_episode(0), "a")
        for key in ("a", ""):
            with pytest.raises(DatasetError, match="empty or already committed"):
                writer.commit(make_episode(1), key)


def test_errors_survive_pickling(tmp_path):
    with pytest.raises(DatasetError) as caught:
        DatasetReader.open(tmp_path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) == f"{tmp_path}: no WorldKV dataset (meta/worldkv.json is missing)"
    assert isinstance(pickle.loads(pickle.dumps(OutputError("x: full"))), OSError)
