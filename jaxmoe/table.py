"""The transcripts of a folder as one table, to read, correct, and adapt to.

  python -m jaxmoe.table OUT [--output=OUT/transcripts.csv]

OUT holds the JSON files of `python -m jaxmoe.transcribe --output_format=json`. The table has a row a recording: path,
text, its German where there is one, seconds, doubts. Corrected, it is a manifest:
--config.data.corpus=manifest --config.data.path=OUT/transcripts.csv.
"""

from collections.abc import Iterator
import csv
import io
import json
from pathlib import Path
import sys

from jaxmoe import options
from jaxmoe.writers import write_atomically

COLUMNS = ("path", "text", "translation", "seconds", "doubts")


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """A row of each transcript in a folder, in order of the recordings' names.

    Raises:
      ValueError: no transcript in it.
    """
    found = []
    for file in sorted(folder.rglob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        if isinstance(content, dict) and {"audio", "text", "duration_s"} <= set(content):
            found.append(content)
    if not found:
        raise ValueError(f"{folder}: found no transcripts; run jaxmoe.transcribe with --output_format=json first.")
    for content in sorted(found, key=lambda c: c["audio"]):
        german = content.get("translations", {}).get("de", {}).get("text", "")
        values = (
            str(Path(content["audio"]).resolve()),
            content["text"].strip(),
            german,
            f"{content['duration_s']:.2f}",
            " ".join(content["flags"]),
        )
        yield dict(zip(COLUMNS, values, strict=True))


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = options.command("table", __doc__)
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("--output", type=Path, help="(default: OUT/transcripts.csv)")
    parser.add_argument("--force", action="store_true", help="replace a table that is there, corrections too")
    args = parser.parse_args(argv)
    output = args.output or args.folder / "transcripts.csv"
    if output.exists() and not args.force:
        print(f"error: {output} is there and may be corrected; name another --output, or --force.", file=sys.stderr)
        return 1
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    try:
        found = list(rows(args.folder))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    writer.writerows(found)
    write_atomically(output, text.getvalue())
    doubtful = sum(bool(row["doubts"]) for row in found)
    print(f"{output}: {len(found)} recordings, {doubtful} with doubts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
