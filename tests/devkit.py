"""A SIRSTdevkit of two images, written file by file, for the tests of the modules that read, count and fetch it."""
import numpy as np
import pytest
from PIL import Image

from bafe_nb import densesirst as ds
from bafe_nb.boxes import InputError

H, W = 12, 17


def xml(boxes, head=""):
    items = "".join("<object><name>Target</name><bndbox>" + "".join(f"<{t}>{v}</{t}>" for t, v in zip(ds.CORNERS, b)) + "</bndbox></object>" for b in boxes)
    return f"{head}<annotation>{items}</annotation>"


@pytest.fixture
def kit(tmp_path):
    """A devkit of two images, `a` with two targets and `b` with one whose box is shifted."""
    root = tmp_path / "SIRSTdevkit"
    for folder in (*ds.FOLDERS, "Splits"): (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, corners, shifted in (("a", [(2, 3, 5, 6), (9, 1, 11, 5)], 0), ("b", [(6, 4, 9, 7)], 1)):
        targets, sky = np.zeros((H, W), np.uint8), np.zeros((H, W), np.uint8)
        for x1, y1, x2, y2 in corners: targets[y1:y2, x1:x2] = 1
        sky[:8] = 1
        Image.fromarray(rng.integers(0, 200, (H, W), dtype=np.uint8)).save(root / f"PNGImages/{name}.png")
        Image.fromarray(targets).save(root / f"SIRST/PaletteMask/{name}.png")
        Image.fromarray(sky).save(root / f"SkySeg/PaletteMask/{name}.png")
        (root / f"SIRST/BBox/{name}.xml").write_text(xml([[v + shifted for v in c] for c in corners]))
    for split, text in dict(trainval_v2="a", train_v2="a", val_v2="a\n", test_v2="b", test_v1="a\nb").items(): (root / f"Splits/{split}.txt").write_text(text)
    return root


def one_line(call, *args, **keywords):
    """The message of the InputError, which must be one line."""
    with pytest.raises(InputError) as caught: call(*args, **keywords)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message
