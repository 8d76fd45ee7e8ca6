"""Runs only in the venv that `run.sh` makes: the real LeRobot library beside a CPU build of torch."""

import importlib.util
import os
from pathlib import Path

import pytest

LEROBOT = importlib.util.find_spec("lerobot") is not None

if LEROBOT:
    import torch

    # torchvision's compiled part wants a CUDA build of torch; declaring the operators that it would have
    # registered is enough for its transforms in pure Python, all that LeRobot's datasets use.
    TORCHVISION = torch.library.Library("torchvision", "DEF")
    TORCHVISION.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    TORCHVISION.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(autouse=True, scope="session")
def _no_hub() -> None:
    """Without these LeRobot answers a broken dataset by trying to download it."""
    assert os.environ.get("HF_HUB_OFFLINE") == "1", "run through tests/conformance/run.sh"
    assert Path(os.environ["HF_HOME"]).is_dir(), "run through tests/conformance/run.sh"
