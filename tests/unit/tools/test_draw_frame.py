"""The drawing of one frame's way: fresh in the tree, well-formed, inside its edges, and about code that exists."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "draw_frame.py"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_frame", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_check_passes_on_the_drawing_in_the_tree_and_names_a_stale_or_missing_one(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--check"]) == 0, "run `make docs`"
    target = tmp_path / "one-frame.svg"
    assert tool.main(["--check"], target) == 1
    target.write_text("<svg/>", encoding="utf-8")
    assert tool.main(["--check"], target) == 1
    assert target.read_text(encoding="utf-8") == "<svg/>"
    assert capsys.readouterr().err.count("make docs") == 2
    assert tool.main([], target) == 0
    assert tool.main(["--check"], target) == 0


def test_boxes_and_lines_of_text_are_inside_the_drawing(tool: ModuleType) -> None:
    root = ElementTree.fromstring(tool.draw())
    boxes = [[int(box.attrib[name]) for name in ("x", "y", "width", "height")] for box in root.iter(f"{SVG}rect")]
    assert all(x >= 0 and y >= 0 and x + w <= tool.WIDTH and y + h <= tool.HEIGHT for x, y, w, h in boxes)
    texts = [(int(text.attrib["x"]), int(text.attrib["y"])) for text in root.iter(f"{SVG}text")]
    assert texts
    assert all(0 < x < tool.WIDTH and 0 < y < tool.HEIGHT for x, y in texts)


def test_both_grounds_have_a_colour_for_everything(tool: ModuleType) -> None:
    for name, properties in tool.COLOURS.items():
        for light, dark in properties.values():
            assert light != dark, name
    used = {kind for element in ElementTree.fromstring(tool.draw()).iter() for kind in element.get("class", "").split()}
    assert used <= {name.removeprefix(".") for name in tool.COLOURS} | {
        "mono",
        "small",
        "head",
        "title",
        "number",
        "middle",
    }


def test_what_no_file_defines_and_what_does_not_fit_is_not_drawn(tool: ModuleType) -> None:
    drawing = tool.Drawing("title", "about")
    with pytest.raises(ValueError, match="defines no breath_in"):
        drawing.names(0, 0, "kernels/breath.py", ["breath_in"], 100)
    with pytest.raises(ValueError, match="takes 72 pixels, and there are 71"):
        drawing.text(0, 0, "ten_letter", "mono ink", 71)
