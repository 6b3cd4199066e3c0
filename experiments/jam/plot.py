"""A plot of numbers with their intervals, as SVG."""

from collections.abc import Mapping

from pairing import Estimate

ROW_PX, LABEL_PX, PLOT_PX, MARGIN_PX = 26, 260, 420, 40


def interval_plot(rows: Mapping[str, Estimate], *, title: str) -> str:
    """One line a row: a dot at the value, a bar over the 95 % interval."""
    low = min((each.low for each in rows.values()), default=0.0)
    high = max((each.high for each in rows.values()), default=1.0)
    span = (high - low) or 1.0
    left, right = low - 0.05 * span, high + 0.05 * span

    def x(value: float) -> float:
        return LABEL_PX + PLOT_PX * (value - left) / (right - left)

    height = MARGIN_PX + ROW_PX * len(rows) + MARGIN_PX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL_PX + PLOT_PX + 90}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20" font-size="14" font-weight="bold">{title}</text>',
    ]
    for number, (name, value) in enumerate(rows.items()):
        y = MARGIN_PX + ROW_PX * number + ROW_PX / 2
        parts += [
            f'<text x="{LABEL_PX - 10}" y="{y + 4}" text-anchor="end">{name}</text>',
            f'<line x1="{x(value.low):.1f}" x2="{x(value.high):.1f}" y1="{y}" y2="{y}" '
            'stroke="#4472c4" stroke-width="3"/>',
            f'<circle cx="{x(value.value):.1f}" cy="{y}" r="5" fill="#1f3864"/>',
            f'<text x="{LABEL_PX + PLOT_PX + 10}" y="{y + 4}">{value.value:.3f}</text>',
        ]
    axis = MARGIN_PX + ROW_PX * len(rows) + 8
    parts.append(f'<line x1="{LABEL_PX}" x2="{LABEL_PX + PLOT_PX}" y1="{axis}" y2="{axis}" stroke="#888"/>')
    for step in range(5):
        value = left + (right - left) * step / 4
        parts.append(f'<text x="{x(value):.1f}" y="{axis + 16}" text-anchor="middle">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
