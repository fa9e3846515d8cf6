"""Study: write the tables of the documents from the records of the runs, so that nobody edits figures by hand.

    python -m tests.studies.tables                                  write the tables into the documents
    python -m tests.studies.tables --benchmark benchmark.json --machine "2 cores of …"
                                                                    replace the record of the benchmark first
    python -m tests.studies.tables --scores quality '`matting`' 30 'test pairs' -- scores/*/summary.json
                                                                    replace or add one row of metrics first: its first
                                                                    cells, then the summaries of jobs/evaluate.py, one
                                                                    for each seed

A record, `jobs/configs/results/<name>.json`, has a caption, machine, date, command, columns and rows. A cell with
several values, one for each seed or round, is shown as their median and range. `<!-- table NAME -->` and
`<!-- end -->` enclose a table in a document; `<!-- table NAME brief -->` encloses the rows that the record's `brief`
lists.
"""

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

RECORDS = ROOT / "jobs/configs/results"
DOCUMENTS = (ROOT / "README.md", ROOT / "jobs/configs/RESULTS.md")
PLACE = re.compile(r"(<!-- table (\S+?)( brief)? -->\n).*?(<!-- end -->)", re.DOTALL)
METRICS = ("mad", "mse", "grad", "conn", "iou")  # the last columns of a record of scores
BRIEF_FIGURES = re.compile(r"predict, [^,]+, (none|guided|mirrored)|train, packed|predict, command to first photo")


def main() -> None:
    """Take up new figures, and write all tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.tables")
    parser.add_argument("--benchmark", type=Path)
    parser.add_argument("--machine")
    parser.add_argument("--scores", nargs="+", metavar=("RECORD", "CELL"))
    parser.add_argument("summaries", nargs="*", type=Path)
    options = parser.parse_args()
    if options.benchmark:
        write_record("speed", speed_record(json.loads(options.benchmark.read_text()), options.machine))
    if options.scores:
        name, *cells = options.scores
        record = json.loads((RECORDS / f"{name}.json").read_text())
        write_record(name, with_scores(record, cells, [json.loads(path.read_text()) for path in options.summaries]))
    for document in DOCUMENTS:
        document.write_text(filled(document))


def write_record(name: str, record: dict[str, Any]) -> None:
    """Write a record."""
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def speed_record(report: dict[str, Any], machine: str) -> dict[str, Any]:
    """Return the record of a benchmark from its benchmark.json: every figure, and its ratios to others."""
    rows = []
    for name, figure in report["figures"].items():
        ratios = [
            f"{value:.2f} × {other.removeprefix(f'{name} / ')}"
            for other, value in report["ratios"].items()
            if other.startswith(f"{name} / ")
        ]
        rows.append([name, [round(value, 2) for value in figure["values"]], figure["unit"], "; ".join(ratios)])
    rows.append(["any of these on a GPU", "not measured", "", ""])
    return {
        "caption": "One run of the benchmark. Ratios are medians of the rounds' own.",
        "machine": machine,
        "date": report["began"][:10],
        "command": report["command"],
        "columns": ["figure", "value", "unit", "ratios"],
        "rows": rows,
        "brief": [number for number, row in enumerate(rows) if BRIEF_FIGURES.fullmatch(row[0])][:5],
    }


def with_scores(record: dict[str, Any], cells: list[str], summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the record with the row of these first cells replaced or added; one value for each summary."""
    row = [*cells, *([round(summary[name], 4) for summary in summaries] for name in METRICS)]
    others = [old for old in record["rows"] if [str(cell) for cell in old[: len(cells)]] != cells]
    return {**record, "rows": [*others, row]}


def filled(document: Path) -> str:
    """Return the document's text with every table as its record has it."""

    def table(match: re.Match[str]) -> str:
        record = json.loads((RECORDS / f"{match[2]}.json").read_text())
        return match[1] + (brief_table(record) if match[3] else full_table(record)) + match[4]

    return PLACE.sub(table, document.read_text())


def full_table(record: dict[str, Any]) -> str:
    """Return caption, table, and the command with its machine and date."""
    rows = markdown(record["columns"], record["rows"])
    provenance = f"{record['machine']}, {record['date']}:\n\n```bash\n{record['command']}\n```\n"
    return f"\n{record['caption']}\n\n{rows}\n{provenance}\n"


def brief_table(record: dict[str, Any]) -> str:
    """Return the brief rows, and the first command with machine and date on one line."""
    rows = markdown(record["columns"], [record["rows"][number] for number in record["brief"]])
    command = record["command"].splitlines()[0].partition("   #")[0]
    return f"\n{rows}\n{record['machine']}, {record['date']}: `{command}`\n\n"


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(value: Any) -> str:
    """Return a cell's text: a value, or the median of several with their range."""
    if not isinstance(value, list):
        return str(value)
    digits = max(len(str(each).partition(".")[2]) for each in value)
    middle, least, most = (f"{each:.{digits}f}" for each in (statistics.median(value), min(value), max(value)))
    return middle if least == most else f"{middle} ({least}–{most})"


if __name__ == "__main__":
    main()
