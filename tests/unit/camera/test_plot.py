import pytest

from worldkv.camera.notation import trajectory_from_notation
from worldkv.camera.plot import plot_topdown
from worldkv.errors import OutputError


@pytest.mark.parametrize("notation", ["RW90_100", "R_L90_120", "__1", "W_30"])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_writes_the_picture(tmp_path, notation, suffix):
    path = tmp_path / "deep" / f"{notation}.{suffix}"
    plot_topdown(trajectory_from_notation(notation), path)
    assert path.read_bytes()[:8] in (b"\x89PNG\r\n\x1a\n", b"<?xml ve")


def test_plot_of_another_kind_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"cannot draw .bmp, allowed are .png, .svg, .pdf"):
        plot_topdown(trajectory_from_notation("W"), tmp_path / "walk.bmp")


def test_plot_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        plot_topdown(trajectory_from_notation("W"), tmp_path / "file" / "walk.png")
