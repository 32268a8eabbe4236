"""A grouped bar chart as a self-contained SVG."""

from __future__ import annotations

from xml.sax.saxutils import escape

COLORS = ["#2563eb", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b"]
BAR, GAP, LEFT, WIDTH = 18, 14, 190, 760


def bar_chart(title: str, groups: dict[str, dict[str, float]]) -> str:
    """One group of horizontal bars for each key, each group scaled by its own longest bar."""
    names = list(dict.fromkeys(n for values in groups.values() for n in values))
    parts, y = [f'<text x="10" y="22" font-size="16" font-weight="bold">{escape(title)}</text>'], 44
    for group, values in groups.items():
        longest = max(values.values()) or 1.0
        for name, value in values.items():
            width = max(1.0, (WIDTH - LEFT - 90) * value / longest)
            color = COLORS[names.index(name) % len(COLORS)]
            parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(group)} {escape(name)}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 4}" fill="{color}"/>')
            parts.append(f'<text x="{LEFT + width + 6:.1f}" y="{y + 12}">{value:.3g}</text>')
            y += BAR
        y += GAP
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" {style}>' + "\n".join(parts) + "</svg>\n"
