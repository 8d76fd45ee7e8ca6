"""How OpenMP's waiting policy bears on one forward of the rooms model while another process wants a core.

    python benchmarks/openmp_waiting.py

Starts one busy process, then times forwards (2 threads, 1 session, a window of 7 chunks) in a fresh process per policy.
"""

import os
import statistics
import subprocess
import sys
import time

FORWARDS = 12


def measure() -> None:
    """Print the median milliseconds of a forward in this process."""
    import numpy as np
    import torch

    from worldkv.models.base import View
    from worldkv.models.rooms.model import RoomsModel
    from worldkv.window.buffer import Slot, WindowBuffer

    torch.set_num_threads(2)
    model = RoomsModel.load()
    still = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    view = View(still, np.tile(np.array(model.intrinsics, np.float32), (3, 1)))
    condition = model.condition([model.open(view, {})], [view])

    def load(k: torch.Tensor, v: torch.Tensor) -> None:
        k.normal_()
        v.normal_()

    row = [Slot(chunk, 3 * chunk, 192, load) for chunk in range(7)]
    window = WindowBuffer(model.geometry, model.device, model.kv_dtype).assemble([row], [21])
    latents = torch.randn(1, 3, *model.latent_shape)
    taken = []
    for _ in range(FORWARDS):
        started = time.perf_counter()
        model.estimate(latents, 1.0, condition, window)
        taken.append(time.perf_counter() - started)
    print(f"{1000 * statistics.median(taken):.0f}")


def main() -> None:
    """Time every policy beside a busy process."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for policy in (None, "ACTIVE", "PASSIVE"):
            environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
            if policy:
                environment["OMP_WAIT_POLICY"] = policy
            done = subprocess.run(
                [sys.executable, __file__, "measure"], env=environment, capture_output=True, text=True
            )
            print(f"{policy or 'unset':8} {done.stdout.strip()} ms per forward", flush=True)
    finally:
        busy.kill()


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["measure"] else main()
