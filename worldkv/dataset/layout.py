"""Where each file of a LeRobotDataset v3.0 lies: frames and videos in one per episode, numbered like it.

LeRobot reads data and episode files in sorted name order and takes positions for indices. Three digits sort
like numbers as long as no number needs four, hence the limits below.
"""

from collections.abc import Iterable
from pathlib import Path

FILES_PER_FOLDER = 1000
"""LeRobot's own `chunks_size`; also what keeps a folder listing quick."""

MAX_EPISODES = FILES_PER_FOLDER * 1000
"""`chunk-1000` would sort before `chunk-101`: file order would no longer be index order."""

ROWS_PER_FILE = 100
"""Episodes described by one file: enough that loaders open few, few enough to write anew at each commit."""

CODEBASE_VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

INFO = Path("meta/info.json")
STATS = Path("meta/stats.json")
TASKS = Path("meta/tasks.parquet")
IDENTITY = Path("meta/worldkv.json")
LEDGER = Path("meta/worldkv_episodes.jsonl")
STAGING = Path(".staging")

LISTED_FOLDERS = ("data", "meta", "videos")
"""The folders that loaders list; a file in them that no episode owns is a fault."""


def numbers(episode_index: int) -> tuple[int, int]:
    """Return (chunk_index, file_index) of an episode's files."""
    return divmod(episode_index, FILES_PER_FOLDER)


def data_path(episode_index: int) -> Path:
    """Return the path, below the root, of an episode's frame table."""
    chunk_index, file_index = numbers(episode_index)
    return Path(DATA_PATH.format(chunk_index=chunk_index, file_index=file_index))


def row_numbers(episode_index: int) -> tuple[int, int]:
    """Return (chunk_index, file_index) of the file that holds an episode's row of metadata."""
    return divmod(episode_index // ROWS_PER_FILE, FILES_PER_FOLDER)


def row_position(episode_index: int) -> int:
    """Return which row of its file is an episode's."""
    return episode_index % ROWS_PER_FILE


def row_path(episode_index: int) -> Path:
    """Return the path, below the root, of the file that holds an episode's row of metadata."""
    chunk_index, file_index = row_numbers(episode_index)
    return Path(EPISODES_PATH.format(chunk_index=chunk_index, file_index=file_index))


def video_path(video_key: str, episode_index: int) -> Path:
    """Return the path, below the root, of one video of an episode."""
    chunk_index, file_index = numbers(episode_index)
    return Path(VIDEO_PATH.format(video_key=video_key, chunk_index=chunk_index, file_index=file_index))


def episode_files(video_keys: Iterable[str], episode_index: int) -> list[Path]:
    """Return the files that are one episode's alone, in the order of publishing: listed ones come last."""
    return [*(video_path(key, episode_index) for key in video_keys), data_path(episode_index)]
