# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The gallery: static pages that open from a folder, without a server or a network."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm.auto import tqdm

from run_scripts.visualization.code_statistics import ModalityStatistics
from run_scripts.visualization.code_summary import CodeSummary
from run_scripts.visualization.records import Caption, MarkedWords


TEMPLATES = Path(__file__).with_name("templates")
ASSETS = ("gallery.css", "gallery.js")
NUM_LISTED = 8
MOST_BINS = 9


@dataclass
class GalleryText:
    """Names on the pages: of the model and of the data."""

    model: str
    data: str


@dataclass
class BarChart:
    """Counts to draw as bars, of one or more series side by side.

    Attributes:
        names: below each group of bars.
        series: by name the counts, one for each group.
        marks: by name a place to mark, from 0, the left end, to 1.
    """

    names: Sequence[str]
    series: dict[str, list[int]]
    marks: dict[str, float]

    @property
    def highest(self) -> int:
        return max(1, *(count for counts in self.series.values() for count in counts))


def write_gallery(
    codes: list[CodeSummary],
    image: ModalityStatistics,
    text: ModalityStatistics,
    gallery_text: GalleryText,
    max_pages: int,
    output_dir: Path,
) -> None:
    """Write index.html, codes.html, images.html, a page for each code and image, and what they need.

    Thumbnails lie in `output_dir / "images"` already; those that no page shows are removed.
    """
    alive = [code for code in codes if not code.is_dead]
    shown = sorted(alive, key=lambda code: (-code.image_rate - code.text_rate, code.code))[:max_pages]
    pages = {code.code: code for code in shown}
    image_rows = sorted({item for code in shown for item, _ in code.top_images})
    for row in set(image.items) - set(image_rows):
        (output_dir / "images" / f"{row}.webp").unlink()

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(gallery=gallery_text, pages=pages, pieces=pieces, image=image, text=text)
    mean_image_weights = (image.weight_sums / image.counts.clamp(min=1)).tolist()
    mean_text_weights = (text.weight_sums / text.counts.clamp(min=1)).tolist()
    environment.globals.update(mean_image_weights=mean_image_weights, mean_text_weights=mean_text_weights)
    environment.filters.update(percent=percent, number=lambda value: f"{value:.3g}")

    def write(path: str, template: str, **values) -> None:
        # Every page names the way back to the gallery's folder, since it may be opened from anywhere.
        root = "../" * path.count("/")
        html = environment.get_template(template).render(root=root, **values)
        (output_dir / path).write_text(re.sub(r"\s*\n\s*", "\n", html), encoding="utf-8")

    by_category = any(record.label.category is not None for record in image.items.values())
    write("index.html", "index.html", **overview(codes, shown, by_category))
    write("codes.html", "search.html", kind="codes")
    write("images.html", "search.html", kind="images")
    for folder in ("code", "image"):
        (output_dir / folder).mkdir()
    neighbours, image_neighbours = find_neighbours(sorted(pages)), find_neighbours(image_rows)
    for code in tqdm(shown, desc="pages of codes", unit="page"):
        before, after = neighbours[code.code]
        write(f"code/{code.code}.html", "code.html", code=code, before=before, after=after)
    for row in tqdm(image_rows, desc="pages of images", unit="page"):
        before, after = image_neighbours[row]
        write(f"image/{row}.html", "image.html", row=row, record=image.items[row], before=before, after=after)
    for asset in ASSETS:
        shutil.copy(TEMPLATES / asset, output_dir / asset)
    data = json.dumps(search_data(shown, image_rows, image, text), ensure_ascii=False, separators=(",", ":"))
    (output_dir / "data.js").write_text(f"const GALLERY = {data};\n", encoding="utf-8")


def find_neighbours(numbers: list[int]) -> dict[int, tuple[int | None, int | None]]:
    """By number, the one before it and the one after it; None at the ends."""
    return dict(zip(numbers, zip([None, *numbers], [*numbers[1:], None], strict=False), strict=True))


def percent(share: float) -> str:
    """A share in per cent, with enough digits for small ones."""
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def pieces(caption: Caption, marks: MarkedWords) -> list[dict]:
    """A caption in parts to write one after the other.

    Returns:
        Of each word its `text`, `level` from 0 to 9, `is_winner`, `is_special` (start or end of the caption) and
        whether there is a `space` before it. Special tokens are there only if they won.
    """
    parts, last_end = [], -1  # what follows a special token is apart from it
    for position, (word, span) in enumerate(zip(caption.words, caption.spans, strict=True)):
        is_winner = position == marks.winner
        if span is None and not is_winner:
            continue
        parts.append(
            {
                "text": word if span is not None else "start" if position == 0 else "end",
                "level": int(marks.levels[position]),
                "is_winner": is_winner,
                "is_special": span is None,
                "space": bool(parts) and (span is None or span[0] > last_end),
            }
        )
        last_end = -1 if span is None else span[1]
    return parts


def overview(codes: list[CodeSummary], shown: list[CodeSummary], by_category: bool) -> dict:
    """What index.html tells of all codes."""
    in_images = {code.code for code in codes if code.image_rate > 0}
    in_captions = {code.code for code in codes if code.text_rate > 0}
    measured = [code for code in codes if code.image_coherence is not None]
    most_examples = max((len(code.top_images) for code in measured), default=0)
    # Shares of fewer pairs vary more by chance, so only codes with as many images as any are ranked.
    ranked = [code for code in shown if code.image_coherence is not None and len(code.top_images) == most_examples]
    ranked.sort(key=lambda code: (-code.image_coherence.share, code.image_coherence.p_value, code.code))
    num_listed = min(NUM_LISTED, len(ranked) // 2)
    shares = [code.image_coherence.share for code in measured]
    baseline = next((code.image_coherence.baseline for code in ranked), 0.0)
    significant = sum(code.is_significant for code in measured)
    edges = fit_edges([rate for code in codes for rate in (code.image_rate, code.text_rate)])
    labels = [f"{edge / 10:.0%}" for edge in range(10)]
    return {
        "codes": codes,
        "shown": shown,
        "dead": [code.code for code in codes if code.is_dead],
        "num_both": len(in_images & in_captions),
        "num_image_only": len(in_images - in_captions),
        "num_text_only": len(in_captions - in_images),
        "codes_per_image": sum(code.image_rate for code in codes),
        "codes_per_caption": sum(code.text_rate for code in codes),
        "usage": BarChart(
            ["never", *(f"< {edge:.2g}%" for edge in (100 * edge for edge in edges[2:])), "more"],
            {
                "images": count_in_bins([code.image_rate for code in codes], edges),
                "captions": count_in_bins([code.text_rate for code in codes], edges),
            },
            {},
        ),
        "balance": BarChart(
            labels, {"codes": count_in_tenths([code.image_share for code in codes if not code.is_dead])}, {}
        ),
        "coherence": BarChart(labels, {"codes": count_in_tenths(shares)}, {"random": baseline}),
        "by_category": by_category,
        "num_measured": len(measured),
        "num_significant": significant,
        "median_share": median(shares) if shares else None,
        "baseline": baseline,
        "num_examples": most_examples,
        "most_coherent": ranked[:num_listed],
        "least_coherent": ranked[::-1][:num_listed],
    }


def fit_edges(rates: list[float]) -> list[float]:
    """Round edges of bins that span the rates above 0, after a 0 for those that never fire; steps of 1, 2, 5 and 10,
    or where that makes more than `MOST_BINS`, of 10. The last bin has no end: its edge is where it begins."""
    alive = [rate for rate in rates if rate > 0] or [1.0]
    for factors in ((1, 2, 5), (1,)):
        steps = [float(f"{factor}e{power}") for power in range(-9, 0) for factor in factors]
        first = max((step for step in steps if step <= min(alive)), default=steps[0])
        edges = [0.0, *(step for step in steps if first <= step <= max(alive))]
        if len(edges) <= MOST_BINS:
            break
    return edges


def count_in_bins(rates: list[float], edges: Sequence[float]) -> list[int]:
    """How many rates are 0, and how many lie between each edge (included) and the next, or above the last."""
    counts = [0] * len(edges)
    for rate in rates:
        counts[0 if rate == 0 else max(1, sum(rate >= edge for edge in edges) - 1)] += 1
    return counts


def count_in_tenths(shares: list[float]) -> list[int]:
    """How many shares lie in each tenth from 0 to 1."""
    counts = [0] * 10
    for share in shares:
        counts[min(int(share * 10), 9)] += 1
    return counts


def search_data(
    shown: list[CodeSummary], image_rows: list[int], image: ModalityStatistics, text: ModalityStatistics
) -> dict:
    """What the browser searches: lists instead of names, to keep it small. gallery.js reads it."""
    code_rows, captions = [], {}
    for code in shown:
        own = [text.items[item].text for item, _ in code.top_captions]
        own += [image.items[item].caption for item, _ in code.top_images]
        caption_ids = [captions.setdefault(caption, len(captions)) for caption in dict.fromkeys(own)]
        test = code.image_coherence
        coherence = [None, None] if test is None else [round(test.share, 3), round(test.p_value, 4)]
        rates = [round(code.image_rate, 5), round(code.text_rate, 5)]
        thumbnails = [item for item, _ in code.top_images[:4]]
        code_rows.append([code.code, code.name, *rates, *coherence, int(code.is_significant), thumbnails, caption_ids])
    listed = [[row, image.items[row].caption, image.items[row].label.category or ""] for row in image_rows]
    return {"codes": code_rows, "images": listed, "captions": list(captions)}
