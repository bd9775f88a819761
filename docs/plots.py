"""Draws the picture of loss.md: `python docs/plots.py > docs/loss.svg`."""  # noqa: INP001 - a script, not a package

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 230
CROSS_ENTROPY, SQUARED_ERROR = "#1f5fa8", "#c2570c"
STEPS = 160


@dataclass(frozen=True, slots=True)
class Panel:
    """A pair of axes; the ends of its ticks are the ends of the axes."""

    left: int
    title: str
    x_title: str
    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]

    def point(self, x: float, y: float) -> str:
        """Returns where a point lies in the picture."""
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return f"{self.left + across * WIDTH:.1f} {40 + (1 - up) * HEIGHT:.1f}"

    def frame(self) -> Iterator[str]:
        """Yields titles, grid and numbers."""
        middle = self.left + WIDTH / 2
        yield f'<text x="{middle}" y="24" font-weight="bold">{self.title}</text>'
        yield f'<text x="{middle}" y="{HEIGHT + 80}">{self.x_title}</text>'
        (left, *_, right), (bottom, *_, top) = self.x_ticks, self.y_ticks
        for x in self.x_ticks:
            yield f'<path d="M{self.point(x, bottom)}L{self.point(x, top)}" stroke="#d8d8d8"/>'
            yield self.words(f"{x:g}", x, bottom, shift=(0, 20))
        for y in self.y_ticks:
            yield f'<path d="M{self.point(left, y)}L{self.point(right, y)}" stroke="#d8d8d8"/>'
            yield self.words(f"{y:g}", left, y, shift=(-22, 5))

    def words(self, words: str, x: float, y: float, *, shift: tuple[int, int] = (0, 0), color: str = "#333") -> str:
        """Returns text centred on a point, or `shift` pixels from there."""
        left, top = self.point(x, y).split()
        dx, dy = shift
        return f'<text x="{left}" y="{top}" dx="{dx}" dy="{dy}" fill="{color}">{words.replace("-", "&#8722;")}</text>'

    def curve(self, function: Callable[[float], float], start: float, color: str) -> str:
        """Returns the graph of a function from `start` to the right end."""
        xs = [start + (self.x_ticks[-1] - start) * step / STEPS for step in range(STEPS + 1)]
        path = "L".join(self.point(x, function(x)) for x in xs)
        return f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2.5"/>'


def probability(margin: float) -> float:
    """Returns the softmax of the label among two classes."""
    return 1 / (1 + math.exp(-margin))


def draw() -> str:
    """Returns the picture as SVG."""
    loss = Panel(60, "loss of a sample", "probability p of the label", (0, 0.25, 0.5, 0.75, 1), (0, 1, 2, 3, 4, 5))
    slope = Panel(
        510, "gradient at the label's logit", "label's logit &#8722; the other", (-8, -4, 0, 4, 8), (-1, -0.5, 0)
    )
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="880" height="330" viewBox="0 0 880 330">',
        '<rect width="880" height="330" fill="#fff"/>',
        '<g font-family="sans-serif" font-size="14" text-anchor="middle" fill="#333">',
        *loss.frame(),
        loss.curve(lambda p: -math.log(p), math.exp(-5), CROSS_ENTROPY),
        loss.words("-ln p", 0.15, 2.6, color=CROSS_ENTROPY),
        *slope.frame(),
        slope.curve(lambda margin: probability(margin) - 1, -8, CROSS_ENTROPY),
        slope.curve(lambda margin: -4 * probability(margin) * (1 - probability(margin)) ** 2, -8, SQUARED_ERROR),
        slope.words("cross&#8209;entropy", 1.9, -0.85, color=CROSS_ENTROPY),
        slope.words("squared error", -5.6, -0.38, color=SQUARED_ERROR),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(draw())
