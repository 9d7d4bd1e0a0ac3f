"""A chart is drawn once and shown twice: inline in the page's colours and font, and as files for slides and papers."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with: the page's CSS variables, or the colours of a file, take their place.
INK, MUTED, RULE, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = ("#00000a", "#00000b", "#00000c", "#00000d")
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"}
VARIABLES |= {stand_in: f"--c{i + 1}" for i, stand_in in enumerate(SERIES)}
ON_WHITE = {INK: "#1d2127", MUTED: "#5b626c", RULE: "#e4e1da", PAPER: "#ffffff"}
ON_WHITE |= dict(zip(SERIES, ("#0b62a8", "#b4490c", "#16806a", "#8b3f95"), strict=True))
MARKERS = ("o", "s", "D", "^")
WIDTH = 5.2  # of most charts, in inches: their words can be read on a phone
DPI = 160  # of PNG files
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
}
PAINTED = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


class Chart(NamedTuple):
    """An SVG for the page, and what it shows, in words, for those who do not see it.

    Attributes:
        name: of its files, and what its ids start with.
        drawing: what files are made from.
    """

    svg: str
    alt: str
    name: str = ""
    drawing: Figure | None = None

    @classmethod
    def of(cls, drawing: Figure, name: str, alt: str) -> "Chart":
        """Finish a drawing."""
        return cls(_inline(_svg(drawing, name), name, alt), alt, name, drawing)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """(suffix, content): an SVG and a PNG on white that need no page around them."""
        svg = _svg(self.drawing, self.name)
        for stand_in, colour in ON_WHITE.items():
            svg = svg.replace(stand_in, colour)
        yield "svg", svg.encode()
        yield "png", _png(self.drawing)


@contextmanager
def styled(**changes: Any) -> Iterator[None]:
    """Matplotlib's settings while a chart is drawn."""
    with matplotlib.rc_context(STYLE | changes):
        yield


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own (inches), without pyplot's global state."""
    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(drawing)
    return drawing, drawing.add_subplot()


def _svg(drawing: Figure, name: str) -> str:
    """The drawing as an SVG element, equal for equal drawings."""
    buffer = io.StringIO()
    with styled(**{"svg.hashsalt": name}):
        drawing.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def _inline(text: str, name: str, alt: str) -> str:
    """An SVG element whose ids are its own and whose colours are the page's."""
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', text).group(1))
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg role="img" aria-label="{label}" style="max-width:{width * 1.5:.0f}px"'
    return re.sub(
        r'<svg\b([^>]*?) width="[^"]*"|<svg\b', lambda m: head + (m.group(1) or ""), text, count=1
    )


def _png(drawing: Figure) -> bytes:
    """The drawing as a PNG on white. It is painted for good: its SVG has been made before."""
    for artist in drawing.findobj():
        for which in PAINTED:
            _paint(artist, which)
    buffer = io.BytesIO()
    FigureCanvasAgg(drawing)
    drawing.savefig(buffer, format="png", dpi=DPI, facecolor="#ffffff", metadata={"Software": None})
    return buffer.getvalue()


def _paint(artist: Any, which: str) -> None:
    """Put the colours of a file in the place of stand-ins; an artist without that property stays as it is."""
    get, put = getattr(artist, f"get_{which}", None), getattr(artist, f"set_{which}", None)
    if get is None or put is None:
        return
    try:
        before = to_rgba_array(get())
    except ValueError:  # "auto", "none" and the like
        return
    stand_ins = [to_hex(colour) for colour in before]
    if not set(stand_ins) & set(ON_WHITE):
        return
    alphas = before[:, 3]
    after = to_rgba_array([ON_WHITE.get(one, one) for one in stand_ins])
    after[:, 3] = alphas
    put(after if len(after) > 1 else after[0])
