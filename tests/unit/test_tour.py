"""Every stop of docs/tour.md exists: the file, and the function in it. Links between the documents lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STOPS = re.findall(r"`([\w/]+\.(?:rs|py))`:\s+`(\w+)`", (ROOT / "docs/tour.md").read_text())
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize(("file", "function"), STOPS)
def test_a_stop_exists(file: str, function: str) -> None:
    source = (ROOT / file).read_text()
    assert re.search(
        rf"^\s*(?:(?:pub(?:\([\w: ]+\))? )?(?:const )?fn|(?:async )?def) {function}\b", source, re.MULTILINE
    )


def test_the_tour_has_stops() -> None:
    assert len(STOPS) >= 20


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target
