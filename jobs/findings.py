"""What a benchmark found, told: a table, ratios, sentences, JSON, a chart.

    values of figures, round by round -> medians and spreads; ratios within a round -> terminal, benchmark.json and .svg

Knows the names of the figures (jobs/benchmark.py) and nothing of how they are measured.
"""

import io
import json
import os
import platform
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from jobs import cluster


@dataclass
class Results:
    """Values of each figure, one a round."""

    values: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)  # of a prediction's time, by stage

    def add(self, name: str, unit: str, value: float) -> None:
        """One more value; it is shown at once."""
        self.values.setdefault(name, []).append(value)
        self.units[name] = unit
        print(f"{name:<58} {value:>10.2f} {unit}", flush=True)

    def median(self, name: str) -> float:
        """Over the rounds."""
        return statistics.median(self.values[name])

    def ratio(self, name: str, other: str) -> float:
        """The median of a figure's ratio to another's, round by round."""
        return statistics.median(a / b for a, b in zip(self.values[name], self.values[other], strict=True))

    def last(self, name: str) -> float:
        """Of this round."""
        return self.values[name][-1]


def tell(results: Results, began: datetime, output: Path) -> None:
    """Table, sentences, JSON, chart."""
    machine = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {torch.cuda.device_count()} GPUs"
    print(f"\n{'median':>69} {'spread':>19}")
    for name, values in results.values.items():
        spread = f"{min(values):,.2f}–{max(values):,.2f}" if len(values) > 1 else ""
        print(f"{name:<58} {results.median(name):>10,.2f} {spread:>19} {results.units[name]}")
    ratios = compared(results)
    print()
    for name, value in ratios.items():
        print(f"{name:<90} {value:.2f}")
    sentences = list(in_words(results))
    print("\n" + "\n".join(sentences))
    report = {
        "command": cluster.command(),
        "began": began.isoformat(timespec="seconds"),
        "machine": machine,
        "figures": {
            name: {"unit": results.units[name], "median": results.median(name), "values": values}
            for name, values in results.values.items()
        },
        "ratios": ratios,
        "sentences": sentences,
    }
    (output / "benchmark.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    (output / "benchmark.svg").write_text(chart(results))
    print(f"\n{output / 'benchmark.json'}, {output / 'benchmark.svg'}")


def compared(results: Results) -> dict[str, float]:
    """The ratios that matter, of figures of the same round."""
    names = results.values
    predictions = [name for name in names if re.fullmatch("predict, .*, (none|guided)", name)]
    none, guided = predictions[:2]  # of the first collection
    # What one worker's step makes of all cores, though a process for each core may make more.
    same_step = "step alone, between trainings"
    networks = ("network alone, predicting", "network alone, predicting, floats")
    pairs = [(name, network) for network in networks for name in predictions]
    pairs += [(network, "plain eager fp32") for network in networks]
    pairs += [
        (none, "script, predicting, plain loop"),
        (guided, "script, predicting, plain loop"),
        (guided, "script, predicting, DataLoader loop"),
        (f"{guided}, cutouts", guided),
        (f"{guided.removesuffix('guided')}mirrored", guided),
        (none, f"{none}, 1 worker"),
        ("train, packed", "network alone, training"),
        ("train, packed", same_step),
        ("train, raw", "network alone, training"),
        ("train, raw", same_step),
        ("train, raw, not kept", "network alone, training"),
        ("train, packed", "script, training, DataLoader, packed"),
        ("train, raw", "script, training, DataLoader, raw"),
    ]
    pairs += [(name, "train, packed") for name in names if re.fullmatch(r"train, packed, \d+ workers", name)]
    sizes = [name for name in names if re.fullmatch("predict without network, [0-9,]+ photos", name)]
    pairs += [(name, before) for before, name in pairwise(sizes)]
    return {f"{name} / {other}": results.ratio(name, other) for name, other in pairs}


def in_words(results: Results) -> Iterator[str]:
    """What bounds each job, and what would help."""
    for name, shares in results.shares.items():
        stage, share = max(shares.items(), key=lambda each: each[1])
        cure = "only a faster network, more cores or a GPU help" if stage == "network" else "add CPU workers"
        yield f"{name}: {stage} is {share:.0f} % of the time; {cure}."
    for name in [name for name in results.values if name.endswith("waiting for data")]:
        share = results.median(name)
        cure = "the step is the limit" if share < 10 else "add CPUs for reading, or pack the pairs"
        yield f"{name}: {share:.0f} % of the time; {cure}."
    for name in [name for name in results.values if re.fullmatch(".* without network, .*(none|guided|packed)", name)]:
        cost = results.median(name)
        yield f"{name}: {cost:.1f} CPU-ms, so one core feeds a GPU of {1000 / cost:,.0f} a second."


def chart(results: Results) -> str:
    """Bars of all speeds with their spread, as SVG."""
    groups = {
        unit: [name for name, found in results.units.items() if found == unit and "threads" not in name]
        for unit in ("photos/s", "samples/s")
    }
    with rc_context({"svg.hashsalt": "matting", "svg.fonttype": "none"}):
        return bars(results, groups)


def bars(results: Results, groups: dict[str, list[str]]) -> str:
    """A panel of bars for each unit."""
    figure = Figure(figsize=(9, 0.32 * sum(map(len, groups.values())) + 1.6), layout="constrained")
    axes = figure.subplots(2, height_ratios=[len(names) for names in groups.values()])
    for (unit, names), axis in zip(groups.items(), axes, strict=True):
        medians = [results.median(name) for name in names]
        spread = [
            [median - min(results.values[name]) for name, median in zip(names, medians, strict=True)],
            [max(results.values[name]) - median for name, median in zip(names, medians, strict=True)],
        ]
        colours = ["#9aa5b1" if "script" in name or "plain" in name else "#4c7fd9" for name in names]
        axis.barh(names, medians, xerr=spread, color=colours, ecolor="#444444")
        axis.bar_label(axis.containers[-1], fmt="%.1f", padding=4)
        axis.invert_yaxis()
        axis.set_xlabel(f"{unit}: median, least and most of the rounds")
        axis.spines[["top", "right"]].set_visible(False)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()
