import subprocess
import sys

import worldkv.camera


def test_importing_the_camera_loads_neither_torch_nor_pydantic_nor_matplotlib():
    heavy = {"torch", "pydantic", "matplotlib", "ray"}
    probe = f"import sys, worldkv.camera; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_exported_name_exists_and_has_a_docstring_where_it_can():
    for name in worldkv.camera.__all__:
        thing = getattr(worldkv.camera, name)
        assert not callable(thing) or thing.__doc__, name
