"""The report's page and its charts: HTML and inline SVG, coloured by CSS variables."""

import dataclasses
import html
import math

import numpy as np

from fs4_jax import metrics

MAX_POINTS = 400
_WIDTH, _HEIGHT = 440, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 10, 12, 26


@dataclasses.dataclass(frozen=True)
class Series:
    """x, y: sequences of equal length; y may hold NaN. colour: 0..5. dots: mark each point."""
    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0
    dots: bool = False


def format_number(value, digits=3):
    """A short text of a number for people: 2.35, 12,000, 3e-5; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        text = f"{value:.{digits}g}"
        return text if "e" not in text else f"{value:.0f}"
    if abs(value) >= 1e4:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def line_chart(title, series, *, steps=(), references=(), zero=False, unit="",
               note=""):
    """A figure with lines over steps; raw values thin, a running mean over them.

    Args:
      title: what the y axis shows.
      series: list of Series; those without a finite value are left out.
      steps: further steps that the x axis spans.
      references: (name, y) dashed horizontal lines.
      zero: start the y axis at 0.
      unit: follows numbers in the legend.
      note: a line of plain text below.

    Returns:
      HTML, "" if there is nothing to draw.
    """
    series = [s for s in series if np.isfinite(s.y).any()]
    if not series:
        return ""
    lost = sum(int((~np.isfinite(s.y)).sum()) for s in series)
    note += f" {lost} value{'s' * (lost > 1)} not finite." if lost else ""
    x_low, x_high = _x_range(np.concatenate([*(s.x for s in series), steps]))
    smooth = [_smooth(s.x, s.y) for s in series]
    y_low, y_high = _y_range(series, smooth, [y for _, y in references], zero)
    y_ticks = _ticks(y_low, y_high, 5)
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def px(x):
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def py(y):
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = _axes(px, py, x_low, x_high, y_ticks)
    for name, y in references:
        parts.append(f'<line class="reference" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
                     f'y1="{py(y):.1f}" y2="{py(y):.1f}"/><text class="tick" '
                     f'x="{_WIDTH - _RIGHT - 2}" y="{py(y) - 5:.1f}" text-anchor="end">'
                     f'{html.escape(name)}</text>')
    for s, line in zip(series, smooth):
        parts += _line(s, *line, px, lambda y: py(np.clip(y, y_low, y_high)))
    keys = "".join(f'<span><i class="s{s.colour}"></i>{html.escape(s.name)} <b>'
                   f'{format_number(metrics.last(y))}{unit}</b></span>'
                   for s, (_, y) in zip(series, smooth))
    note = f'<p class="note">{html.escape(note.strip())}</p>' if note.strip() else ""
    return (f'<figure class="chart"><figcaption><b>{html.escape(title)}</b>'
            f'<span class="keys">{keys}</span></figcaption>'
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{html.escape(title)} over steps">{"".join(parts)}</svg>{note}</figure>')


def _axes(px, py, x_low, x_high, y_ticks):
    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py(y):.1f}" '
                     f'y2="{py(y):.1f}"/><text class="tick" x="{_LEFT - 8}" '
                     f'y="{py(y) + 4:.1f}" text-anchor="end">{_tick(y, y_ticks)}</text>')
    x_ticks = [x for x in _ticks(x_low, x_high, 4, whole=True) if x_low <= x <= x_high]
    for x in x_ticks:
        anchor = ("start" if px(x) < _LEFT + 12 else
                  "end" if px(x) > _WIDTH - _RIGHT - 12 else "middle")
        parts.append(f'<text class="tick" x="{px(x):.1f}" y="{_HEIGHT - _BOTTOM + 17}" '
                     f'text-anchor="{anchor}">{x:,.0f}</text>')
    parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{_HEIGHT - _BOTTOM + 17}" '
                 'text-anchor="end">step</text>')
    return parts


def _line(s, x, y, px, py):
    """SVG of one series, raw (thin) and smoothed (x, y), at most MAX_POINTS points each."""
    parts = []
    if len(s.y) >= 20:
        parts.append(f'<path class="raw l{s.colour}" d="{_path(*_envelope(s.x, s.y), px, py)}"/>')
    parts.append(f'<path class="line l{s.colour}" d="{_path(x, y, px, py)}"/>')
    finite = np.isfinite(y)
    if s.dots and len(x) <= 40 or finite.sum() <= 2:
        parts += [f'<circle class="d{s.colour}" cx="{px(a):.1f}" cy="{py(b):.1f}" r="3">'
                  f'<title>step {a:,.0f}: {format_number(b)}</title></circle>'
                  for a, b in zip(x[finite], y[finite])]
    return parts


def _path(x, y, px, py):
    """SVG path data; a gap where y is not finite."""
    parts, pen = [], "M"
    for a, b in zip(x, y):
        if not math.isfinite(b):
            pen = "M"
            continue
        parts.append(f"{pen}{px(a):.1f} {py(b):.1f}")
        pen = "L"
    return "".join(parts)


def _smooth(x, y):
    """A running median over 1/25 of the run, then a mean of half that; at most MAX_POINTS points.

    Under 20 points: (x, y) as they are. A median, so that one spike does not become a step.
    """
    if len(y) < 20:
        return x, y
    if len(y) > MAX_POINTS:
        edges = np.linspace(0, len(y), MAX_POINTS + 1).astype(int)
        buckets = [slice(a, b) for a, b in zip(edges, edges[1:])]
        x = np.array([x[b][-1] for b in buckets])
        y = np.array([_median(y[b]) for b in buckets])
    finite, half = np.isfinite(y), max(1, len(y) // 50)
    for reduce, reach in ((_median, half), (_mean, max(1, half // 2))):
        y = np.array([reduce(y[max(0, i - reach):i + reach + 1]) for i in range(len(y))])
    return x, np.where(finite, y, np.nan)


def _median(y):
    y = y[np.isfinite(y)]
    return np.median(y) if y.size else np.nan


def _mean(y):
    y = y[np.isfinite(y)]
    return y.mean() if y.size else np.nan


def _envelope(x, y):
    """The lowest and highest point of each bucket, in order: spikes survive the thinning."""
    if len(x) <= MAX_POINTS:
        return x, y
    keep = []
    for bucket in np.array_split(np.arange(len(x)), MAX_POINTS // 2):
        finite = bucket[np.isfinite(y[bucket])]
        keep += sorted({finite[np.argmin(y[finite])], finite[np.argmax(y[finite])]}
                       ) if len(finite) else [bucket[0]]
    return x[keep], y[keep]


def _x_range(steps):
    low, high = float(steps.min()), float(steps.max())
    return (low, high) if high > low else (low - 1, high + 1)


def _y_range(series, smooth, references, zero):
    """All of the smoothed line, and the raw values but for the outermost 1 %."""
    values = list(references)
    for s, (_, line) in zip(series, smooth):
        finite = s.y[np.isfinite(s.y)]
        ends = np.percentile(finite, [1, 99]) if len(finite) >= 20 else finite
        values += [*ends, *line[np.isfinite(line)]]
    values += [0.0] if zero else []
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if zero and low >= 0 else low - pad), high + pad


def _ticks(low, high, most, whole=False):
    """Round numbers, about `most` of them, inside low..high."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, count = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, count + 1)] or [low, high]


def _tick(value, ticks):
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    if max(abs(t) for t in ticks) < 1e-2:
        return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += round(step * 10 ** digits, 6) % 1 > 0   # 2.5, 0.25
    return f"{value:,.{digits}f}"


def bars(rows, *, top, unit=""):
    """Horizontal bars: rows of (name, value or NaN, css class, colour or None), as HTML."""
    parts = []
    for name, value, kind, colour in rows:
        width = 100 * min(1.0, max(0.0, value / top)) if math.isfinite(value) and top else 0
        fill = f"background:{colour};" if colour else ""
        label = f"{value:.1f}{unit}" if math.isfinite(value) else "not present"
        name = html.escape(name)
        parts.append(f'<div class="bar {kind}"><span class="name" title="{name}">{name}</span>'
                     f'<span class="track"><i style="{fill}width:{width:.2f}%"></i></span>'
                     f'<span class="value">{label}</span></div>')
    return f'<div class="bars">{"".join(parts)}</div>'


def heat_map(values, row_names, column_names, *, numbers, row_title, column_title):
    """A matrix of shares as shaded squares.

    Args:
      values: float [r, c], 0..1.
      row_names, column_names: strings.
      numbers: write percents into the squares.
      row_title, column_title: what rows and columns are.

    Returns:
      HTML (an SVG that shrinks with the page).
    """
    cell = 38 if numbers else 21
    left = 26 + 6.6 * min(24, max(map(len, row_names), default=0))
    head = 30 + 5.2 * min(24, max(map(len, column_names), default=0))
    width = left + cell * len(column_names) + 46
    height = head + cell * len(row_names) + 8
    parts = [f'<text class="axis" x="{left}" y="12">{html.escape(column_title)} →</text>'
             f'<text class="axis" x="{left - 8}" y="{head - 8}" text-anchor="end">'
             f'{html.escape(row_title)} ↓</text>']
    for j, name in enumerate(column_names):
        x = left + (j + 0.5) * cell
        parts.append(f'<text class="tick" transform="translate({x:.1f} {head - 6:.1f}) rotate(-50)"'
                     f'>{_short(name)}</text>')
    for i, name in enumerate(row_names):
        y = head + i * cell
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + cell / 2 + 4:.1f}" '
                     f'text-anchor="end">{_short(name)}</text>')
        for j, share in enumerate(values[i]):
            x, share = left + j * cell, float(share)
            tip = f"{_one_line(name)}: {100 * share:.1f} % {column_names[j]}"
            parts.append(f'<rect class="square" x="{x + 1:.0f}" y="{y + 1:.0f}" width="{cell - 2}" '
                         f'height="{cell - 2}" rx="3" style="--v:{0.05 + 0.95 * share:.3f}">'
                         f'<title>{html.escape(tip)}</title></rect>')
            if numbers and share >= 0.005:
                parts.append(f'<text class="{"on" if share > 0.8 else "off"}" '
                             f'x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}" '
                             f'text-anchor="middle">{100 * share:.0f}</text>')
    return (f'<svg class="heat" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
            f'style="max-width:{width:.0f}px;min-width:{0.75 * width:.0f}px" aria-label="'
            f'{html.escape(f"{row_title} by {column_title}")}">{"".join(parts)}</svg>')


def _one_line(name):
    """A heat map's row name on one line."""
    return " ".join(str(name).split())


def _short(name, most=24):
    name = _one_line(name)
    text = name if len(name) <= most else name[:most - 1] + "…"
    return f"{html.escape(text)}<title>{html.escape(name)}</title>"


_STYLE = """
:root{color-scheme:light dark;--alpha:1;--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--muted:#667080;
 --line:#e2e5ea;--track:#eceff3;--accent:#2563c9;--heat:#2563c9;--up:#167a48;--up-bg:#e3f4ea;
 --warn:#8f4a00;--warn-bg:#fff0d9;--s0:#2563c9;--s1:#d9730d;--s2:#0f8a70;--s3:#9a45c0;--s4:#c2375a;
 --s5:#7a7a12}
@media(prefers-color-scheme:dark){:root{--bg:#101317;--card:#191d23;--ink:#e8ebef;--muted:#98a2b0;
 --line:#2b313a;--track:#2a3039;--accent:#6ea3ff;--heat:#3b78de;--up:#6fd6a0;--up-bg:#16321f;
 --warn:#ffc27a;--warn-bg:#3a2a12;--s0:#6ea3ff;--s1:#ff9f4d;--s2:#3cc9a7;--s3:#c98be8;--s4:#ff7a99;
 --s5:#c6c650}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:32px 24px 64px;background:var(--bg);color:var(--ink);
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
h1{font-size:28px;line-height:1.2;margin:0;letter-spacing:-.01em}
h2{font-size:19px;margin:40px 0 4px}
h3{font-size:13px;margin:0;color:var(--muted);font-weight:500}
header p,.lead,.note{color:var(--muted);margin:4px 0 0}.lead{margin-bottom:12px;max-width:75ch}
h2+div,h2+details,h2+table,h2+p.diagnosis{margin-top:12px}.note{font-size:12.5px;color:var(--warn)}
small{font-size:12.5px;color:var(--muted)}
.card,.chart{background:var(--card);border:1px solid var(--line);border-radius:10px;
 padding:18px 20px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,360px),1fr));gap:16px;
 margin-top:24px}
.big{font-size:42px;font-weight:650;line-height:1.1;margin:2px 0 14px;letter-spacing:-.02em;
 display:flex;flex-wrap:wrap;align-items:center;gap:4px 10px}.big>small:first-child{font-size:22px}
.gain{font-size:14px;font-weight:600;letter-spacing:0;padding:3px 9px;border-radius:99px}
.big small{font-weight:400;letter-spacing:0}.up{color:var(--up);background:var(--up-bg)}
.down{color:var(--warn);background:var(--warn-bg)}
.bars{display:grid;gap:7px}.bar{display:grid;align-items:center;gap:12px;font-size:13.5px;
 grid-template-columns:minmax(90px,210px) minmax(60px,1fr) 62px}
.name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}.value{text-align:right}
.track{background:var(--track);border-radius:4px;height:14px;overflow:hidden}
.track i{display:block;height:100%;background:var(--accent);border-radius:4px;min-width:2px}
.floor .track i{background:var(--muted);opacity:.55}.floor,.ceiling,.absent{color:var(--muted)}
.ceiling .track i{background:repeating-linear-gradient(135deg,var(--muted) 0 3px,
 transparent 3px 6px)}.ours{font-weight:600}.absent .track i{display:none}
.absent .value{font-size:11px;white-space:nowrap}
.columns .bars{display:block;columns:2 380px;column-gap:40px}.columns .bar{break-inside:avoid;
 padding:3px 0}
.legend{display:flex;flex-wrap:wrap;gap:6px 16px;font-size:13.5px;margin:12px 0 14px;
 align-items:center}.legend i{display:inline-block;width:13px;height:13px;border-radius:3px;
 margin-right:6px;vertical-align:-1.5px}.hatch{background:repeating-linear-gradient(135deg,
 #34363c 0 4px,#54575f 4px 6px)}.slider{margin-left:auto;color:var(--muted);display:flex;
 align-items:center;gap:8px}.slider input{width:120px;accent-color:var(--accent)}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:18px}
.pictures.few,.pictures .large{grid-column:1/-1;grid-template-columns:1fr}
.picture{margin:0;cursor:zoom-in}.large{cursor:zoom-out}.triple{display:grid;gap:4px;
 grid-template-columns:repeat(3,1fr)}.photo{aspect-ratio:var(--ratio);border-radius:4px;
 overflow:hidden;background:var(--photo) 0 0/100% 100%}.photo img{display:block;width:100%;
 height:100%}.mask{opacity:var(--alpha)}.cell small{display:block;line-height:1.6}
.picture figcaption{font-size:13px;display:flex;justify-content:space-between;gap:12px}
.picture figcaption span{color:var(--muted);text-align:right}
.clusters{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));
 gap:7px 40px}.cluster{display:grid;grid-template-columns:22px 10px minmax(0,1.3fr) 1fr 54px;
 align-items:center;gap:10px;font-size:13.5px}.swatch{width:22px;height:22px;border-radius:5px;
 border:1px solid var(--line)}.dot{width:10px;height:10px;border-radius:50%}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:16px;
 margin-top:12px}.three{
 grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr))}
.chart{margin:0;padding:14px 16px 8px;container-type:inline-size}
@container(max-width:360px){.chart text{font-size:14px}}
@container(min-width:460px){.chart text{font-size:10.5px}.chart .line{stroke-width:1.8}}
.chart figcaption{display:flex;
 flex-wrap:wrap;gap:2px 14px;font-size:13.5px;margin-bottom:6px}
.keys{display:flex;flex-wrap:wrap;gap:2px 14px;color:var(--muted)}.keys b{color:var(--ink)}
.keys i{display:inline-block;width:14px;height:3px;border-radius:2px;vertical-align:4px;
 margin-right:5px}
svg{display:block;width:100%;height:auto;font:inherit}text{fill:var(--muted);font-size:12px}
.grid{stroke:var(--line)}.reference{stroke:var(--muted);stroke-dasharray:5 4}
.raw{fill:none;stroke-width:1;opacity:.32}.line{fill:none;stroke-width:2;stroke-linejoin:round}
.axis{font-weight:600}.square{fill:var(--heat);fill-opacity:var(--v)}.on{fill:#fff}
.off{fill:var(--ink)}.heat{margin:auto}
.scroll{overflow-x:auto}
.diagnosis{border-radius:10px;padding:10px 16px;margin:12px 0;color:var(--up);
 background:var(--up-bg)}.diagnosis.warn{color:var(--warn);background:var(--warn-bg)}
.config{columns:2 380px;column-gap:40px;font-size:13px;margin-top:10px}.config div{
 break-inside:avoid;display:flex;justify-content:space-between;gap:16px;padding:2px 0;
 border-bottom:1px solid var(--line)}.config span,th{color:var(--muted)}.config b{font-weight:500;
 text-align:right}summary{cursor:pointer}table{width:100%;font-size:13.5px}th{text-align:left;
 font-weight:500;padding:3px 24px 3px 0;white-space:nowrap;vertical-align:top}td{width:100%}
@media(max-width:560px){body{padding:20px 14px 40px}.card{padding:14px}.slider{margin-left:0}
 .bar{grid-template-columns:minmax(80px,135px) 1fr 58px;gap:8px}h1{font-size:23px}
 .config div{display:block}.config b{display:block;text-align:left}}
""" + "".join(f".l{i}{{stroke:var(--s{i})}}.d{i}{{fill:var(--s{i})}}.s{i}{{background:var(--s{i})}}"
              for i in range(6))


def page(title, subtitle, body):
    """A whole HTML document; title and subtitle are plain text, body is HTML."""
    title, subtitle = html.escape(title), html.escape(subtitle)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<main>
{body}
</main>
</body>
</html>
"""


def section(name, body, lead=""):
    """A titled part of the page; "" if it has no body."""
    if not body:
        return ""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{name}</h2>{lead}{body}</section>"


def grid(figures):
    """Charts beside each other, "" if there are none."""
    figures = [f for f in figures if f]
    three = " three" if len(figures) in (3, 5, 6) else ""
    return f'<div class="charts{three}">{"".join(figures)}</div>' if figures else ""
