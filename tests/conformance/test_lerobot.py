"""The real `LeRobotDataset` reads what our writer wrote: same lengths, pixels, columns, texts and facts."""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="needs the venv of tests/conformance/run.sh")

import torch
from lerobot.datasets.aggregate import aggregate_datasets
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import dataset_to_policy_features

from worldkv.dataset import ENCODER_PRESETS, DatasetReader, DatasetSchema, DatasetWriter, Episode, layout
from worldkv.dataset.video import EncoderOptions

pytestmark = pytest.mark.conformance

FPS = 12
LENGTHS = (9, 14, 6)
STARTS = (0, 9, 23)
TASKS = ("walk a loop", "turn round", "walk a loop")
MAIN, TRUTH = "observation.images.main", "observation.images.truth"


def build_episode(seed: int, size: tuple[int, int] = (64, 64)) -> Episode:
    """A moving pattern, smooth as rendered worlds are, in which each frame differs from every other."""
    rng, length = np.random.default_rng(seed), LENGTHS[seed % 3]
    row, column = np.mgrid[0 : size[0], 0 : size[1]]
    time_F = np.arange(length)[:, None, None]
    waves = [np.sin(row / (8 + k) + time_F / 3 + seed) * np.cos(column / (9 + k) - time_F / 4) for k in range(3)]
    frames_FHWC = (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    c2w_F44 = np.tile(np.eye(4, dtype=np.float32), (length, 1, 1))
    c2w_F44[:, :3] = rng.normal(size=(length, 3, 4))
    return Episode(
        frames_FHWC=frames_FHWC,
        c2w_F44=c2w_F44,
        intrinsics_F4=rng.uniform(1, 9, (length, 4)).astype(np.float32),
        action_FA=rng.normal(size=(length, 2)).astype(np.float32),
        action_names=("forward", "turn"),
        task=TASKS[seed % 3],
        fps=FPS,
        retrieved=tuple(tuple(range(frame % 3)) for frame in range(length)),
        videos={TRUTH: 255 - frames_FHWC},
        scalars={"psnr": rng.uniform(10, 40, length).astype(np.float32)},
        metadata={"seed": 100 + seed, "policy": "retrieve", "gap_seconds": 0.5 * seed},
    )


EPISODES = [build_episode(seed) for seed in range(3)]


def write(root: Path, encoder: EncoderOptions, seeds: range = range(3)) -> Path:
    schema = DatasetSchema.of(EPISODES[0], retrieved_width=3, encoder=encoder)
    with DatasetWriter.open(root, schema, provenance={"model": "rooms"}) as writer:
        for seed in seeds:
            writer.commit(EPISODES[seed % 3], f"rollout-{seed}")
    return root


def load(root: Path, **options: object) -> LeRobotDataset:
    return LeRobotDataset("worldkv/test", root=root, **options)


def pixels(image_CHW: torch.Tensor) -> np.ndarray:
    return (image_CHW * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lossless") / "dataset", ENCODER_PRESETS["lossless"])


def test_lengths_and_facts(lossless: Path) -> None:
    dataset = load(lossless)
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (sum(LENGTHS), 3, FPS)
    assert list(dataset.meta.tasks.index) == ["walk a loop", "turn round"]
    for index, row in enumerate(dataset.meta.episodes):
        assert (row["worldkv/seed"], row["worldkv/policy"]) == (100 + index, "retrieve")
        assert (row["worldkv/key"], row["worldkv/gap_seconds"]) == (f"rollout-{index}", 0.5 * index)
        assert (row["length"], row["dataset_from_index"]) == (LENGTHS[index], STARTS[index])


def test_every_frame_of_a_lossless_dataset_is_exact(lossless: Path) -> None:
    dataset = load(lossless)
    for start, episode in zip(STARTS, EPISODES, strict=True):
        for frame in range(episode.length):
            item = dataset[start + frame]
            np.testing.assert_array_equal(pixels(item[MAIN]), episode.frames_FHWC[frame])
            np.testing.assert_array_equal(pixels(item[TRUTH]), episode.videos[TRUTH][frame])
            np.testing.assert_array_equal(item["action"], episode.action_FA[frame])
            np.testing.assert_array_equal(item["observation.pose"], episode.c2w_F44[frame])
            np.testing.assert_array_equal(item["observation.state"], episode.c2w_F44[frame, :3].reshape(12))
            np.testing.assert_array_equal(item["observation.intrinsics"], episode.intrinsics_F4[frame])
            assert item["memory.retrieved_chunks"].tolist() == [*range(frame % 3), -1, -1, -1][:3]
            assert item["psnr"].item() == episode.scalars["psnr"][frame]
            assert item["timestamp"].item() == np.float32(frame / FPS)
            assert (item["frame_index"], item["index"]) == (frame, start + frame)
            assert item["task"] == episode.task


def test_the_default_encoding_is_close_and_as_our_reader_decodes_it(tmp_path: Path) -> None:
    root = write(tmp_path / "dataset", ENCODER_PRESETS["default"])
    dataset, reader = load(root), DatasetReader.open(root)
    for index, (start, episode) in enumerate(zip(STARTS, EPISODES, strict=True)):
        ours = reader.episode(index).frames_FHWC
        for frame in range(episode.length):
            theirs = pixels(dataset[start + frame][MAIN]).astype(int)
            assert np.abs(theirs - episode.frames_FHWC[frame]).mean() < 4
            assert np.abs(theirs - ours[frame]).mean() < 1


def test_windows_in_time_stay_within_their_episode(lossless: Path) -> None:
    steps = [-1 / FPS, 0.0, 2 / FPS]
    dataset = load(lossless, delta_timestamps={"action": steps, MAIN: steps})
    for start, episode in zip(STARTS, EPISODES, strict=True):
        for frame in (0, 3, episode.length - 1):
            item = dataset[start + frame]
            wanted = np.clip([frame - 1, frame, frame + 2], 0, episode.length - 1)
            np.testing.assert_array_equal(item["action"], episode.action_FA[wanted])
            for image, source in zip(item[MAIN], wanted, strict=True):
                np.testing.assert_array_equal(pixels(image), episode.frames_FHWC[source])
            assert item["action_is_pad"].tolist() == [frame == 0, False, frame + 2 >= episode.length]


def test_a_loader_with_workers_gives_every_frame_once(lossless: Path) -> None:
    loader = torch.utils.data.DataLoader(load(lossless), batch_size=4, shuffle=True, num_workers=2)
    seen = []
    for batch in loader:
        for image, index in zip(batch[MAIN], batch["index"].tolist(), strict=True):
            owner = max(number for number, start in enumerate(STARTS) if start <= index)
            np.testing.assert_array_equal(pixels(image), EPISODES[owner].frames_FHWC[index - STARTS[owner]])
            seen.append(index)
    assert sorted(seen) == list(range(sum(LENGTHS)))


def test_a_choice_of_episodes_loads(lossless: Path) -> None:
    dataset = load(lossless, episodes=[1])
    assert len(dataset) == LENGTHS[1]
    np.testing.assert_array_equal(pixels(dataset[2][MAIN]), EPISODES[1].frames_FHWC[2])


def test_policies_find_their_features_and_statistics(lossless: Path) -> None:
    dataset = load(lossless)
    features = dataset_to_policy_features(dataset.features)
    assert features[MAIN].shape == (3, 64, 64)
    assert features["observation.state"].shape == (12,)
    assert features["action"].shape == (2,)
    actions = np.concatenate([episode.action_FA for episode in EPISODES])
    np.testing.assert_allclose(dataset.meta.stats["action"]["mean"], actions.mean(0), rtol=1e-5)
    assert dataset.meta.stats[MAIN]["mean"].shape == (3, 1, 1)
    assert set(dataset.meta.stats) == set(dataset.features)


def test_folders_of_files_keep_the_order_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "FILES_PER_FOLDER", 2)
    monkeypatch.setattr(layout, "ROWS_PER_FILE", 2)
    dataset = load(write(tmp_path / "dataset", ENCODER_PRESETS["lossless"], range(5)))
    assert sorted(path.name for path in (tmp_path / "dataset/data").iterdir()) == [
        "chunk-000",
        "chunk-001",
        "chunk-002",
    ]
    for index in (0, 9, 23, 29, 38, 51):
        item = dataset[index]
        assert item["index"] == index
        episode = EPISODES[int(item["episode_index"]) % 3]
        np.testing.assert_array_equal(pixels(item[MAIN]), episode.frames_FHWC[int(item["frame_index"])])
        np.testing.assert_array_equal(item["action"], episode.action_FA[int(item["frame_index"])])


@pytest.mark.parametrize("renames", range(7))
def test_a_kill_between_any_two_renames_leaves_the_committed_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    schema = DatasetSchema.of(EPISODES[0], retrieved_width=3, encoder=ENCODER_PRESETS["lossless"])
    writer = DatasetWriter.open(tmp_path / "dataset", schema)
    writer.commit(EPISODES[0], "a")
    real, left = os.replace, [None] * renames

    def replace(*names: object) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        real(*names)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        writer.commit(EPISODES[1], "b")
    dataset = load(tmp_path / "dataset")
    assert (len(dataset), dataset.num_episodes) == (LENGTHS[0], 1)
    for frame in range(LENGTHS[0]):
        item = dataset[frame]
        assert (item["episode_index"], item["task"]) == (0, TASKS[0])
        np.testing.assert_array_equal(pixels(item[MAIN]), EPISODES[0].frames_FHWC[frame])


def test_lerobot_merges_our_datasets_and_keeps_our_facts(tmp_path: Path) -> None:
    roots = [write(tmp_path / name, ENCODER_PRESETS["default"]) for name in ("one", "other")]
    aggregate_datasets(["a/one", "a/other"], "a/both", roots=roots, aggr_root=tmp_path / "both")
    both, one = load(tmp_path / "both"), load(roots[0])
    assert (len(both), both.num_episodes) == (2 * sum(LENGTHS), 6)
    assert [row["worldkv/seed"] for row in both.meta.episodes] == [100, 101, 102] * 2
    for index in range(0, 2 * sum(LENGTHS), 5):
        item, wanted = both[index], one[index % sum(LENGTHS)]
        assert torch.equal(item["action"], wanted["action"])
        assert torch.equal(item[MAIN], wanted[MAIN])
        assert item["task"] == wanted["task"]
