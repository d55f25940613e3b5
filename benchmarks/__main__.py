"""``python -m benchmarks [PART ...]``: run the named parts, or all; see ``-h``. For ``soak``, see soak.py."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, machine
from charrnn.cli.display import table

PARTS = ("training", "loop", "sampling", "preprocessing", "startup", "growth")


def main() -> None:
    if sys.argv[1:2] == ["soak"]:
        from benchmarks import soak

        soak.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure how fast charrnn is on this machine.",
        epilog="python -m benchmarks soak -h: disturb training runs for hours; this measures nothing",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} [all]")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures to this file")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables to this file")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="draw the part growth (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="few repeats and sizes, to check that everything runs")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")

    results: dict[str, Any] = {"machine": machine()}
    tables = [" · ".join(f"{name} {value}" for name, value in results["machine"].items())]
    print(tables[0])
    for part in arguments.parts or PARTS:
        module = import_module(f"benchmarks.{part}")
        about = " ".join((module.__doc__ or "").split())
        print(f"\n{about}\n", flush=True)
        rows: list[Row] = module.run(arguments.quick)
        results[part] = rows
        headings, cells = list(rows[0]), [[shown(value) for value in row.values()] for row in rows]
        if not sys.stdout.isatty():
            print("\t".join(headings))
        table(headings, cells)
        lines = (headings, ["---"] * len(headings), *cells)
        tables.append(f"{about}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        # written after each part, so that a later failure loses nothing
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
        if arguments.markdown:
            arguments.markdown.write_text("\n\n".join(tables) + "\n", encoding="utf-8")
        if arguments.picture and part == "growth":
            from benchmarks.picture import draw

            draw(rows, arguments.picture)


def shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
