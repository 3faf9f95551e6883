"""Translates texts through a DeepL on the loopback that fails, with runs that are killed, and counts what was paid for.

    python -m benchmarks.deepl_faults [--texts=2000] [--failures=0.3] [--kills=5] [--lost] [--seed=0]

Every run is a process of its own that is killed with SIGKILL while the server works on a request; the next goes on.
Failures are refusals (429, 500, 503) and resets before the server has taken the request. With --lost, they are answers
that the server bills and the client never reads whole: those are paid for again, and the cache says how many.
"""

import argparse
from collections import Counter
import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import tempfile
import time

from jaxmoe.mt.cache import Cache
from tests.mt.deepl_server import KEY, LOST, Account, serve

RUN = """
import json, sys
from jaxmoe import mt
from jaxmoe.mt import account
account.PAUSE_S, account.TIMEOUT_S = 0.01, 2.0
url, cache, texts, output = sys.argv[1:]
translator = mt.make("deepl", "", acknowledge_privacy=True, server_url=url, cache_path=cache, max_chars=10**9)
german = translator.translate(json.load(open(texts)))
json.dump(german, open(output, "w"))
"""
REFUSALS = ("429", "500", "503", "reset")


def sentences(count: int, rng: random.Random) -> list[str]:
    """Distinct sentences of 20 to 150 characters."""
    words = "please turn the light off in kitchen my left hand shakes when I hold a cup of tea with Ärztin".split()
    return [f"{n}: " + " ".join(rng.choices(words, k=rng.randint(4, 25))) for n in range(count)]


def translate(folder: Path, url: str, account: Account, texts: list[str], kill_at: list[int]) -> tuple[list[str], int]:
    """German of the texts, and how many runs it took; one is killed when so many texts are billed."""
    folder.mkdir()
    (folder / "texts.json").write_text(json.dumps(texts))
    output = folder / "german.json"
    command = [sys.executable, "-c", RUN, url, *(str(folder / name) for name in ("mt.sqlite", "texts.json"))]
    env = os.environ | {"DEEPL_AUTH_KEY": KEY}
    runs = 0
    while not output.exists():
        process = subprocess.Popen([*command, str(output)], env=env, stderr=subprocess.DEVNULL)
        runs += 1
        while process.poll() is None:
            if kill_at and sum(account.billed.values()) >= kill_at[0]:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kill_at.pop(0)
            time.sleep(0.002)
    return json.loads(output.read_text()), runs


def main() -> None:
    """Runs both and prints the count as JSON; ends with 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--failures", type=float, default=0.3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--lost", action="store_true", help="failures are answers that get lost")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    texts = sentences(args.texts, rng)
    kinds = sorted(LOST) if args.lost else REFUSALS
    fault = lambda number: rng.choice(kinds) if rng.random() < args.failures else ""
    kills = [int((k + 0.5) * args.texts / args.kills) for k in range(args.kills)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serve(limit=10**9) as (url, account):
            expected, _ = translate(folder / "fault-free", url, account, texts, [])
        with serve(fault, limit=10**9) as (url, account):
            account.work_s = 0.05
            found, runs = translate(folder / "faulty", url, account, texts, list(kills))
        cache = Cache(folder / "faulty" / "mt.sqlite")
        billed, doubt = cache.billed_characters(), cache.in_doubt()
    characters = sum(map(len, texts))
    report = {
        "texts": len(texts),
        "requests": len(account.requests),
        "failures": dict(Counter(kind for kind in account.faults if kind)),
        "kills": len(kills),
        "runs": runs,
        "output_equals_the_fault_free_runs": found == expected,
        "texts_answered_other_than_once": sum(n != 1 for n in account.accepted.values())
        + len(texts)
        - len(account.accepted),
        "texts_billed_more_than_once": sum(n > 1 for n in account.billed.values()),
        "characters": characters,
        "characters_billed_by_the_server": account.characters,
        "characters_billed_says_the_cache": billed,
        "characters_in_doubt_says_the_cache": doubt,
    }
    print(json.dumps(report, indent=1))
    once = report["texts_answered_other_than_once"] == 0
    paid = account.characters <= billed + doubt if args.lost else account.characters == billed == characters
    sys.exit(0 if found == expected and once and paid else 1)


if __name__ == "__main__":
    main()
