"""From the shell to the first line of text: processes that transcribe one short recording, compiled programs on disk.

COMMAND: python -m benchmarks.startup_speed [--model=tiny.en] [--rounds=5]
Each round starts `python -m jaxmoe.transcribe` and a script that uses faster-whisper (float32, its defaults of beam and
temperature, as ours), and takes the time until the first line comes out. A first round, which compiles, does not count.
"""

import argparse
from pathlib import Path
import subprocess
import sys
import tempfile

from benchmarks import race
from jaxmoe import weights

JFK = Path(__file__).parents[1] / "tests" / "data" / "jfk.flac"  # 11 s
PEER = """
import sys
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="float32", cpu_threads=2)
for segment in model.transcribe(sys.argv[2], language="en", condition_on_previous_text=False)[0]:
    print(segment.text, flush=True)
"""


def first_line(command: list[str]) -> None:
    """Starts the command and waits for its first line, then for its end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    process.kill()
    process.wait()
    if "fellow Americans" not in line:
        raise SystemExit(f"{' '.join(command[:3])}: the first line is {line!r}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="tiny.en")
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    folder = str(weights.resolve(args.model))
    with tempfile.TemporaryDirectory() as out:
        us = [sys.executable, "-u", "-m", "jaxmoe.transcribe", str(JFK), f"--model={args.model}", f"-o={out}"]
        them = [sys.executable, "-c", PEER, folder, str(JFK)]
        subprocess.run(us, check=True, stdout=subprocess.DEVNULL)  # all that the recording needs is compiled
        times = race.alternate({"ours": lambda: first_line(us), "theirs": lambda: first_line(them)}, args.rounds)
    print(race.HEAD)
    work = "a new process, 11 s of speech, until the first line of text; ours is to be under 4 s"
    print(race.Result(f"{args.model} start-up", "faster-whisper float32", *times.values(), None, work).row())


if __name__ == "__main__":
    main()
