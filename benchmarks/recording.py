"""What every result file says of itself: hardware, command, date, versions; and its two forms, .md and .json."""

import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def circumstances(device: torch.device) -> dict[str, str]:
    """Where, when and how this process measures."""
    return {
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "load average at the end": f"{os.getloadavg()[0]:.1f}",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
    }


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The first column is of names, the others of numbers."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *lines))


def save(stem: Path, title: str, body: str, content: Mapping[str, object]) -> None:
    """Write `stem`.md and `stem`.json; both begin with `content["circumstances"]`."""
    facts = content["circumstances"]
    assert isinstance(facts, dict)
    told = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    stem.with_suffix(".md").write_text(f"# {title}\n\n{told}\n\n{body}\n")
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _cpu() -> str:
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else 'an unnamed CPU'}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
