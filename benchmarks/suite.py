"""Runs the speed benchmarks, each in a process of its own, and writes what they print into docs/speed.md.

COMMAND: make bench [CLIPS=CLIPS.csv]     or python -m benchmarks.suite [--csv=CLIPS.csv] [--only=train]
About half an hour on two cores, which must be idle. Other benchmarks need a run or a corpus: their docstrings say how.
"""

import argparse
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- what make bench printed -->", "<!-- end -->"
LONG = ((), ("--bfloat16",), ("--timestamps", "--bfloat16"))
RUNS = (
    *(("transcribe_speed", f"--question={q}", "--skip_padding", "--csv") for q in ("greedy", "beam")),
    *(("transcribe_speed", "--question=long", "--batch_size=8", *how, "--csv") for how in LONG),
    ("train_speed",),
    ("experts_cost",),
    ("embed_speed",),
    ("startup_speed",),
    ("narrow_products",),
    ("mt_decode",),
    *(("large_compile", f"--step={step}") for step in ("train", "embed", "decode")),
)


def run(command: list[str]) -> str:
    """What the command printed; also shown. Ends the suite where it fails."""
    process = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(process.stdout, flush=True)
    if process.returncode:
        raise SystemExit(f"python {' '.join(command)} failed with status {process.returncode}.")
    return process.stdout


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--csv", default="", help="short real clips, with path and transcript; else the demo corpus's")
    p.add_argument("--only", default="", help="benchmarks whose name contains this; the page is then left alone")
    args = p.parse_args()
    sections = []
    for name, *options in RUNS:
        if args.only in name:
            given = [x if x != "--csv" else f"--csv={args.csv}" for x in options if x != "--csv" or args.csv]
            command = ["-m", f"benchmarks.{name}", *given]
            print(f"python {' '.join(command)}", flush=True)
            shown = " ".join(command).replace(args.csv or "\0", "CLIPS.csv")
            sections.append(f"`python {shown}`\n\n{run(command).strip()}\n")
    if not args.only:
        page = PAGE.read_text("utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(sections) + f"\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
