"""python -m jaxmoe.report DIR...: rebuilds the report of a run, or compares several runs in a table."""

import argparse
from pathlib import Path
import sys

from jaxmoe.report.table import comparison, text_table
from jaxmoe.report.write import write_report


def _names(directories: list[Path]) -> list[str]:
    """Short names of the runs; whole paths where two folders are called the same."""
    short = [d.resolve().name for d in directories]
    return short if len(set(short)) == len(short) else [str(d) for d in directories]


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m jaxmoe.report", description=__doc__)
    parser.add_argument("workdir", nargs="+", type=Path, help="folder of a run (holds eval/)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="draws over speakers (%(default)s)")
    parser.add_argument("--baseline", default="whisper-v2", help="system to compare with (%(default)s)")
    parser.add_argument("--worst", type=int, default=20, help="utterances listed (%(default)s)")
    parser.add_argument("--regime", default="whisper", choices=["whisper", "sap"], help="of WER (%(default)s)")
    parser.add_argument("--no-audio", dest="audio", action="store_false", help="leaves the recordings out of the page")
    args = parser.parse_args(argv)
    options = {k: getattr(args, k) for k in ("bootstrap", "baseline", "worst", "regime", "audio")}
    runs = {}
    for name, workdir in zip(_names(args.workdir), args.workdir, strict=True):
        try:
            runs[name] = write_report(workdir, **options)
        except (ValueError, FileNotFoundError) as error:
            print(f"jaxmoe.report: {error}", file=sys.stderr)
            return 1
    print(comparison(runs) if len(runs) > 1 else text_table(next(iter(runs.values()))))
    for workdir in args.workdir:
        print(workdir / "report" / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
