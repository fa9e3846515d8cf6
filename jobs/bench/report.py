"""Report of a benchmark: a table, ratios, sentences, JSON and a chart.

    values of figures, round by round -> medians and spreads; ratios within a round -> terminal, benchmark.json and .svg

This module knows the names of the figures, which jobs/benchmark.py gives them, and not how they are measured.
"""

import io
import json
import platform
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from jobs.common.cli import command_line
from jobs.common.machine import usable_cores

YARDSTICK_COLOR, OWN_COLOR = "#9aa5b1", "#4c7fd9"


@dataclass
class Results:
    """Values of every figure, one per round."""

    values: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    stage_percent: dict[str, dict[str, float]] = field(default_factory=dict)  # of the latest round, by predict figure

    def add(self, name: str, unit: str, value: float) -> None:
        """Add one more value of a figure, and print it."""
        self.values.setdefault(name, []).append(value)
        self.units[name] = unit
        print(f"{name:<58} {value:>10.2f} {unit}", flush=True)

    def median(self, name: str) -> float:
        """Return a figure's median over the rounds."""
        return statistics.median(self.values[name])

    def ratio(self, name: str, other: str) -> float:
        """Return the median over the rounds of one figure divided by another."""
        return statistics.median(a / b for a, b in zip(self.values[name], self.values[other], strict=True))

    def last(self, name: str) -> float:
        """Return a figure's value in the current round."""
        return self.values[name][-1]


def write_benchmark(results: Results, began: datetime, output: Path) -> None:
    """Print the table, the ratios and the conclusions, and write benchmark.json and benchmark.svg."""
    print_table(results)
    ratios = compute_ratios(results)
    print()
    for name, value in ratios.items():
        print(f"{name:<90} {value:.2f}")
    sentences = list(conclusions(results))
    print("\n" + "\n".join(sentences))
    report = {**record_of(results, began), "ratios": ratios, "sentences": sentences}
    (output / "benchmark.json").write_text(to_json(report))
    (output / "benchmark.svg").write_text(throughput_chart(results))
    print(f"\n{output / 'benchmark.json'}, {output / 'benchmark.svg'}")


def print_table(results: Results) -> None:
    """Print medians and spreads of all figures."""
    print(f"\n{'median':>69} {'spread':>19}")
    for name, values in results.values.items():
        spread = f"{min(values):,.2f}–{max(values):,.2f}" if len(values) > 1 else ""
        print(f"{name:<58} {results.median(name):>10,.2f} {spread:>19} {results.units[name]}")


def record_of(results: Results, began: datetime) -> dict[str, Any]:
    """Return all figures, with the command, the time at which it began, and the machine."""
    gpus = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())) or "no GPU"
    return {
        "command": command_line(),
        "began": began.isoformat(timespec="seconds"),
        "machine": f"{usable_cores()} cores, {platform.processor() or platform.machine()}, {gpus}",
        "figures": {
            name: {"unit": results.units[name], "median": results.median(name), "values": values}
            for name, values in results.values.items()
        },
    }


def to_json(report: dict[str, Any]) -> str:
    """Return a report as JSON text."""
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def compute_ratios(results: Results) -> dict[str, float]:
    """Return the ratios that matter, by "figure / figure"; both figures are of the same round."""
    names = results.values
    predictions = [name for name in names if re.fullmatch("predict, .*, (none|guided)", name)]
    none, guided = predictions[:2]  # of the first collection
    # The rate that one worker can reach on all cores; one process per core may reach more.
    same_step = "network alone, training, between jobs"
    networks = ("network alone, predicting", "network alone, predicting, float")
    pairs = [(name, network) for network in networks for name in predictions]
    loops = [name for name in names if name.startswith("pipeline in a loop, ")]
    pairs += [(name.replace("pipeline in a loop", "predict"), name) for name in loops]
    pairs += [(network, "network alone, predicting, eager fp32") for network in networks]
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
        ("train, raw, no cache", "network alone, training"),
        ("train, packed", "script, training, DataLoader, packed"),
        ("train, raw", "script, training, DataLoader, raw"),
    ]
    pairs += [(name, "train, packed") for name in names if re.fullmatch(r"train, packed, \d+ workers", name)]
    sizes = [name for name in names if re.fullmatch("predict overhead, [0-9,]+ photos", name)]
    pairs += [(name, before) for before, name in pairwise(sizes)]
    return {f"{name} / {other}": results.ratio(name, other) for name, other in pairs}


def conclusions(results: Results) -> Iterator[str]:
    """Yield sentences on the bottleneck of each job and on what would help."""
    for name, percent in results.stage_percent.items():
        stage, share = max(percent.items(), key=lambda each: each[1])
        cure = "only a faster network, more cores or a GPU help" if stage == "network" else "add CPU workers"
        yield f"{name}: {stage} is {share:.0f} % of the time; {cure}."
    for name in [name for name in results.values if name.endswith("waiting for data")]:
        share = results.median(name)
        cure = "the training step is the limit" if share < 10 else "add CPUs for reading, or pack the pairs"
        yield f"{name}: {share:.0f} % of the time; {cure}."
    for name in [name for name in results.values if re.fullmatch(".* overhead, .*(none|guided|packed)", name)]:
        cost, unit = results.median(name), "photo" if name.startswith("predict") else "sample"
        yield f"{name}: {cost:.1f} CPU-ms a {unit}, so one core feeds a GPU of {1000 / cost:,.0f} {unit}s/s."


def throughput_chart(results: Results) -> str:
    """Return an SVG with a bar for every throughput, one panel for photos/s and one for samples/s."""
    panels = {
        unit: [
            name for name, each in results.units.items() if each == unit and not re.search(r"threads|\d photos$", name)
        ]
        for unit in ("photos/s", "samples/s")
    }
    with rc_context({"svg.hashsalt": "matting", "svg.fonttype": "none"}):
        return bar_panels(results, panels)


def bar_panels(results: Results, panels: dict[str, list[str]]) -> str:
    """Return an SVG with a panel of horizontal bars per unit: medians, with a line from the least to the most."""
    figure = Figure(figsize=(9, 0.32 * sum(map(len, panels.values())) + 1.6), layout="constrained")
    axes = figure.subplots(2, height_ratios=[len(names) for names in panels.values()])
    for (unit, names), axis in zip(panels.items(), axes, strict=True):
        medians = [results.median(name) for name in names]
        spread = [
            [median - min(results.values[name]) for name, median in zip(names, medians, strict=True)],
            [max(results.values[name]) - median for name, median in zip(names, medians, strict=True)],
        ]
        colors = [YARDSTICK_COLOR if "script" in name or "eager" in name else OWN_COLOR for name in names]
        axis.barh(names, medians, xerr=spread, color=colors, ecolor="#444444")
        axis.bar_label(axis.containers[-1], fmt="%.1f", padding=4)
        axis.invert_yaxis()
        axis.set_xlabel(f"{unit}: median, least and most of the rounds")
        axis.spines[["top", "right"]].set_visible(False)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()
