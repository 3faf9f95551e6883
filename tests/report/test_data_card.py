"""The data card shows what the tables hold."""

from html.parser import HTMLParser

from jaxmoe.phases import prepare
from jaxmoe.report import data_card
from tests.data import trees
from tests.phases.test_prepare import config_for


class Cells(HTMLParser):
    """All texts of a page, and whether its tags are balanced where they must be."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag in ("table", "svg", "p"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("table", "svg", "p"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(" ".join(data.split()))


def test_card_of_a_sap_release(tmp_path):
    trees.sap_tree(tmp_path / "2025-11-02", 20, 2, lambda path, n: trees.sound(path, 2.0, n))
    folder = tmp_path / "2025-11-02/Train/nobody"
    trees.sound(folder / "<b>.wav")
    config = config_for(corpus="sap", path=tmp_path)
    prepare.run(config, tmp_path / "run")
    page = Cells()
    page.feed((tmp_path / "run/corpus/card.html").read_text())
    assert not page.open
    text = " | ".join(page.texts)
    assert "40 recordings, 0.02 hours." in text
    assert "ALS" in text and "no metadata" in text and "not en-US: English, Spanish" in text
    assert "simulated" not in text
    # Every prompt is read by many: all of those held out are in train too.
    assert "100.0 % of the held-out recordings" in text


def test_bars_are_in_proportion_and_escaped():
    svg = data_card.bars([("a<b", 10.0), ("c", 5.0)], "h", 1)
    assert 'width="420.0"' in svg and 'width="210.0"' in svg and "a&lt;b" in svg and "10.0 h" in svg
    assert data_card.bars([], "h").count("<rect") == 0
