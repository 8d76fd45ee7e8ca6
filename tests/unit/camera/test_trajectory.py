import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldkv.camera.actions import Action, Motion, integrate, parse_action
from worldkv.camera.intrinsics import LINGBOT_INTRINSICS
from worldkv.camera.poses import planar_poses
from worldkv.camera.trajectory import Trajectory, load_trajectory, save_trajectory
from worldkv.errors import OutputError, TrajectoryError

FRAMES = 9


@pytest.fixture
def folder(tmp_path):
    save_trajectory(make(FRAMES), tmp_path / "walk")
    return tmp_path / "walk"


def make(frames, **changes):
    parts = {
        "c2w_F44": planar_poses(np.arange(float(frames)), 0, np.arange(float(frames))),
        "intrinsics_F4": np.tile(LINGBOT_INTRINSICS, (frames, 1)),
    }
    return Trajectory(**(parts | changes))


@settings(max_examples=25)
@given(st.lists(st.text("WSADRL", max_size=3).map(parse_action), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_saving_and_loading_gives_back_the_same_bits(tmp_path_factory, actions, focal):
    folder = tmp_path_factory.mktemp("trajectory")
    saved = make(
        len(actions),
        c2w_F44=integrate(actions, Motion(3.3, 0.07)),
        intrinsics_F4=np.full((len(actions), 4), focal),
        actions=tuple(actions),
    )
    save_trajectory(saved, folder)
    loaded = load_trajectory(folder)
    assert loaded.c2w_F44.tobytes() == saved.c2w_F44.tobytes()
    assert loaded.intrinsics_F4.tobytes() == saved.intrinsics_F4.tobytes()
    assert loaded.actions == saved.actions
    assert loaded.name == folder.name


def test_folder_and_poses_file_load_alike(folder):
    by_file = load_trajectory(folder / "poses.npy")
    assert by_file.name == load_trajectory(folder).name == "walk"
    assert len(by_file) == FRAMES


def test_trajectory_without_actions_loads_without_actions(folder):
    assert load_trajectory(folder).actions is None


def test_files_of_the_published_generator_load_by_their_prefix(tmp_path):
    source = make(FRAMES)
    np.save(tmp_path / "RL90_9_poses.npy", source.c2w_F44.astype(np.float32))
    np.save(tmp_path / "RL90_9_intrinsics.npy", source.intrinsics_F4.astype(np.float32))
    loaded = load_trajectory(tmp_path)
    assert loaded.name == "RL90_9"
    assert loaded.c2w_F44.dtype == np.float64
    np.testing.assert_allclose(loaded.c2w_F44, source.c2w_F44, atol=1e-6)


def test_action_file_alone_gives_moves_without_turns(folder):
    np.save(folder / "action.npy", np.tile([1.0, 0, 0, 1], (FRAMES, 1)))
    assert load_trajectory(folder).actions == (Action.W | Action.D,) * FRAMES


def test_missing_intrinsics_need_a_default(folder):
    (folder / "intrinsics.npy").unlink()
    with pytest.raises(TrajectoryError, match=r"intrinsics.npy: no such file"):
        load_trajectory(folder)
    loaded = load_trajectory(folder, default_intrinsics=LINGBOT_INTRINSICS)
    np.testing.assert_array_equal(loaded.intrinsics_F4, np.tile(LINGBOT_INTRINSICS, (FRAMES, 1)))


def test_default_intrinsics_do_not_hide_a_broken_file(folder):
    np.save(folder / "intrinsics.npy", np.ones((FRAMES, 3)))
    with pytest.raises(TrajectoryError, match=r"intrinsics.npy"):
        load_trajectory(folder, default_intrinsics=LINGBOT_INTRINSICS)


def test_fewer_poses_than_the_minimum_are_refused(folder):
    assert len(load_trajectory(folder, minimum_frames=FRAMES)) == FRAMES
    with pytest.raises(TrajectoryError, match=r"poses.npy: has 9 poses, at least 10 are needed"):
        load_trajectory(folder, minimum_frames=10)


def test_no_poses_at_all_are_refused(folder):
    np.save(folder / "poses.npy", np.zeros((0, 4, 4)))
    with pytest.raises(TrajectoryError, match=r"poses.npy: "):
        load_trajectory(folder)


POSES = planar_poses(np.arange(float(FRAMES)), 0, 0)
MALFORMED = {
    "wrong shape": ("poses.npy", np.zeros((FRAMES, 3, 4)), r"expected \[frames, 4, 4\]"),
    "nan": (
        "poses.npy",
        np.where(np.arange(FRAMES)[:, None, None] == 4, np.nan, POSES),
        "frame 4 of 9: .*not finite",
    ),
    "skewed": ("poses.npy", POSES * [[2, 1, 1, 1]], "frame 0 of 9: .*not orthonormal"),
    "objects": ("poses.npy", np.array([{}, None], dtype=object), "not a readable .npy array of numbers"),
    "text": ("poses.npy", np.array(["walk"]), "holds values of type <U4, expected real numbers"),
    "complex": ("poses.npy", POSES + 0j, "holds values of type complex128"),
    "flags": ("poses.npy", POSES > 0, "holds values of type bool"),
    "intrinsics shape": ("intrinsics.npy", np.ones((FRAMES, 3, 3)), r"expected \[frames, 4\]"),
    "intrinsics count": ("intrinsics.npy", np.ones((FRAMES - 1, 4)), "8 intrinsics for 9 poses"),
    "intrinsics nan": ("intrinsics.npy", np.full((FRAMES, 4), np.nan), "frame 0 of 9"),
    "action count": ("action.npy", np.zeros((FRAMES + 1, 4)), "10 actions for 9 poses"),
    "action width": ("action.npy", np.zeros((FRAMES, 6)), r"expected \[frames, 4\]"),
    "action value": ("action.npy", np.full((FRAMES, 4), -1.0), "frame 0: a key value is not between 0 and 1"),
    "look up": ("ijkl_action.npy", np.ones((FRAMES, 4)), "column 0 is held, which is no action here"),
}


@pytest.mark.parametrize(("file", "array", "fault"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_arrays_are_refused_with_file_and_fault(folder, file, array, fault):
    np.save(folder / file, array, allow_pickle=True)
    with pytest.raises(TrajectoryError, match=rf"walk.{file}: .*{fault}"):
        load_trajectory(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"not numpy", b"PK\x03\x04 archive", b"\x93NUMPY\x01", b"\x80\x04\x95pickle"],
    ids=["empty", "text", "zip", "cut short", "pickle"],
)
def test_files_that_are_no_arrays_are_refused(folder, content):
    (folder / "poses.npy").write_bytes(content)
    with pytest.raises(TrajectoryError, match=r"poses.npy: not a readable .npy array of numbers"):
        load_trajectory(folder)


def test_truncated_file_is_refused(folder):
    content = (folder / "poses.npy").read_bytes()
    (folder / "poses.npy").write_bytes(content[:-1])
    with pytest.raises(TrajectoryError, match=r"poses.npy: not a readable"):
        load_trajectory(folder)


def test_header_that_claims_terabytes_is_refused_without_allocating(folder):
    content = (folder / "poses.npy").read_bytes()
    lying = content.replace(b"(9, 4, 4), }           ", b"(99999999999, 4, 4), } ")
    assert lying != content
    (folder / "poses.npy").write_bytes(lying)
    with pytest.raises(TrajectoryError, match=r"poses.npy: not a readable"):
        load_trajectory(folder)


@settings(max_examples=150)
@given(position=st.integers(0, 127), value=st.sampled_from(b"09(){}[]',:<>|fiO \n\xff\x00"))
def test_damaged_header_never_escapes_as_another_error(tmp_path_factory, position, value):
    folder = tmp_path_factory.mktemp("damaged")
    save_trajectory(make(FRAMES), folder)
    content = bytearray((folder / "poses.npy").read_bytes())
    content[position] = value
    (folder / "poses.npy").write_bytes(content)
    try:
        load_trajectory(folder)
    except TrajectoryError as error:
        message = str(error)
    else:
        return
    assert "poses.npy" in message


def test_missing_folder_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(TrajectoryError, match=r"expected a folder or a file whose name ends in poses.npy"):
        load_trajectory(tmp_path / "nowhere")
    with pytest.raises(TrajectoryError, match=r"holds no poses.npy.*found: none"):
        load_trajectory(tmp_path)
    with pytest.raises(TrajectoryError, match="no such file"):
        load_trajectory(tmp_path / "poses.npy")


def test_folder_with_two_prefixed_poses_files_is_refused(tmp_path):
    for prefix in "ab":
        np.save(tmp_path / f"{prefix}_poses.npy", POSES)
    with pytest.raises(TrajectoryError, match=r"found: a_poses.npy, b_poses.npy"):
        load_trajectory(tmp_path)


def test_saving_never_overwrites_a_trajectory(folder):
    before = (folder / "poses.npy").read_bytes()
    with pytest.raises(OutputError, match=r"already holds a trajectory \(poses.npy, intrinsics.npy\)"):
        save_trajectory(make(3), folder)
    assert (folder / "poses.npy").read_bytes() == before


def test_saving_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_trajectory(make(3), tmp_path / "file" / "walk")


def test_parts_of_different_length_are_refused_with_the_name():
    with pytest.raises(TrajectoryError, match="walk: 8 intrinsics for 9 poses"):
        make(9, intrinsics_F4=np.ones((8, 4)), name="walk")
    with pytest.raises(TrajectoryError, match="walk: 1 actions for 9 poses"):
        make(9, actions=(Action.W,), name="walk")
    with pytest.raises(TrajectoryError, match="walk: has no poses"):
        make(0, name="walk")


def test_a_trajectory_cannot_be_changed_from_outside():
    poses = POSES.copy()
    trajectory = make(FRAMES, c2w_F44=poses)
    poses[0, 0, 3] = 99
    assert trajectory.c2w_F44[0, 0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        trajectory.c2w_F44[0, 0, 3] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        trajectory.name = "other"
