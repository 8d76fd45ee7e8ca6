"""Episodes on disk as a LeRobotDataset v3.0: written atomically, resumable to the same bytes, verifiable."""

from worldkv.dataset.episode import MAIN_VIDEO, Episode
from worldkv.dataset.reader import DatasetReader, DatasetSummary
from worldkv.dataset.schema import DatasetSchema
from worldkv.dataset.verify import Fault
from worldkv.dataset.video import ENCODER_PRESETS, EncoderOptions
from worldkv.dataset.writer import DatasetWriter

__all__ = [
    "ENCODER_PRESETS",
    "MAIN_VIDEO",
    "DatasetReader",
    "DatasetSchema",
    "DatasetSummary",
    "DatasetWriter",
    "EncoderOptions",
    "Episode",
    "Fault",
]
